"""Typed settings and their dotted names. `cifar_jax.config` defines the settings of a run."""
