"""Pooling over windows of NHWC images."""

import flax.linen as nn
import jax


def max_pool(x: jax.Array, window_shape: tuple[int, int], strides: tuple[int, int]) -> jax.Array:
    """Largest value of each window, without padding: [N, H, W, C] -> [N, H', W', C]."""
    return nn.max_pool(x, window_shape, strides)


def avg_pool(x: jax.Array, window_shape: tuple[int, int], strides: tuple[int, int]) -> jax.Array:
    """Mean of each window, without padding: [N, H, W, C] -> [N, H', W', C]."""
    return nn.avg_pool(x, window_shape, strides)


def global_avg_pool(x: jax.Array) -> jax.Array:
    """Mean over each image's pixels: [N, H, W, C] -> [N, C]."""
    return x.mean(axis=(1, 2))
