"""Test that the plateau schedule agrees with PyTorch's `ReduceLROnPlateau`."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax.training.schedules import plateau_init, plateau_update

TRACES = json.loads((Path(__file__).parents[1] / "fixtures/torch_rates.json").read_text())[
    "plateau"
]


@pytest.mark.parametrize("name", TRACES)
def test_learning_rates_equal_pytorch(name: str):
    trace = TRACES[name]
    lr = trace["lr"]
    update = jax.jit(
        partial(plateau_update, lr=lr, patience=5, factor=0.5, threshold=1e-4, eps=1e-8)
    )
    state = plateau_init()
    rates = []
    for loss in trace["losses"]:
        state = update(state, jnp.float32(loss))
        rates.append(lr * float(state.scale))
    np.testing.assert_allclose(rates, trace["rates"], rtol=1e-6)


def test_reduction_follows_the_epochs_of_patience():
    state = plateau_init()
    scales = []
    for _ in range(8):
        state = plateau_update(
            state, jnp.float32(1), lr=0.1, patience=2, factor=0.1, threshold=1e-4
        )
        scales.append(float(state.scale))
    # The first loss is the best. Patience allows two bad epochs. The third bad epoch reduces the
    # learning rate.
    assert scales == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01])
