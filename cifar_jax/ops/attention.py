"""Attention that moves little memory, its products such as XLA does fast on a CPU."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from cifar_jax.ops import platform


def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Values `[N, K, C]` mixed for each query: `[N, Q, D]` and keys `[N, K, D]` to `[N, Q, C]`.

    Scores are not scaled. They and the weights are kept in the inputs' type, and computed with in
    float32 at least. The gradient takes the weights from the scores again, by the logarithm of each
    query's sum of exponentials, as FlashAttention-2 does (arXiv:2307.08691), though of all
    positions at once. Plain reference: `attention_weights` times `value`.
    """
    return _attention(query, key, value, platform.named())


def attention_weights(query: jax.Array, key: jax.Array) -> jax.Array:
    """What `attention` mixes by: `[N, Q, D]` and `[N, K, D]` to `[N, Q, K]`, in their type.

    Those of a query sum to one.
    """
    return jax.nn.softmax(_scores(query, key)).astype(query.dtype)


LARGE = 2**18
"""From so many scores an image on, 1 MB of them, a CPU takes one image after the other."""

Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attention(query: jax.Array, key: jax.Array, value: jax.Array, named: str | None) -> jax.Array:
    return _forward(query, key, value, named)[0]


def _forward(
    query: jax.Array, key: jax.Array, value: jax.Array, named: str | None
) -> tuple[jax.Array, Residuals]:
    y, log_total = platform.choose(
        named, query, key, value, cpu=partial(_by_image, _mixed), default=_mixed
    )
    return y, (query, key, value, y, log_total)


def _backward(
    named: str | None, residuals: Residuals, dy: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    cpu = partial(_by_image, partial(_gradients, turned=True))
    return platform.choose(
        named, *residuals, dy, cpu=cpu, default=partial(_gradients, turned=False)
    )


def _by_image(f: Callable[..., Any], query: jax.Array, key: jax.Array, *others: jax.Array) -> Any:
    """`f` of all images at once, or where their scores are large, of one after the other.

    Then those stay in the caches, and products of matrices, not of stacks of them, are what XLA
    has a fast form of.
    """
    arrays = (query, key, *others)
    if query.shape[-2] * key.shape[-2] < LARGE:
        return f(*arrays)
    # A loop over images that lie on several devices would gather them on each. So as many are taken
    # at a time as there are devices in a mesh for this batch (`devices.make_mesh`), one from each.
    count = jax.device_count()
    devices = max((n for n in range(1, count + 1) if len(query) % n == 0), default=1)
    if devices == 1:
        return jax.lax.map(lambda image: f(*image), arrays)
    parts = [x.reshape(devices, -1, *x.shape[1:]).swapaxes(0, 1) for x in arrays]
    results = jax.lax.map(lambda images: f(*images), parts)
    return jax.tree.map(lambda y: y.swapaxes(0, 1).reshape(len(query), *y.shape[2:]), results)


def _mixed(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mixed values, and the logarithm of each query's sum of exponentials, `[..., Q, 1]`."""
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
    turned: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    weights = jnp.exp(_scores(query, key) - log_total)
    dweights = jnp.einsum("...qc,...kc->...qk", dy, value, preferred_element_type=weights.dtype)
    # Each row's Σ weights·dweights, which the softmax's gradient subtracts, is also Σ y·dy.
    along = (y.astype(weights.dtype) * dy).sum(-1, keepdims=True)
    dscores = (weights * (dweights - along)).astype(query.dtype)
    dquery = jnp.matmul(dscores, key)
    return (
        dquery,
        _sum_over_queries(dscores, query, turned),
        _sum_over_queries(weights.astype(dy.dtype), dy, turned),
    )


def _sum_over_queries(weights: jax.Array, x: jax.Array, turned: bool) -> jax.Array:
    """`[..., Q, K]` and `[..., Q, C]` to `[..., K, C]`, by a product made the other way round."""
    if not turned:
        return jnp.einsum("...qk,...qc->...kc", weights, x)
    # A CPU takes two to five times as long where the large operand is transposed. Without the
    # barrier XLA would make one product of this, and that the same as the plain one.
    product = jnp.einsum("...qc,...qk->...ck", x, weights)
    return jax.lax.optimization_barrier(product).swapaxes(-1, -2)


def _scores(query: jax.Array, key: jax.Array) -> jax.Array:
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("...qd,...kd->...qk", query, key, preferred_element_type=wide)
    return scores.astype(query.dtype).astype(wide)


_attention.defvjp(_forward, _backward)
