"""Attention with little memory traffic and with fast matrix products on a CPU."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from cifar_jax.ops.platform import dispatch, forced_platform

LARGE = 2**18
"""Smallest number of attention scores per image for which a CPU processes one image at a time. In
float32, these scores need 1 MB."""

Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Return the softmax-weighted mean of the values for each query. Scores are not scaled.

    The gradient computes the weights again, from the scores and the stored log-sum-exp of each
    query's scores. FlashAttention-2 (arXiv:2307.08691) also computes the weights again, but in
    blocks of positions. Scores and weights are computed in float32 or wider, and stored in the type
    of the inputs. Reference: `jax.nn.softmax(query @ key.swapaxes(1, 2)) @ value`.

    Args:
      query: `[N, Q, D]`.
      key: `[N, K, D]`.
      value: `[N, K, C]`.

    Returns:
      `[N, Q, C]`, in the type of `value`.
    """
    return _attention(query, key, value, forced_platform())


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attention(
    query: jax.Array, key: jax.Array, value: jax.Array, platform: str | None
) -> jax.Array:
    return _forward(query, key, value, platform)[0]


def _forward(
    query: jax.Array, key: jax.Array, value: jax.Array, platform: str | None
) -> tuple[jax.Array, Residuals]:
    y, log_total = dispatch(
        platform, query, key, value, cpu=partial(_map_images, _attend), default=_attend
    )
    return y, (query, key, value, y, log_total)


def _backward(
    platform: str | None, residuals: Residuals, dy: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    cpu = partial(_map_images, partial(_gradients, transposed=True))
    default = partial(_gradients, transposed=False)
    return dispatch(platform, *residuals, dy, cpu=cpu, default=default)


def _map_images(f: Callable[..., Any], query: jax.Array, key: jax.Array, *others: jax.Array) -> Any:
    """Apply `f` to all images at once, or to one image at a time if the scores are large.

    One image at a time is faster if the array of scores is large, for two reasons. First, the
    scores of one image stay in the processor's caches. Second, XLA has a fast kernel for the
    product of two matrices, but not for batched matrix products.
    """
    arrays = (query, key, *others)
    if query.shape[-2] * key.shape[-2] < LARGE:
        return f(*arrays)
    # Each iteration computes one image per device of the mesh. With a single image per iteration,
    # XLA would copy the image to every device. The number of devices is chosen as in
    # `devices.make_mesh`: it is the largest number that divides the batch size.
    count = jax.device_count()
    devices = max((n for n in range(1, count + 1) if len(query) % n == 0), default=1)
    if devices == 1:
        return jax.lax.map(lambda image: f(*image), arrays)
    parts = [x.reshape(devices, -1, *x.shape[1:]).swapaxes(0, 1) for x in arrays]
    results = jax.lax.map(lambda images: f(*images), parts)
    return jax.tree.map(lambda y: y.swapaxes(0, 1).reshape(len(query), *y.shape[2:]), results)


def _attend(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the output, and the log-sum-exp of each query's scores, `[..., Q, 1]`."""
    scores = _scores(query, key)
    largest = scores.max(-1, keepdims=True)
    exponentials = jnp.exp(scores - largest)
    total = exponentials.sum(-1, keepdims=True)
    mixed = jnp.matmul(exponentials.astype(value.dtype), value, preferred_element_type=total.dtype)
    return (mixed / total).astype(value.dtype), largest + jnp.log(total)


def _gradients(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    y: jax.Array,
    log_total: jax.Array,
    dy: jax.Array,
    *,
    transposed: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the gradients of query, key and value."""
    weights = jnp.exp(_scores(query, key) - log_total)
    dweights = jnp.einsum("...qc,...kc->...qk", dy, value, preferred_element_type=weights.dtype)
    # The softmax's gradient subtracts the row sums Σ weights·dweights, which equal Σ y·dy.
    row_sums = (y.astype(weights.dtype) * dy).sum(-1, keepdims=True)
    dscores = (weights * (dweights - row_sums)).astype(query.dtype)
    dquery = jnp.matmul(dscores, key)
    dkey = _sum_over_queries(dscores, query, transposed)
    return dquery, dkey, _sum_over_queries(weights.astype(dy.dtype), dy, transposed)


def _sum_over_queries(weights: jax.Array, x: jax.Array, transposed: bool) -> jax.Array:
    """Return `weightsᵀ x`: `[..., Q, K]` and `[..., Q, C]` to `[..., K, C]`.

    If `transposed` is true, the code computes `(xᵀ weights)ᵀ`, which is equal. This is two to five
    times as fast on a CPU, because the larger operand, `weights`, is not transposed.
    """
    if not transposed:
        return jnp.einsum("...qk,...qc->...kc", weights, x)
    product = jnp.einsum("...qc,...qk->...ck", x, weights)
    # Without the barrier, XLA would simplify the two transposes, and compute `weightsᵀ x`.
    return jax.lax.optimization_barrier(product).swapaxes(-1, -2)


def _scores(query: jax.Array, key: jax.Array) -> jax.Array:
    """Return the attention scores `query keyᵀ` as an array in float32 or wider.

    The scores are first rounded to the type of the inputs, as if they were stored in this type.
    """
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("...qd,...kd->...qk", query, key, preferred_element_type=wide)
    return scores.astype(query.dtype).astype(wide)


_attention.defvjp(_forward, _backward)
