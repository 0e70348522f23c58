"""`python -m cifar_jax` is `cifar-jax`."""

from cifar_jax.cli import main

if __name__ == "__main__":
    main()
