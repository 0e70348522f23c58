"""The random keys of a run: one stream for each use, all derived from the seed."""

from typing import NamedTuple

import jax


class Streams(NamedTuple):
    """Keys of the independent streams of random numbers.

    Every draw folds the epoch or the step into its stream, so the keys follow from the seed and
    the step, and a checkpoint stores none.
    """

    init: jax.Array
    """Initial weights."""
    order: jax.Array
    """Order of the images; fold in the epoch."""
    augment: jax.Array
    """Augmentation; fold in the step."""
    dropout: jax.Array
    """Dropout; fold in the step."""


def make_streams(seed: int) -> Streams:
    """Return the streams of a seed. The generator does not depend on JAX's configuration."""
    init, order, step = jax.random.split(jax.random.key(seed, impl="threefry2x32"), 3)
    augment, dropout = jax.random.split(step)
    return Streams(init, order, augment, dropout)
