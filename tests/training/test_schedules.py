"""Test the learning-rate schedules against their closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax.config import Schedule
from cifar_jax.training import schedules
from cifar_jax.training.schedules import StepInfo

LR, EPOCHS = 1e-3, 12


def rates(schedule: Schedule, steps_per_epoch: int, epochs: int = EPOCHS) -> np.ndarray:
    """Return the learning rate of each step of a run, computed in a jitted function."""
    function, count = schedules.make(schedule), steps_per_epoch * epochs
    steps = jnp.arange(count, dtype=jnp.int32)
    by_step = jax.vmap(
        lambda step: function(StepInfo(step, step // steps_per_epoch, jnp.int32(count)))
    )
    return LR * np.asarray(jax.jit(by_step)(steps))


@pytest.mark.parametrize("name", ["constant", "plateau"])
def test_constant(name: str) -> None:
    np.testing.assert_allclose(rates(Schedule(name=name), 7), LR)  # pyright: ignore


@pytest.mark.parametrize("steps_per_epoch", [7, 41, 351])
@pytest.mark.parametrize("step_epochs", [1, 3, 100])
def test_step_reduces_at_the_start_of_an_epoch(steps_per_epoch: int, step_epochs: int) -> None:
    actual = rates(Schedule(name="step", step_epochs=step_epochs, factor=0.1), steps_per_epoch)
    epochs = np.arange(EPOCHS).repeat(steps_per_epoch)
    np.testing.assert_allclose(actual, LR * 0.1 ** (epochs // step_epochs), rtol=1e-5)


def test_cosine_reaches_zero_at_the_end() -> None:
    actual = rates(Schedule(name="cosine"), 10)
    expected = [LR * (1 + math.cos(math.pi * step / 120)) / 2 for step in range(120)]
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-9)


def test_one_cycle_peaks_after_its_warmup() -> None:
    actual = rates(Schedule(name="one-cycle", warmup=0.25), 10)
    assert actual.argmax() == 30
    np.testing.assert_allclose(actual[30], LR, rtol=1e-5)
    assert (np.diff(actual[:31]) > 0).all()
    assert (np.diff(actual[30:]) < 0).all()
    np.testing.assert_allclose(actual[0], LR / 25, rtol=1e-3)
    assert actual[-1] < LR / 100


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_one_cycle_without_warmup_steps_starts_at_its_peak(steps: int) -> None:
    actual = rates(Schedule(name="one-cycle", warmup=0.3), steps, epochs=1)
    expected = [LR * (1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps)]
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=LR * 1e-5)


@pytest.mark.parametrize(
    "name", ["constant", "step", "cosine", "one-cycle", "linear", "triangular", "plateau"]
)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_rates_of_very_short_runs_are_finite(name: str, steps: int) -> None:
    actual = rates(Schedule(name=name), steps, epochs=1)  # pyright: ignore
    assert all(0 < rate <= LR * 1.001 for rate in actual)
