"""What several of these tests train on."""

from collections.abc import Iterator

import by_hand
import jax
import pytest
from tiny import DATASET, Dense, Pooled

from cifar_jax import models
from cifar_jax.training import setup


@pytest.fixture(scope="module")
def tiny() -> Iterator[None]:
    """Trains on its images instead of the config's, and knows its networks."""
    workload = setup.workload
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "tiny", by_hand.Tiny)
        patch.setitem(models.MODELS, "pooled", Pooled)
        patch.setitem(models.MODELS, "dense", Dense)
        patch.setattr(
            *(setup, "workload"),
            lambda config, **options: workload(config, **{"dataset": DATASET, **options}),
        )
        yield
    jax.config.update("jax_disable_most_optimizations", False)
