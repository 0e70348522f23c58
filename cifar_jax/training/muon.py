"""The Muon optimizer: momentum with orthogonalized updates, for the kernels of a network.

This follows Keller Jordan's Muon (kellerjordan.github.io/posts/muon) as in airbench94_muon. It
differs from `optax.contrib.muon` (0.2.6 to 0.2.8):

- Momentum is a plain sum of gradients (`optax.trace`). optax uses a mean with bias correction,
  which weights the first gradients differently.
- Updates are not scaled by the kernel's shape. Instead, kernels are set to a fixed norm before
  every update (`normalized`).
- Other parameters than kernels can use any optimizer, through `optax.partition`. optax always uses
  Adam for these parameters.
- Kernels of the same shape are orthogonalized together, with about half as many operations.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of X, (XXᵀ)X and (XXᵀ)²X in one Newton-Schulz step. With these values, small
singular values grow quickly."""

_STEPS_PER_GRAM = 5
"""Number of Newton-Schulz steps after which XᵀX is computed from X again. With more steps, float32
rounding errors become too large."""

_SMALLEST_NORM = 1e-18
"""Smallest divisor: a smaller norm is replaced by this value, so that no division by 0 occurs. In
float32, the square of a smaller value may be 0."""


def scale_by_muon(
    momentum: float = 0.6, *, nesterov: bool = True, steps: int = 3
) -> optax.GradientTransformation:
    """Return a transformation from gradients of kernels to orthogonalized directions.

    Each update sets `buffer = momentum * buffer + gradient`. The direction is the orthogonalized
    buffer. With `nesterov`, it is the orthogonalized sum `gradient + momentum * buffer`. The caller
    multiplies the direction by minus the learning rate.

    Args:
      momentum: momentum coefficient, in [0, 1).
      nesterov: use Nesterov momentum.
      steps: number of Newton-Schulz steps; see `orthogonalized`.

    Raises:
      ValueError: `steps` is below 1. The `update` function raises it for a parameter that is not a
        kernel.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    return optax.chain(
        optax.trace(momentum, nesterov),
        optax.stateless(lambda updates, _: orthogonalized(updates, steps=steps)),
    )


def orthogonalized(kernels: Any, *, steps: int = 3) -> Any:
    """Return approximately orthogonalized kernels, computed by Newton-Schulz iteration.

    A kernel with the singular value decomposition UΣVᵀ becomes approximately UVᵀ.

    A kernel `[..., O]` is treated as a matrix `[O, rest]`: a convolution kernel HWIO as `[O,
    H*W*I]`, a dense kernel as `[O, I]`. The matrix is divided by its Frobenius norm. Each step then
    maps every singular value σ to aσ + bσ³ + cσ⁵, where a, b and c are `COEFFICIENTS`. The singular
    values do not converge to 1. After 3 steps, singular values above 1/50 of the norm are between
    0.65 and 1.21. After 5 steps, this is true for singular values above 1/500 of the norm. A kernel
    of zeros stays zero.

    For a matrix with sides s <= l, up to 5 steps take 4s²l + (8*steps - 6)s³ operations. A
    multiplication with an addition counts as two operations. The polynomials are evaluated on the s
    × s matrix XᵀX, and X is multiplied once by their product. The textbook form takes steps*(4s²l +
    2s³) operations. For 512 filters of 3×3 over 256 channels, 3 steps take 4.8 GFLOP here and 8.1
    GFLOP in the textbook form.

    Use another optimizer for depthwise and grouped kernels, because their matrix does not map all
    input channels to all output channels.

    Args:
      kernels: a tree of arrays with two or more axes.
      steps: number of Newton-Schulz steps, at least 1.

    Returns:
      A tree with the same shapes and types as `kernels`.

    Raises:
      ValueError: an array has fewer than two axes.
    """
    leaves, structure = jax.tree.flatten(kernels)
    by_shape: dict[tuple[int, int], list[int]] = {}
    for index, leaf in enumerate(leaves):
        rows, columns = _matrix(leaf).shape
        by_shape.setdefault((max(rows, columns), min(rows, columns)), []).append(index)
    outputs = list(leaves)
    for shape, indices in by_shape.items():
        matrices = [_matrix(leaves[index]) for index in indices]
        stacked = jnp.stack([m if m.shape == shape else m.T for m in matrices])
        results = _newton_schulz(stacked.astype(jnp.float32), steps)
        for index, matrix, result in zip(indices, matrices, results, strict=True):
            result = result if matrix.shape == shape else result.T
            outputs[index] = result.reshape(leaves[index].shape).astype(leaves[index].dtype)
    return structure.unflatten(outputs)


def normalized(params: Any, is_muon: Any) -> Any:
    """Return the parameters, with Muon's kernels scaled to the Frobenius norm √O.

    O is the size of a kernel's last axis. With a fixed norm, the learning rate alone determines how
    far an update turns a kernel, and kernels need no weight decay. BatchNorm after a layer cancels
    the scale. Call this function before the update is added to the parameters.

    Args:
      params: a tree of parameters.
      is_muon: a tree of bools with the same structure. True: Muon trains the parameter.
    """

    def one(kernel: jax.Array, yes: bool) -> jax.Array:
        if not yes:
            return kernel
        norm = jnp.linalg.norm(kernel.astype(jnp.float32))
        scale = math.sqrt(kernel.shape[-1]) / jnp.maximum(norm, _SMALLEST_NORM)
        return (kernel * scale).astype(kernel.dtype)

    return jax.tree.map(one, params, is_muon)


def _matrix(kernel: jax.Array) -> jax.Array:
    """Return the kernel as a matrix `[rest, O]`, without copying its data."""
    if kernel.ndim < 2:
        raise ValueError(
            f"Muon needs kernels with at least two axes, not an array of shape {kernel.shape}"
        )
    return kernel.reshape(-1, kernel.shape[-1])


def _newton_schulz(x: jax.Array, steps: int) -> jax.Array:
    """Apply Newton-Schulz steps to matrices of shape `[N, long, short]`.

    A step maps X to X·q, where q is a polynomial of XᵀX. Because q commutes with XᵀX, the step maps
    XᵀX to q·XᵀX·q. For small singular values of X, the rounding errors of XᵀX grow by a factor of
    a² = 12 per step.
    """
    a, b, c = COEFFICIENTS
    x /= jnp.maximum(jnp.linalg.norm(x, axis=(1, 2), keepdims=True), _SMALLEST_NORM)
    identity = jnp.eye(x.shape[-1], dtype=x.dtype)
    for start in range(0, steps, _STEPS_PER_GRAM):
        gram = jnp.einsum("nls,nlt->nst", x, x)
        product = identity
        for step in range(start, end := min(start + _STEPS_PER_GRAM, steps)):
            factor = a * identity + b * gram + c * (gram @ gram)
            product = factor if step == start else product @ factor
            if step + 1 < end:
                gram = factor @ gram @ factor
        x = x @ product
    return x
