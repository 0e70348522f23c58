"""Tools for typed settings with dotted names. `cifar_jax.config` defines the settings of a run."""
