"""Muon: momentum whose matrices are orthogonalized, for the kernels of a network.

After Keller Jordan (kellerjordan.github.io/posts/muon, airbench94_muon), whose CIFAR-10 recipe
differs from `optax.contrib.muon` (0.2.6 to 0.2.8) in what is here:

- momentum is a plain sum, `optax.trace`, which is used. optax's Muon has a mean corrected for its
  start, and so with Nesterov other weights of gradient and buffer in the first steps;
- the update is not scaled by the kernel's shape, and the kernel's norm is set anew before every
  update (`normalized`). optax's has nothing for it;
- what is no kernel has another rule, chosen by `optax.partition`. optax's gives it Adam;
- kernels of one shape are orthogonalized together, in a form that takes half the arithmetic.
  optax's takes each by itself, at the parameter's own precision.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of X, (XXᵀ)X and (XXᵀ)²X in a step of the iteration, chosen for a steep slope at zero."""

_FOLLOWED = 5
"""Steps that XᵀX is followed for before it is made of X again: as far as float32 carries."""

_SMALLEST_NORM = 1e-18
"""A matrix below it has a norm whose square float32 cannot hold, and counts as next to zero."""


def scale_by_muon(
    momentum: float = 0.6, *, nesterov: bool = True, steps: int = 3
) -> optax.GradientTransformation:
    """Gradients of kernels to orthogonalized directions of ascent, whatever the learning rate.

    The buffer is `momentum · buffer + gradient`; what is orthogonalized is the buffer, or with
    `nesterov` `gradient + momentum · buffer`. Multiply the outcome by minus the learning rate.

    Args:
      momentum: from 0 to below 1.
      nesterov: look ahead.
      steps: of `orthogonalized`. The buffer is of the gradients' type.

    Raises:
      ValueError: in `update`, of a parameter that is no kernel.
    """
    if steps < 1:
        raise ValueError(f"steps {steps} is to be at least 1")
    return optax.chain(
        optax.trace(momentum, nesterov),
        optax.stateless(lambda updates, _: orthogonalized(updates, steps=steps)),
    )


def orthogonalized(kernels: Any, *, steps: int = 3) -> Any:
    """Each kernel, as a matrix UΣVᵀ, brought near to UVᵀ by the Newton–Schulz iteration.

    A kernel `[..., O]` counts as the matrix `[O, the rest]`: HWIO as `[O, H·W·I]`, dense as
    `[O, I]`. It is divided by its Frobenius norm; then `steps` times each singular value σ becomes
    aσ + bσ³ + cσ⁵ with `COEFFICIENTS`. That does not converge, and is not meant to: singular values
    above 1/50 of the norm come to (0.65, 1.21) in 3 steps, above 1/500 in 5. Zero stays zero.

    A kernel of the sides s ≤ l takes 4s²l + (8·steps - 6)s³ operations (up to 5 steps; an addition
    and a multiplication are two): the polynomials are of the s × s matrix XᵀX, and X is multiplied
    by their product once, where the iteration as written takes steps·(4s²l + 2s³). Of 512 filters
    3×3 over 256 channels, 3 steps are 4.8 GFLOP instead of 8.1.

    A depthwise kernel `[H, W, 1, C]` is no matrix from channels to channels, nor is a grouped one:
    give those another rule.

    Args:
      kernels: a tree of arrays of two or more axes.
      steps: of the iteration, at least 1.

    Returns:
      The same tree, of the same shapes and types.

    Raises:
      ValueError: an array has fewer than two axes.
    """
    leaves, structure = jax.tree.flatten(kernels)
    alike: dict[tuple[int, int], list[int]] = {}
    for number, leaf in enumerate(leaves):
        rows, columns = _matrix(leaf).shape
        alike.setdefault((max(rows, columns), min(rows, columns)), []).append(number)
    found = list(leaves)
    for shape, numbers in alike.items():
        matrices = [_matrix(leaves[number]) for number in numbers]
        stacked = jnp.stack([m if m.shape == shape else m.T for m in matrices])
        done = _newton_schulz(stacked.astype(jnp.float32), steps)
        for number, matrix, result in zip(numbers, matrices, done, strict=True):
            result = result if matrix.shape == shape else result.T
            found[number] = result.reshape(leaves[number].shape).astype(leaves[number].dtype)
    return structure.unflatten(found)


def normalized(params: Any, chosen: Any) -> Any:
    """The chosen kernels at Frobenius norm √O, O being their last axis; the others as they are.

    So the learning rate alone says how far an update turns a kernel, and none needs weight decay;
    BatchNorm behind it takes the size away again. It is no part of the update, which the learning
    rate multiplies: a step computes gradients, then has `params = normalized(params, chosen)`, and
    adds the updates to these.

    Args:
      params: a tree of parameters.
      chosen: a tree of the same structure, of bools: those that Muon has.
    """

    def one(kernel: jax.Array, yes: bool) -> jax.Array:
        if not yes:
            return kernel
        norm = jnp.linalg.norm(kernel.astype(jnp.float32))
        size = math.sqrt(kernel.shape[-1]) / jnp.maximum(norm, _SMALLEST_NORM)
        return (kernel * size).astype(kernel.dtype)

    return jax.tree.map(one, params, chosen)


def _matrix(kernel: jax.Array) -> jax.Array:
    """`[the rest, O]`, in the order of the kernel's own memory."""
    if kernel.ndim < 2:
        raise ValueError(f"Muon is for kernels, and an array of shape {kernel.shape} is none")
    return kernel.reshape(-1, kernel.shape[-1])


def _newton_schulz(x: jax.Array, steps: int) -> jax.Array:
    """Of matrices `[N, long, short]`.

    A step takes X to X·q(XᵀX), and XᵀX, which commutes with q, to q·XᵀX·q. Where XᵀX is followed
    so, its rounding errors grow by a² = 12 a step in the directions that X hardly has.
    """
    a, b, c = COEFFICIENTS
    x /= jnp.maximum(jnp.linalg.norm(x, axis=(1, 2), keepdims=True), _SMALLEST_NORM)
    identity = jnp.eye(x.shape[-1], dtype=x.dtype)
    for start in range(0, steps, _FOLLOWED):
        gram = jnp.einsum("nls,nlt->nst", x, x)
        product = identity
        for step in range(start, last := min(start + _FOLLOWED, steps)):
            factor = a * identity + b * gram + c * (gram @ gram)
            product = factor if step == start else product @ factor
            if step + 1 < last:
                gram = factor @ gram @ factor
        x = x @ product
    return x
