"""Attention that moves little memory, its products such as XLA does fast on a CPU."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

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


Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attention(query: jax.Array, key: jax.Array, value: jax.Array, named: str | None) -> jax.Array:
    return _forward(query, key, value, named)[0]


def _forward(
    query: jax.Array, key: jax.Array, value: jax.Array, named: str | None
) -> tuple[jax.Array, Residuals]:
    del named  # only the gradient has two forms
    scores = _scores(query, key)
    largest = scores.max(-1, keepdims=True)
    exponentials = jnp.exp(scores - largest)
    total = exponentials.sum(-1, keepdims=True)
    mixed = jnp.einsum(
        "nqk,nkc->nqc", exponentials.astype(value.dtype), value, preferred_element_type=total.dtype
    )
    y = (mixed / total).astype(value.dtype)
    return y, (query, key, value, y, largest + jnp.log(total))


def _backward(
    named: str | None, residuals: Residuals, dy: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    query, key, value, y, log_total = residuals
    weights = jnp.exp(_scores(query, key) - log_total)
    dweights = jnp.einsum("nqc,nkc->nqk", dy, value, preferred_element_type=weights.dtype)
    # Each row's Σ weights·dweights, which the softmax's gradient subtracts, is also Σ y·dy.
    along = (y.astype(weights.dtype) * dy).sum(-1, keepdims=True)
    dscores = (weights * (dweights - along)).astype(query.dtype)
    dquery = jnp.einsum("nqk,nkd->nqd", dscores, key)
    return (
        dquery,
        _sum_over_queries(dscores, query, named),
        _sum_over_queries(weights.astype(dy.dtype), dy, named),
    )


def _sum_over_queries(weights: jax.Array, x: jax.Array, named: str | None) -> jax.Array:
    """`[N, Q, K]` and `[N, Q, C]` to `[N, K, C]`."""

    def plain(weights: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.einsum("nqk,nqc->nkc", weights, x)

    def transposed(weights: jax.Array, x: jax.Array) -> jax.Array:
        # A CPU takes two to five times as long where the large operand is transposed. Without the
        # barrier XLA would make one product of this, and that the same as the plain one.
        return lax.optimization_barrier(jnp.einsum("nqc,nqk->nck", x, weights)).swapaxes(1, 2)

    return platform.choose(named, weights, x, cpu=transposed, default=plain)


def _scores(query: jax.Array, key: jax.Array) -> jax.Array:
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("nqd,nkd->nqk", query, key, preferred_element_type=wide)
    return scores.astype(query.dtype).astype(wide)


_attention.defvjp(_forward, _backward)
