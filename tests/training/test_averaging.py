"""Test the averages of weights against recurrence formulas in NumPy."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax.training import averaging
from cifar_jax.training.averaging import Ema, Lookahead

STEPS = 23


@pytest.fixture
def start() -> dict[str, Any]:
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {"params": {"w": drawn(3, 2), "b": drawn(2)}, "batch_stats": {"mean": drawn(2)}}


def trained(step: Any, x: Any) -> Any:
    """Return the value of the weight `x` after a simulated train step."""
    return 0.9 * x + 0.05 * (step + 1)


def run(
    rule: Ema | Lookahead, start: Any, averaged: Any, first: int, steps: int
) -> tuple[Any, Any]:
    def one(step: jax.Array, both: tuple[Any, Any]) -> tuple[Any, Any]:
        averaged, variables = both
        variables = jax.tree.map(lambda x: trained(step.astype(jnp.float32), x), variables)
        progress = (step + 1).astype(jnp.float32) / STEPS
        return averaging.update(rule, averaged, variables, step + 1, progress)

    loop = jax.jit(lambda *both: jax.lax.fori_loop(first, first + steps, one, both))
    with jax.numpy_dtype_promotion("strict"):
        return loop(averaged, start)


@pytest.mark.parametrize("rule", [Ema(0.99), Ema(0.3), Ema(0.5, every=5), Ema(0.0)])
def test_ema_follows_its_recurrence(rule: Ema, start: dict[str, Any]) -> None:
    averaged, variables = run(rule, start, averaging.init(start), 0, STEPS)
    expected, fast = (jax.tree.map(np.float64, start) for _ in range(2))
    for step in range(1, STEPS + 1):
        fast = jax.tree.map(lambda x, step=step: trained(step - 1, x), fast)
        if step % rule.every == 0:
            t = step / rule.every
            keep = min(rule.decay, (1 + t) / (10 + t))
            expected = jax.tree.map(
                lambda old, new, keep=keep: keep * old + (1 - keep) * new, expected, fast
            )
    chex.assert_trees_all_close(averaged, expected, rtol=1e-5)
    chex.assert_trees_all_close(variables, fast, rtol=1e-5)  # The EMA does not affect the training.


@pytest.mark.parametrize(
    "rule", [Lookahead(0.5, every=5), Lookahead(0.5, every=1), Lookahead(0.95**5, every=5, power=3)]
)
def test_lookahead_resets_the_fast_weights(rule: Lookahead, start: dict[str, Any]) -> None:
    averaged, variables = run(rule, start, averaging.init(start), 0, STEPS)
    slow, fast = (jax.tree.map(np.float64, start) for _ in range(2))
    for step in range(1, STEPS + 1):
        fast = jax.tree.map(lambda x, step=step: trained(step - 1, x), fast)
        if step % rule.every == 0:
            keep = rule.decay * (step / STEPS) ** rule.power
            fast = slow = jax.tree.map(
                lambda slow, fast, keep=keep: slow + (1 - keep) * (fast - slow), slow, fast
            )
    chex.assert_trees_all_close(averaged, slow, rtol=1e-5)
    chex.assert_trees_all_close(variables, fast, rtol=1e-5)


@pytest.mark.parametrize("rule", [Ema(0.9, every=3), Lookahead(0.5, every=5, power=3)])
def test_average_does_not_depend_on_the_division_into_calls(
    rule: Ema | Lookahead, start: dict[str, Any]
) -> None:
    whole = run(rule, start, averaging.init(start), 0, STEPS)
    averaged, variables = run(rule, start, averaging.init(start), 0, 7)
    parts = run(rule, variables, averaged, 7, STEPS - 7)
    chex.assert_trees_all_equal(whole, parts)


@pytest.mark.parametrize("rule", [Ema(0.9), Lookahead(0.5, every=2)])
def test_average_of_constant_weights_is_constant(
    rule: Ema | Lookahead, start: dict[str, Any]
) -> None:
    for step in (1, 2, 3, 1000):
        found = averaging.update(rule, start, start, jnp.int32(step), jnp.float32(0.5))
        chex.assert_trees_all_equal(found, (start, start))


@pytest.mark.parametrize("rule", [Ema(0.9), Lookahead(0.5, every=1)])
def test_average_and_weights_can_be_donated(rule: Ema | Lookahead, start: dict[str, Any]) -> None:
    def step(averaged: Any, variables: Any) -> tuple[Any, Any]:
        return averaging.update(rule, averaged, variables, jnp.int32(1), jnp.float32(1))

    both = jax.jit(averaging.init)(start), start
    program = jax.jit(step, donate_argnums=(0, 1))
    for _ in range(2):
        both = program(*both)
    chex.assert_tree_all_finite(both)
