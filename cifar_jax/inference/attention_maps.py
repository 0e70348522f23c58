"""Compute attention maps of a trained network."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cifar_jax.inference.model import TrainedNetwork
from cifar_jax.models.layers import SelfAttention


def compile_attention_maps(network: TrainedNetwork) -> Callable[[np.ndarray], dict[str, jax.Array]]:
    """Return a compiled function that computes how much attention each position receives.

    The function takes an image, uint8 `[H, W, 3]`. For each `SelfAttention` layer, it returns a
    float32 array `[h, w]` by the name of the layer. A value is the mean attention weight of a
    position over all queries. The values of a layer sum to 1. Without attention layers, the
    dictionary is empty, and the function computes nothing.
    """

    @jax.jit
    def attention_maps(image: jax.Array) -> dict[str, jax.Array]:
        inputs: dict[str, jax.Array] = {}

        def keep(next_fun, args, kwargs, context: nn.module.InterceptorContext):
            module, output = context.module, next_fun(*args, **kwargs)
            if context.method_name == "__call__" and isinstance(module.parent, SelfAttention):
                inputs["/".join(module.path)] = output
            return output

        with nn.intercept_methods(keep):
            network.apply(image[None])
        layers = [name.removesuffix("/query") for name in inputs if name.endswith("/query")]
        return {name: _map(inputs[f"{name}/query"], inputs[f"{name}/key"]) for name in layers}

    return attention_maps


def _map(query: jax.Array, key: jax.Array) -> jax.Array:
    """Return the mean attention weight of each position, `[h, w]`.

    `query` and `key` have the shape `[1, h, w, D]`.
    """
    _, height, width, features = query.shape
    scores = query.reshape(-1, features) @ key.reshape(-1, features).T
    weights = jax.nn.softmax(scores.astype(jnp.float32), axis=-1)
    return weights.mean(0).reshape(height, width)
