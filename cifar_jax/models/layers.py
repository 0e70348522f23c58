"""Linen's layers with PyTorch's defaults: BatchNorm's statistics, and padding written out.

The paper is a PyTorch work and says nothing of these, so its defaults are meant. (Parameters are
initialized by `models.init_variables`, not by the layers.) Every layer has its
`configuration` in the words of the paper's tables, for `cifar-jax summary`, which puts the width of
the input where `{in_dim}` stands.
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from cifar_jax import ops

Pooling = Literal["max", "average", "strided-conv"]


class Conv(nn.Conv):
    """2-D convolution: `[N, H, W, C]` to `[N, H', W', features]`. Padding is in pixels a side."""

    padding: Any = 0
    conv_general_dilated: Any = ops.conv_general_dilated

    @property
    def configuration(self) -> str:
        """Such as `3x3, 64, padding=1`."""
        height, width = _pair(self.kernel_size)
        words = [f"{height}x{width}", str(self.features)]
        if (stride := _pair(self.strides)[0]) != 1:
            words.append(f"stride={stride}")
        if self.padding != 0:
            words.append(f"padding={self.padding}")
        if self.feature_group_count != 1:
            words.append(f"param_groups={self.feature_group_count}")
        if not self.use_bias:
            words.append("bias=False")
        return ", ".join(words)


class Dense(nn.Dense):
    """Fully connected layer: `[..., in]` to `[..., features]`."""

    @property
    def configuration(self) -> str:
        """Such as `120 Neurons`."""
        return f"{self.features} Neurons"


class BatchNorm(nn.Module):
    """Batch normalization over all axes but the last, with PyTorch's running statistics.

    Normalizes by the biased variance and keeps the unbiased one, where Linen keeps the biased.
    Statistics are float32 and of the global batch, however it is sharded.
    """

    momentum: float = 0.9
    """Of the old statistics: PyTorch's 0.1, seen from the other side."""
    epsilon: float = 1e-5
    use_scale: bool = True
    """Without, the deviation is one, as before a convolution whose kernel has a norm of its own."""
    dtype: Any = None

    configuration = "BatchNorm2d {in_dim}"

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
        normalized: Any = ops.batch_norm(x, scale, bias, self.epsilon)
        y, mean, var = normalized
        if not self.is_initializing():
            count = x.size // features
            keep, unbiased = self.momentum, var * (count / max(count - 1, 1))
            running_mean.value = keep * running_mean.value + (1 - keep) * mean
            running_var.value = keep * running_var.value + (1 - keep) * unbiased
        return y


class Pool(nn.Module):
    """Halves height and width: `[N, H, W, C]` to `[N, H/2, W/2, C]`."""

    kind: Pooling = "max"
    dtype: Any = None

    @property
    def configuration(self) -> str:
        """`2x2`, as in the paper, and the kind where it is not its maximum."""
        return {"max": "2x2", "average": "2x2, average", "strided-conv": "2x2, stride=2"}[self.kind]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.kind == "strided-conv":
            return Conv(x.shape[-1], (2, 2), strides=(2, 2), dtype=self.dtype, name="conv")(x)
        pool = {"max": ops.max_pool, "average": ops.avg_pool}[self.kind]
        return pool(x, (2, 2), (2, 2))


class GlobalAveragePool(nn.Module):
    """Mean over height and width: `[N, H, W, C]` to `[N, C]`."""

    configuration = "AdaptiveAvgPool2d"

    def __call__(self, x: jax.Array) -> jax.Array:
        return ops.global_avg_pool(x)


class Dropout(nn.Dropout):
    """Linen's dropout, which here takes `train` as all the models do."""

    @property
    def configuration(self) -> str:
        """Such as `Dropout(0.5)`."""
        return f"Dropout({self.rate})"

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:  # pyright: ignore
        return super().__call__(x, deterministic=not train)


class SelfAttention(nn.Module):
    """Self-attention over the positions of a feature map, added to it: `[N, H, W, C]` to the same.

    Query and key are 1×1 convolutions to C/8 channels, the value one to C, all with bias; scores
    are not scaled, and there is no learned gain: the block that the parameter count of Table 12
    describes (SAGAN's, arXiv:1805.08318, less its γ).
    """

    dtype: Any = None

    configuration = "In_dim={in_dim}"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        n, height, width, channels = x.shape

        def project(features: int, name: str) -> jax.Array:
            y = Conv(features, (1, 1), dtype=self.dtype, name=name)(x)
            return y.reshape(n, height * width, features)

        query, key = project(channels // 8, "query"), project(channels // 8, "key")
        value = project(channels, "value")
        if self.is_mutable_collection("intermediates"):
            self.sow("intermediates", "weights", ops.attention_weights(query, key))
        return x + ops.attention(query, key, value).reshape(x.shape)


def _pair(size: int | Sequence[int] | None) -> tuple[int, int]:
    if size is None or isinstance(size, int):
        return (size or 1, size or 1)
    height, width = size
    return height, width
