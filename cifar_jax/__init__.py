"""The ten experiments of “A New Classifier Based on CIFAR10 Data Set” in JAX and Flax."""
