"""Test the train step as a pure function of arrays."""

from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax import models
from cifar_jax.config import Optimizer
from cifar_jax.training import step
from cifar_jax.training.optimizers import make_optimizer
from cifar_jax.training.schedules import StepInfo
from cifar_jax.training.step import Metrics, StepSpec, TrainState

MODEL = models.create("basic")
BATCH, INFO = 8, StepInfo(0, 0, 60)


@pytest.fixture(scope="module")
def batches() -> tuple[jax.Array, jax.Array]:
    """Four random batches: images `[4, 8, 32, 32, 3]` and labels `[4, 8]`."""
    random = np.random.default_rng(0)
    images = random.standard_normal((4, BATCH, *models.IMAGE_SHAPE)).astype(np.float32)
    return jnp.asarray(images), jnp.asarray(random.integers(0, 10, (4, BATCH), np.int32))


def make(name: str, lr: float, **options: Any) -> tuple[StepSpec, TrainState]:
    """Return a `StepSpec` with the named optimizer, and the initial train state."""
    spec = StepSpec(MODEL, make_optimizer(Optimizer(name=name, **options)))  # pyright: ignore
    return spec, step.init_state(models.init_variables(MODEL, jax.random.key(0)), spec, [lr])


def jit_once(function: Callable[..., Any], **fixed: Any) -> Any:
    """Return a jitted function that raises an error if it is traced twice."""
    chex.clear_trace_counter()  # Do not count traces of earlier tests.
    once = partial(chex.assert_max_traces(function, n=1), **fixed)
    # XLA's optimizations are off, because compilation dominates the time of these tests.
    return jax.jit(once, compiler_options={"xla_backend_optimization_level": 0})


def test_initial_state_has_no_steps() -> None:
    _, state = make("sgd", 0.1)
    assert int(state.step) == 0
    assert state.batch_stats == {}
    assert [float(value) for value in state.metrics] == [0, 0, 0]
    chex.assert_trees_all_equal_shapes_and_dtypes(
        state.params, models.variable_shapes(MODEL)["params"]
    )


def test_one_batch_is_memorized_with_one_compilation(batches: tuple[jax.Array, jax.Array]) -> None:
    spec, state = make("adam", 3e-3)
    update = jit_once(step.train_step, spec=spec)
    images, labels = batches[0][0], batches[1][0]
    for number in range(60):
        plateau = state.plateau._replace(scale=jnp.float32(0.99**number))
        state = state._replace(metrics=Metrics.zero(), plateau=plateau)
        state = update(state, images, labels, jax.random.key(number), INFO)
    assert int(state.step) == 60
    assert int(state.metrics.correct) == BATCH
    assert float(state.metrics.loss) / BATCH < 0.01
    chex.assert_tree_all_finite(state.params)


def test_metrics_are_sums_over_images(batches: tuple[jax.Array, jax.Array]) -> None:
    # The learning rate is zero, so the weights do not change and the logits are known.
    spec, state = make("sgd", 0.0)
    update = jit_once(step.train_step, spec=spec)
    logits = [np.asarray(MODEL.apply({"params": state.params}, images)) for images in batches[0]]
    for images, labels in zip(*batches, strict=True):
        state = update(state, images, labels, jax.random.key(0), INFO)
    logits, labels = np.concatenate(logits), np.asarray(batches[1]).ravel()
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]
    np.testing.assert_allclose(state.metrics.loss, losses.sum(), rtol=1e-5)
    assert int(state.metrics.correct) == (logits.argmax(1) == labels).sum()
    assert int(state.metrics.images) == 4 * BATCH


def test_plateau_scale_multiplies_the_update(
    batches: tuple[jax.Array, jax.Array],
) -> None:
    images, labels = batches[0][0], batches[1][0]
    for spec, state in (make("sgd", 0.1), make("adam", 1e-3)):
        update = jit_once(step.train_step, spec=spec)
        half = state._replace(plateau=state.plateau._replace(scale=jnp.float32(0.5)))
        whole_step, half_step = (
            jax.tree.map(
                jnp.subtract,
                update(s, images, labels, jax.random.key(0), INFO).params,
                state.params,
            )
            for s in (state, half)
        )
        chex.assert_trees_all_close(
            half_step, jax.tree.map(lambda x: x / 2, whole_step), rtol=1e-2, atol=1e-7
        )


@pytest.mark.parametrize("per_call", [2, 4])
def test_several_steps_in_a_call_equal_single_steps(
    batches: tuple[jax.Array, jax.Array], per_call: int
) -> None:
    key = jax.random.key(7)
    spec, _ = make("sgd", 0.05)

    def batch(number: jax.Array) -> tuple[jax.Array, jax.Array]:
        noise = jax.random.normal(jax.random.fold_in(key, number), ())
        return batches[0][number % 4] + noise, batches[1][number % 4]

    program = jit_once(
        *(step.train_steps,),
        batch=batch,
        info=lambda number: StepInfo(number, 0, 6),
        spec=spec,
    )

    def run(calls: list[int]) -> TrainState:
        _, state = make("sgd", 0.05)
        for count in calls:
            state = program(state, jnp.int32(count), key)
        return state

    single = run([1] * 6)
    together = run([per_call] * (6 // per_call) + [6 % per_call])
    assert int(together.step) == int(single.step) == 6
    assert int(together.metrics.images) == int(single.metrics.images) == 6 * BATCH
    chex.assert_trees_all_equal(together, single)


def test_metrics_add() -> None:
    some = Metrics(jnp.float32(1.5), jnp.int32(2), jnp.int32(3))
    chex.assert_trees_all_equal(some.plus(Metrics.zero()), some)
    both = some.plus(some)
    chex.assert_trees_all_equal(both, Metrics(jnp.float32(3), jnp.int32(4), jnp.int32(6)))
    chex.assert_trees_all_equal_shapes_and_dtypes(both, Metrics.zero())
