"""Run the command line: `python -m cifar_jax` does the same as `cifar-jax`."""

from cifar_jax.cli import main

if __name__ == "__main__":
    main()
