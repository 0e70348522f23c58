"""Fixtures for the tests of training."""

from collections.abc import Iterator
from functools import partial

import by_hand
import jax
import pytest
from tiny import DATASET, Dense, Pooled

from cifar_jax import models
from cifar_jax.training import train as training


@pytest.fixture(scope="module")
def tiny() -> Iterator[None]:
    """Make runs train on tiny images, and add tiny networks to the registry."""
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "tiny", by_hand.Tiny)
        patch.setitem(models.MODELS, "pooled", Pooled)
        patch.setitem(models.MODELS, "dense", Dense)
        patch.setattr(training, "build_setup", partial(training.build_setup, dataset=DATASET))
        yield
    jax.config.update("jax_disable_most_optimizations", False)
