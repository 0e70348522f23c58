"""The paper's networks with three convolutions (sections 3.2 to 3.4), and an inception variant."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cifar_jax import ops
from cifar_jax.models.layers import (
    BatchNorm,
    Conv,
    GlobalAveragePool,
    Pool,
    Pooling,
    SelfAttention,
)


class Net(nn.Module):
    """Network of Table 4. It maps images `[N, 32, 32, 3]` to float32 logits `[N, num_classes]`."""

    num_classes: int = 10
    pooling: Pooling = "max"
    dtype: Any = None
    """Data type of the computation. None: inferred from the input and the parameters."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        del train  # No layer depends on `train`.
        conv = partial(Conv, kernel_size=(3, 3), padding=1, dtype=self.dtype)
        pool = partial(Pool, kind=self.pooling, dtype=self.dtype)
        x = ops.relu(conv(64, name="conv1")(x))
        x = pool(name="pool1")(x)
        x = ops.relu(conv(128, name="conv2")(x))
        x = pool(name="pool2")(x)
        x = ops.relu(conv(256, name="conv3")(x))
        x = x.reshape(x.shape[0], -1)
        return _head(x, self.num_classes, self.dtype)


class InceptionBlock(nn.Module):
    """GoogLeNet's inception block (arXiv:1409.4842): `[N, H, W, C]` to `[N, H, W, features]`.

    Each of four branches computes a quarter of the features:

    - a 1×1 convolution
    - a 1×1 convolution, then a 3×3 convolution
    - a 1×1 convolution, then a 5×5 convolution
    - 3×3 max-pooling, then a 1×1 convolution

    BatchNorm and ReLU follow every convolution.
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

        # Write the padding as "SAME", because the ONNX converter ignores a padding in pixels. With
        # stride 1, "SAME" adds one pixel on each side.
        pooled = nn.max_pool(x, window_shape=(3, 3), padding="SAME")
        branches = [
            branch(x, 1, "branch1x1"),
            branch(branch(x, 1, "branch3x3_reduce"), 3, "branch3x3"),
            branch(branch(x, 1, "branch5x5_reduce"), 5, "branch5x5"),
            branch(pooled, 1, "branch_pool"),
        ]
        return jnp.concatenate(branches, axis=-1)


class NetBNGAP(nn.Module):
    """`Net` with BatchNorm, global average pooling and dropout (Table 7).

    The network maps images `[N, H, W, 3]` to float32 logits `[N, num_classes]`. The row "fc1, 256
    Neurons" of Table 7 is the pooled vector, because the paper's parameter count does not allow
    another layer. So the layer with 120 neurons is called `fc1`, as in Tables 1 and 4.
    """

    num_classes: int = 10
    attention: bool = False
    """Whether self-attention follows each convolution, after BatchNorm and ReLU (Table 10)."""
    inception: bool = False
    """Whether inception blocks replace the second and third convolution.

    Section 2 of the paper mentions inception blocks, but no table describes such a network.
    """
    dropout: float = 0.5
    """Rate of the dropout before `fc1`."""
    pooling: Pooling = "max"
    dtype: Any = None
    """Data type of the computation. None: inferred from the input and the parameters."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        conv = partial(
            Conv, kernel_size=(3, 3), padding=1, use_bias=not self.inception, dtype=self.dtype
        )
        for stage, features in enumerate((64, 128, 256), start=1):
            if self.inception and stage > 1:
                block = InceptionBlock(features, dtype=self.dtype, name=f"inception{stage}")
                x = block(x, train=train)
            else:
                x = conv(features, name=f"conv{stage}")(x)
                x = ops.relu(BatchNorm(dtype=self.dtype, name=f"bn{stage}")(x, train=train))
            if self.attention:
                x = SelfAttention(dtype=self.dtype, name=f"attention{stage}")(x)
            if stage < 3:
                x = Pool(self.pooling, dtype=self.dtype, name=f"pool{stage}")(x)
        x = GlobalAveragePool(name="global_avg_pool")(x)
        x = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(x)
        return _head(x, self.num_classes, self.dtype)


def _head(x: jax.Array, num_classes: int, dtype: Any) -> jax.Array:
    """Apply the network's three dense layers. The caller must be a compact method."""
    x = ops.relu(nn.Dense(120, dtype=dtype, name="fc1")(x))
    x = ops.relu(nn.Dense(84, dtype=dtype, name="fc2")(x))
    return nn.Dense(num_classes, dtype=dtype, name="fc3")(x).astype(jnp.float32)
