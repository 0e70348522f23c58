"""Compute attention maps of a trained network for an image."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cifar_jax.inference.model import TrainedNetwork
from cifar_jax.models.layers import SelfAttention


def attention_maps(network: TrainedNetwork, image: np.ndarray) -> dict[str, np.ndarray]:
    """Return how much attention each position of an image receives, by name of the attention layer.

    Args:
      network: the trained network.
      image: uint8 `[H, W, 3]`.

    Returns:
      A float32 array `[h, w]` for each `SelfAttention` layer, in the order of the layers. A value
      is the mean attention weight of a position over all queries. The values of a layer sum to 1.
      The dictionary is empty if the network has no attention.
    """
    inputs: dict[str, jax.Array] = {}

    def keep(next_fun, args, kwargs, context: nn.module.InterceptorContext):
        module, output = context.module, next_fun(*args, **kwargs)
        if context.method_name == "__call__" and isinstance(module.parent, SelfAttention):
            inputs["/".join(module.path)] = output
        return output

    with nn.intercept_methods(keep):
        network.apply(jnp.asarray(image)[None])
    layers = [name.removesuffix("/query") for name in inputs if name.endswith("/query")]
    return {name: _map(inputs[f"{name}/query"], inputs[f"{name}/key"]) for name in layers}


def _map(query: jax.Array, key: jax.Array) -> np.ndarray:
    """Return the mean attention weight of each position, `[h, w]`.

    `query` and `key` have the shape `[1, h, w, D]`.
    """
    _, height, width, features = query.shape
    scores = query.reshape(-1, features) @ key.reshape(-1, features).T
    weights = jax.nn.softmax(scores.astype(jnp.float32), axis=-1)
    return np.asarray(weights.mean(0)).reshape(height, width)
