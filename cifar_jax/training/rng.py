"""The random keys of a run. Each use has its own key, and all keys follow from the seed."""

from typing import NamedTuple

import jax


class Streams(NamedTuple):
    """Keys of independent streams of random numbers.

    Each use folds the number of the epoch or step into the key. All random numbers therefore follow
    from the seed and the step, and a checkpoint stores no keys.
    """

    init: jax.Array
    """Key for the initial weights."""
    order: jax.Array
    """Key for the order of the images. Fold in the number of the epoch."""
    augment: jax.Array
    """Key for augmentation. Fold in the number of the step."""
    dropout: jax.Array
    """Key for dropout. Fold in the number of the step."""


def make_streams(seed: int) -> Streams:
    """Return the random streams of a seed. They do not depend on the configuration of JAX."""
    init, order, step = jax.random.split(jax.random.key(seed, impl="threefry2x32"), 3)
    augment, dropout = jax.random.split(step)
    return Streams(init, order, augment, dropout)
