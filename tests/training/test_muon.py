"""Test the optimizer Muon against its definition in NumPy and against PyTorch."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fixtures import recipe

from cifar_jax.config import Optimizer, ParamGroup
from cifar_jax.training import muon
from cifar_jax.training.optimizers import make_optimizer

RECORD = json.loads((Path(__file__).parents[1] / "fixtures/torch_muon.json").read_text())
SHAPES = {
    "conv1": (3, 3, 8, 16),
    "conv2": (3, 3, 8, 16),
    "fc1": (16, 72),  # The transposed matrix shape of conv1 and conv2.
    "few": (2, 2, 3, 24),
    "fc2": (24, 10),
    "square": (12, 12),
}


def random_kernels(seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {
        name: jnp.asarray(random.standard_normal(shape), jnp.float32)
        for name, shape in SHAPES.items()
    }


def to_matrix(kernel: Any) -> np.ndarray:
    """Reshape a kernel to a matrix `[outputs, inputs per output]`, in PyTorch's layout."""
    kernel = np.asarray(kernel, np.float64)
    return np.moveaxis(kernel, -1, 0).reshape(kernel.shape[-1], -1)


def to_kernel(matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Reshape a matrix to a kernel. This is the inverse of `to_matrix`."""
    return np.moveaxis(matrix.reshape(shape[-1], *shape[:-1]), 0, -1)


def newton_schulz(kernel: Any, steps: int) -> np.ndarray:
    """Apply the published Newton–Schulz iteration to a kernel. Return a float64 matrix."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = to_matrix(kernel)
    x = x / np.linalg.norm(x)
    for _ in range(steps):
        x = a * x + b * (x @ x.T) @ x + c * (x @ x.T) @ (x @ x.T) @ x
    return x


@pytest.mark.parametrize("steps", [1, 3, 5, 6, 11])
def test_orthogonalization_equals_the_published_iteration(steps: int) -> None:
    kernels = random_kernels()
    for name, result in muon.orthogonalized(kernels, steps=steps).items():
        assert (result.shape, result.dtype) == (SHAPES[name], jnp.float32)
        expected = newton_schulz(kernels[name], steps)
        np.testing.assert_allclose(to_matrix(result), expected, atol=1e-5 if steps < 5 else 1e-3)


@pytest.mark.parametrize(("steps", "smallest"), [(3, 0.06), (5, 0.01)])
def test_singular_values_become_close_to_one(steps: int, smallest: float) -> None:
    """The matrices have very different scales, and condition numbers of up to 100."""
    random = np.random.default_rng(1)
    for shape in [(72, 16), (16, 72), (32, 32)]:
        left, _, right = np.linalg.svd(random.standard_normal(shape), full_matrices=False)
        values = np.geomspace(1, smallest, len(right))
        for scale in (1e-12, 1e-3, 1e6):
            x = jnp.asarray(scale * (left * values) @ right, jnp.float32)
            rotated = left.T @ np.asarray(muon.orthogonalized([x], steps=steps)[0]) @ right.T
            new_values = np.diag(rotated)
            assert 0.6 < new_values.min() <= new_values.max() < 1.3
            # The singular vectors do not change.
            assert np.abs(rotated - np.diag(new_values)).max() < 1e-3


def test_kernels_and_their_names_do_not_affect_each_other() -> None:
    kernels = random_kernels()
    together = muon.orthogonalized(kernels)
    new_names = dict(zip(sorted(kernels, reverse=True), sorted(kernels), strict=True))
    renamed = muon.orthogonalized({new_names[name]: kernel for name, kernel in kernels.items()})
    for name, kernel in kernels.items():
        alone = muon.orthogonalized({name: kernel})[name]
        np.testing.assert_allclose(together[name], alone, atol=1e-6)
        np.testing.assert_allclose(renamed[new_names[name]], alone, atol=1e-6)


def test_kernels_of_equal_shape_share_their_products() -> None:
    """The six kernels have four different shapes. Transposed shapes count as equal."""
    kernels, lower = random_kernels(), jax.jit(muon.orthogonalized).lower
    all_six, one = (lower(tree).as_text() for tree in (kernels, kernels["square"]))
    assert all_six.count("dot_general") == 4 * one.count("dot_general")


def test_zero_and_tiny_kernels_stay_finite() -> None:
    random = np.random.default_rng(0)
    for size in (0.0, 1e-45, 1e-38, 1e-25, 1e-19):
        x = jnp.asarray(size * random.standard_normal((9, 4)), jnp.float32)
        result = np.asarray(muon.orthogonalized([x])[0])
        assert np.isfinite(result).all()
        assert np.linalg.norm(result, 2) < 1.3
        assert size or not result.any()
    zero = {"conv": jnp.zeros((3, 3, 2, 4))}
    updates, _ = muon.scale_by_muon().update(zero, muon.scale_by_muon().init(zero))
    assert not np.asarray(updates["conv"]).any()
    assert not np.asarray(muon.normalized(zero, {"conv": True})["conv"]).any()


def test_vectors_and_zero_steps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"array of shape \(5,\)"):
        muon.orthogonalized({"bias": jnp.ones(5)})
    with pytest.raises(ValueError, match="steps must be at least 1, not 0"):
        muon.scale_by_muon(steps=0)


def test_updates_equal_pytorch() -> None:
    """PyTorch computed the five updates with a singular value decomposition."""
    weights = {
        name: jnp.asarray(from_torch(recipe.tensor(name, tuple(shape))))
        for name, shape in RECORD["kernels"].items()
    }
    settings = {name: RECORD[name] for name in ("momentum", "newton_schulz_steps")}
    tx = make_optimizer(Optimizer(name="muon", nesterov=True, **settings))
    state = tx.init(weights)
    for step, recorded in enumerate(RECORD["changes"]):
        gradients = {
            name: jnp.asarray(from_torch(recipe.tensor(f"step{step}.{name}", tuple(shape))))
            for name, shape in RECORD["kernels"].items()
        }
        rates = jnp.float32([RECORD["lr"]])
        updates, state = tx.update(gradients, state, weights, rates=rates)
        before, weights = weights, optax.apply_updates(weights, updates)
        for name, expected in recorded.items():
            change = to_torch(np.asarray(weights[name]) - np.asarray(before[name]))
            distance = recipe.distance(recipe.signature(name, change), expected)
            assert distance < 1e-5 * expected[0], (step, name)


@pytest.mark.parametrize("in_group", [False, True])
@pytest.mark.parametrize(
    ("setting", "value"), [("nesterov", False), ("newton_schulz_steps", 2), ("weight_decay", 0.1)]
)
def test_settings_reach_the_update(setting: str, value: Any, in_group: bool) -> None:
    """If `in_group` is True, Muon trains one parameter group, and SGD trains all other
    parameters."""
    settings: dict[str, Any] = {"momentum": 0.9, "nesterov": True, "newton_schulz_steps": 3}
    settings |= {"weight_decay": 0.0, setting: value}
    optimizer, rates = Optimizer(name="muon", **settings), jnp.float32([0.05])
    tx = make_optimizer(optimizer)
    if in_group:
        group = ParamGroup(parameters="conv*, fc1, few, square", optimizer=optimizer)
        tx = make_optimizer(Optimizer(name="sgd", momentum=0), [group])
        rates = jnp.float32([0.1, 0.05])
    weights, gradients = random_kernels(0), (random_kernels(1), random_kernels(2))
    state, expected = tx.init(weights), {name: np.asarray(w) for name, w in weights.items()}
    buffers = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for gradient in gradients:
        updates, state = tx.update(gradient, state, weights, rates=rates)
        for name, kernel in expected.items():
            if in_group and name == "fc2":
                expected[name] = kernel - 0.1 * np.asarray(gradient[name])
                continue
            decayed = np.asarray(gradient[name]) + settings["weight_decay"] * kernel
            buffers[name] = 0.9 * buffers[name] + decayed
            direction = decayed + 0.9 * buffers[name] if settings["nesterov"] else buffers[name]
            direction = newton_schulz(direction, settings["newton_schulz_steps"])
            # Each kernel is first scaled to the norm √(number of filters).
            kernel = kernel * kernel.shape[-1] ** 0.5 / np.linalg.norm(kernel)
            expected[name] = kernel - 0.05 * to_kernel(direction, kernel.shape)
        weights = optax.apply_updates(weights, updates)
        for name, kernel in weights.items():
            np.testing.assert_allclose(kernel, expected[name], atol=1e-4, err_msg=name)


def from_torch(weight: np.ndarray) -> np.ndarray:
    return weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T


def to_torch(kernel: np.ndarray) -> np.ndarray:
    return kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
