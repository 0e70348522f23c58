"""Layers with PyTorch's defaults, which the paper's networks use.

`models.init_variables` initializes the parameters. For dense layers and dropout, the networks use
Linen's classes.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from cifar_jax import ops

Pooling = Literal["max", "average", "strided-conv"]


class Conv(nn.Conv):
    """2-D convolution: `[N, H, W, C]` to `[N, H', W', features]`."""

    padding: Any = 0
    """Number of zero pixels to add on each side of the image."""
    conv_general_dilated: Any = ops.conv_general_dilated


class BatchNorm(nn.Module):
    """Batch normalization over all axes but the last, with PyTorch's running statistics.

    A batch is normalized by its biased variance. The running variance is an average of unbiased
    variances. In Linen, it is an average of biased variances. Statistics are float32 and cover the
    whole batch, even if the batch is sharded over devices.
    """

    momentum: float = 0.9
    """Weight of the old running statistics in an update. PyTorch's `momentum` is one minus this
    value."""
    epsilon: float = 1e-5
    use_scale: bool = True
    """Whether to multiply by a learned scale."""
    dtype: Any = None
    """Data type of the output. None: the type of the input."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        features = x.shape[-1]
        ones = nn.initializers.ones_init()
        scale = self.param("scale", ones, (features,)) if self.use_scale else jnp.ones(features)
        bias = self.param("bias", nn.initializers.zeros_init(), (features,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (features,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (features,))
        x = x.astype(self.dtype or x.dtype)
        if not train:
            mean, var = running_mean.value, running_var.value
            gain = scale * jax.lax.rsqrt(var + self.epsilon)
            return (x.astype(jnp.float32) * gain + (bias - mean * gain)).astype(x.dtype)
        y, mean, var = ops.batch_norm(x, scale, bias, self.epsilon)
        if not self.is_initializing():
            count = x.size // features
            momentum, unbiased = self.momentum, var * (count / max(count - 1, 1))
            running_mean.value = momentum * running_mean.value + (1 - momentum) * mean
            running_var.value = momentum * running_var.value + (1 - momentum) * unbiased
        return y


class Pool(nn.Module):
    """2×2 pooling with stride 2: `[N, H, W, C]` to `[N, H/2, W/2, C]`."""

    kind: Pooling = "max"
    dtype: Any = None
    """Data type of the computation if `kind` is `strided-conv`. Other kinds keep the type of the
    input."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.kind == "strided-conv":
            return Conv(x.shape[-1], (2, 2), strides=(2, 2), dtype=self.dtype, name="conv")(x)
        pool = {"max": ops.max_pool, "average": ops.avg_pool}[self.kind]
        return pool(x, (2, 2), (2, 2))


class ReLU(nn.Module):
    """Rectified linear unit, as a module, so that the layer table has a row for it."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return ops.relu(x)


class GlobalAveragePool(nn.Module):
    """Mean over height and width: `[N, H, W, C]` to `[N, C]`."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return ops.global_avg_pool(x)


class SelfAttention(nn.Module):
    """Self-attention over the positions of a feature map `[N, H, W, C]`, with a skip connection.

    Three 1×1 convolutions with bias compute the query, the key and the value. Query and key have
    C/8 channels, and the value has C channels. Scores are not scaled. The layer is the attention
    block of SAGAN (arXiv:1805.08318) without the learned gain γ. The parameter count in Table 12 of
    the paper includes no gain.
    """

    dtype: Any = None
    """Data type of the computation. None: inferred from the input and the parameters."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        n, height, width, channels = x.shape

        def project(features: int, name: str) -> jax.Array:
            y = Conv(features, (1, 1), dtype=self.dtype, name=name)(x)
            return y.reshape(n, height * width, features)

        query, key = project(channels // 8, "query"), project(channels // 8, "key")
        value = project(channels, "value")
        return x + ops.attention(query, key, value).reshape(x.shape)
