"""Muon against its definition, written out in NumPy, and against what PyTorch computed of it."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fixtures import recipe

from cifar_jax.config import Optimizer
from cifar_jax.training import muon
from cifar_jax.training.optimizers import make_optimizer

RECORD = json.loads((Path(__file__).parents[1] / "fixtures/torch_muon.json").read_text())
SHAPES = {
    "conv1": (3, 3, 8, 16),
    "conv2": (3, 3, 8, 16),
    "fc1": (16, 72),  # one shape with the two convolutions, seen from its side
    "few": (2, 2, 3, 24),
    "fc2": (24, 10),
    "square": (12, 12),
}


def kernels(seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {
        name: jnp.asarray(random.standard_normal(shape), jnp.float32)
        for name, shape in SHAPES.items()
    }


def as_matrix(kernel: Any) -> np.ndarray:
    """`[O, the rest]`, as PyTorch's layout has it."""
    kernel = np.asarray(kernel, np.float64)
    return np.moveaxis(kernel, -1, 0).reshape(kernel.shape[-1], -1)


def by_definition(kernel: Any, steps: int) -> np.ndarray:
    """The iteration as published, in float64, as a matrix `[O, the rest]`."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = as_matrix(kernel)
    x = x / np.linalg.norm(x)
    for _ in range(steps):
        x = a * x + b * (x @ x.T) @ x + c * (x @ x.T) @ (x @ x.T) @ x
    return x


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 6, 11])
def test_it_is_the_iteration_as_published(steps: int) -> None:
    given = kernels()
    found = muon.orthogonalized(given, steps=steps)
    for name, kernel in found.items():
        assert kernel.shape == SHAPES[name]
        assert kernel.dtype == jnp.float32
        expected = by_definition(given[name], steps)
        np.testing.assert_allclose(as_matrix(kernel), expected, atol=1e-5 if steps < 5 else 1e-3)


@pytest.mark.parametrize("steps", [3, 5])
def test_singular_values_come_close_to_one(steps: int) -> None:
    """Also of what is scaled or badly conditioned, down to what these steps can lift."""
    random = np.random.default_rng(1)
    for rows, columns in [(72, 16), (16, 72), (32, 32)]:
        x = random.standard_normal((rows, columns))
        left, _, right = np.linalg.svd(x, full_matrices=False)
        values = np.geomspace(1, 0.06 if steps == 3 else 0.01, len(right))
        for scale in (1e-12, 1e-3, 1e6):
            x = jnp.asarray(scale * (left * values) @ right, jnp.float32)
            found = muon.orthogonalized([x], steps=steps)[0]
            assert found.dtype == jnp.float32
            around = np.linalg.svd(np.asarray(found), compute_uv=False)
            assert 0.6 < around.min() <= around.max() < 1.3
            # The directions stay what they were.
            turned = left.T @ np.asarray(found) @ right.T
            off = turned - np.diag(np.diag(turned))
            assert np.abs(off).max() < 1e-3


def test_a_kernel_among_others_is_what_it_is_alone() -> None:
    given = kernels()
    together = muon.orthogonalized(given)
    for name, kernel in given.items():
        alone = muon.orthogonalized({name: kernel})[name]
        np.testing.assert_allclose(together[name], alone, atol=1e-6)


def test_names_decide_nothing() -> None:
    given = kernels()
    renamed = dict(zip(sorted(given, reverse=True), sorted(given), strict=True))
    found = muon.orthogonalized({renamed[name]: kernel for name, kernel in given.items()})
    for name, kernel in muon.orthogonalized(given).items():
        np.testing.assert_allclose(found[renamed[name]], kernel, atol=1e-6)


def test_equal_shapes_share_their_products() -> None:
    """Four of these six are of two shapes."""
    program = jax.jit(muon.orthogonalized).lower(kernels()).as_text()
    one = jax.jit(muon.orthogonalized).lower({"square": kernels()["square"]}).as_text()
    assert program.count("dot_general") == 4 * one.count("dot_general")


def test_zero_and_what_is_next_to_it() -> None:
    random = np.random.default_rng(0)
    for size in (0.0, 1e-45, 1e-38, 1e-25, 1e-19):
        x = jnp.asarray(size * random.standard_normal((9, 4)), jnp.float32)
        found = np.asarray(muon.orthogonalized([x])[0])
        assert np.isfinite(found).all()
        assert np.linalg.norm(found, 2) < 1.3
        assert size or not found.any()
    zero = {"conv": jnp.zeros((3, 3, 2, 4))}
    updates, _ = muon.scale_by_muon().update(zero, muon.scale_by_muon().init(zero))
    assert not np.asarray(updates["conv"]).any()
    assert not np.asarray(muon.normalized(zero, {"conv": True})["conv"]).any()


def test_normalized_kernels_have_the_root_of_their_filters_as_norm() -> None:
    params = {**kernels(), "bias": jnp.ones(5)}
    chosen = {name: name not in ("bias", "fc2") for name in params}
    found = muon.normalized(params, chosen)
    for name, array in found.items():
        if chosen[name]:
            norm = np.linalg.norm(np.asarray(array))
            np.testing.assert_allclose(norm, array.shape[-1] ** 0.5, rtol=1e-6)
            # As before but for its size.
            ratio = np.asarray(array) / np.asarray(params[name])
            np.testing.assert_allclose(ratio, ratio.flat[0], rtol=1e-5)
        else:
            np.testing.assert_array_equal(array, params[name])


def test_without_nesterov_the_buffer_itself_is_orthogonalized() -> None:
    tx = muon.scale_by_muon(0.9, nesterov=False, steps=2)
    first, second = kernels(0), kernels(1)
    state = tx.init(first)
    _, state = tx.update(first, state)
    updates, _ = tx.update(second, state)
    for name in SHAPES:
        buffer = 0.9 * np.asarray(first[name]) + np.asarray(second[name])
        np.testing.assert_allclose(as_matrix(updates[name]), by_definition(buffer, 2), atol=1e-5)


def test_beside_another_rule() -> None:
    """As recipes have it: kernels to Muon, the rest to another, by `optax.partition`."""
    params = {"conv": {"kernel": kernels()["conv1"], "bias": jnp.ones(16)}}
    labels = {"conv": {"kernel": "muon", "bias": "sgd"}}
    tx = optax.partition({"muon": muon.scale_by_muon(), "sgd": optax.identity()}, labels)
    updates, _ = jax.jit(tx.update)(params, tx.init(params))
    alone = muon.orthogonalized({"kernel": params["conv"]["kernel"]})
    np.testing.assert_allclose(updates["conv"]["kernel"], alone["kernel"], atol=1e-6)
    np.testing.assert_array_equal(updates["conv"]["bias"], params["conv"]["bias"])


def test_what_muon_is_not_for() -> None:
    with pytest.raises(ValueError, match=r"array of shape \(5,\)"):
        muon.orthogonalized({"bias": jnp.ones(5)})
    with pytest.raises(ValueError, match="steps 0"):
        muon.scale_by_muon(steps=0)


def test_updates_are_those_that_pytorch_computed() -> None:
    """Five steps of the whole rule, recorded of an implementation by singular values."""
    weights = {
        name: jnp.asarray(to_ours(recipe.tensor(name, tuple(shape))))
        for name, shape in RECORD["kernels"].items()
    }
    own = {name: RECORD[name] for name in ("momentum", "newton_schulz_steps")}
    tx = make_optimizer(Optimizer(name="muon", nesterov=True, **own))
    state = tx.init(weights)
    for step, recorded in enumerate(RECORD["changes"]):
        gradients = {
            name: jnp.asarray(to_ours(recipe.tensor(f"step{step}.{name}", tuple(shape))))
            for name, shape in RECORD["kernels"].items()
        }
        rates = jnp.float32([RECORD["lr"]])
        updates, state = tx.update(gradients, state, weights, rates=rates)
        before, weights = weights, optax.apply_updates(weights, updates)
        for name, expected in recorded.items():
            change = to_torch(np.asarray(weights[name]) - np.asarray(before[name]))
            distance = recipe.distance(recipe.signature(name, change), expected)
            assert distance < 1e-5 * expected[0], (step, name)


@pytest.mark.parametrize(
    ("setting", "value"), [("nesterov", False), ("newton_schulz_steps", 2), ("weight_decay", 0.1)]
)
def test_its_settings_are_those_of_the_rule(setting: str, value: Any) -> None:
    """Two steps by `optimizer.*`, beside the iteration as published."""
    own: dict[str, Any] = {"momentum": 0.9, "nesterov": True, "newton_schulz_steps": 3}
    own |= {"weight_decay": 0.0, setting: value}
    tx = make_optimizer(Optimizer(name="muon", **own))
    weights, gradients = kernels(0), (kernels(1), kernels(2))
    state, expected = tx.init(weights), {name: np.asarray(w) for name, w in weights.items()}
    buffer = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for gradient in gradients:
        updates, state = tx.update(gradient, state, weights, rates=jnp.float32([0.05]))
        for name, kernel in expected.items():
            decayed = np.asarray(gradient[name]) + own["weight_decay"] * kernel
            buffer[name] = 0.9 * buffer[name] + decayed
            ahead = decayed + 0.9 * buffer[name] if own["nesterov"] else buffer[name]
            normal = kernel * kernel.shape[-1] ** 0.5 / np.linalg.norm(kernel)
            change = by_definition(ahead, own["newton_schulz_steps"])
            expected[name] = normal - 0.05 * as_kernel(change, kernel.shape)
        weights = optax.apply_updates(weights, updates)
        for name, kernel in weights.items():
            np.testing.assert_allclose(kernel, expected[name], atol=1e-4, err_msg=name)


def as_kernel(matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """What `as_matrix` is of."""
    return np.moveaxis(matrix.reshape(shape[-1], *shape[:-1]), 0, -1)


def to_ours(weight: np.ndarray) -> np.ndarray:
    return weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T


def to_torch(kernel: np.ndarray) -> np.ndarray:
    return kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
