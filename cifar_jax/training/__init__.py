"""From a config to a trained run: what happens in a step, what runs on the devices, the loop."""
