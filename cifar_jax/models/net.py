"""3.2–3.4 The three-convolution networks (Tables 4, 7 and 10), and one with inception blocks."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cifar_jax import ops
from cifar_jax.models.layers import (
    BatchNorm,
    Conv,
    Dense,
    Dropout,
    GlobalAveragePool,
    Pool,
    Pooling,
    SelfAttention,
)


class Net(nn.Module):
    """Table 4: logits `[N, num_classes]`, float32, of images `[N, 32, 32, 3]`."""

    num_classes: int = 10
    pooling: Pooling = "max"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        del train  # nothing here behaves differently in training
        conv = partial(Conv, kernel_size=(3, 3), padding=1, dtype=self.dtype)
        pool = partial(Pool, kind=self.pooling, dtype=self.dtype)
        x = ops.relu(conv(64, name="conv1")(x))
        x = pool(name="pool1")(x)
        x = ops.relu(conv(128, name="conv2")(x))
        x = pool(name="pool2")(x)
        x = ops.relu(conv(256, name="conv3")(x))
        x = x.reshape(x.shape[0], -1)
        return _head(x, self.num_classes, self.dtype)


class NetBNGAP(nn.Module):
    """Table 7, and with `attention` Table 10: BatchNorm, global average pooling and dropout.

    The tables' “fc1, 256 Neurons” is the pooled vector, not a layer: the count leaves no room.
    So the layer that has 120 neurons is called `fc1`, as in Tables 1 and 4.
    """

    num_classes: int = 10
    attention: bool = False
    """Self-attention after each BatchNorm and ReLU."""
    dropout: float = 0.5
    pooling: Pooling = "max"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        for stage, features in enumerate((64, 128, 256), start=1):
            conv = Conv(features, (3, 3), padding=1, dtype=self.dtype, name=f"conv{stage}")
            x = BatchNorm(dtype=self.dtype, name=f"bn{stage}")(conv(x), train=train)
            x = ops.relu(x)
            if self.attention:
                x = SelfAttention(dtype=self.dtype, name=f"attention{stage}")(x)
            if stage < 3:
                x = Pool(self.pooling, dtype=self.dtype, name=f"pool{stage}")(x)
        x = GlobalAveragePool(name="global_avg_pool")(x)
        x = Dropout(self.dropout, name="dropout")(x, train=train)
        return _head(x, self.num_classes, self.dtype)


class InceptionBlock(nn.Module):
    """Four branches side by side, concatenated: `[N, H, W, C]` to `[N, H, W, features]`.

    A quarter of the features each from 1×1, 1×1 → 3×3, 1×1 → 5×5 and 3×3 max-pool → 1×1, every
    convolution with BatchNorm and ReLU (GoogLeNet's module, arXiv:1409.4842).
    """

    features: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        width = self.features // 4

        def branch(x: jax.Array, size: int, name: str) -> jax.Array:
            conv = Conv(
                width,
                (size, size),
                padding=size // 2,
                use_bias=False,
                dtype=self.dtype,
                name=f"{name}_conv",
            )
            norm = BatchNorm(dtype=self.dtype, name=f"{name}_bn")
            return ops.relu(norm(conv(x), train=train))

        # SAME is ((1, 1), (1, 1)) at stride 1; in numbers, the converter to ONNX would miss it.
        pooled = nn.max_pool(x, window_shape=(3, 3), padding="SAME")
        branches = [
            branch(x, 1, "branch1x1"),
            branch(branch(x, 1, "branch3x3_reduce"), 3, "branch3x3"),
            branch(branch(x, 1, "branch5x5_reduce"), 5, "branch5x5"),
            branch(pooled, 1, "branch_pool"),
        ]
        return jnp.concatenate(branches, axis=-1)


class NetInception(nn.Module):
    """`net-bn-gap` with inception blocks for its second and third convolution.

    The paper's section 2 names inception blocks among its approach and gives no table for them.
    """

    num_classes: int = 10
    dropout: float = 0.5
    pooling: Pooling = "max"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        pool = partial(Pool, kind=self.pooling, dtype=self.dtype)
        conv = Conv(64, (3, 3), padding=1, use_bias=False, dtype=self.dtype, name="conv1")
        x = ops.relu(BatchNorm(dtype=self.dtype, name="bn1")(conv(x), train=train))
        x = pool(name="pool1")(x)
        x = InceptionBlock(128, dtype=self.dtype, name="inception2")(x, train=train)
        x = pool(name="pool2")(x)
        x = InceptionBlock(256, dtype=self.dtype, name="inception3")(x, train=train)
        x = GlobalAveragePool(name="global_avg_pool")(x)
        x = Dropout(self.dropout, name="dropout")(x, train=train)
        return _head(x, self.num_classes, self.dtype)


def _head(x: jax.Array, num_classes: int, dtype: Any) -> jax.Array:
    """The three dense layers that end all these networks; called inside a compact method."""
    x = ops.relu(Dense(120, dtype=dtype, name="fc1")(x))
    x = ops.relu(Dense(84, dtype=dtype, name="fc2")(x))
    return Dense(num_classes, dtype=dtype, name="fc3")(x).astype(jnp.float32)
