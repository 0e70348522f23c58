"""Fixtures of the training tests."""

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
    """Use tiny images in all runs, register tiny networks, and turn XLA's optimizations off."""
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "tiny", by_hand.Tiny)
        patch.setitem(models.MODELS, "pooled", Pooled)
        patch.setitem(models.MODELS, "dense", Dense)
        patch.setattr(training, "build_setup", partial(training.build_setup, dataset=DATASET))
        yield
    jax.config.update("jax_disable_most_optimizations", False)
