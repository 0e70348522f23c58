"""Search for better settings of an experiment."""
