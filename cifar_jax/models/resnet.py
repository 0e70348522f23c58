"""ResNet18 and ResNet10 for 32×32 images (section 3.5 of the paper).

The convolutions are standard or depthwise separable.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cifar_jax import ops
from cifar_jax.models.layers import BatchNorm, Conv, GlobalAveragePool, ReLU

ModuleDef = Any


class SeparableConv(nn.Module):
    """A depthwise 3×3 convolution, then a pointwise 1×1 convolution, both without bias (Table 23).

    The layer maps `[N, H, W, C]` to `[N, H/stride, W/stride, features]`. Table 23 shows a single
    BatchNorm, after the pointwise convolution. `ResidualBlock` applies this BatchNorm.
    """

    features: int
    strides: tuple[int, int] = (1, 1)
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        conv = partial(Conv, use_bias=False, dtype=self.dtype)
        x = conv(
            channels,
            (3, 3),
            strides=self.strides,
            padding=1,
            feature_group_count=channels,
            name="depthwise",
        )(x)
        return conv(self.features, (1, 1), name="pointwise")(x)


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut: `[N, H, W, C]` to `[N, H/stride, W/stride, features]`.

    The shortcut is the identity, or a 1×1 convolution with BatchNorm if the shape changes.
    """

    features: int
    stride: int
    conv: ModuleDef
    """Module class of the 3×3 convolutions, with the fields `features` and `strides`."""
    projection: ModuleDef
    """Module class of the 1×1 convolution in the shortcut."""
    norm: ModuleDef
    """Module class of the normalization."""
    relu_before_sum: bool = False
    """Whether the second ReLU precedes the sum with the shortcut instead of following it."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        strides = (self.stride, self.stride)
        y = self.conv(self.features, strides=strides, name="conv1")(x)
        y = ops.relu(self.norm(name="bn1")(y, train=train))
        y = self.conv(self.features, strides=(1, 1), name="conv2")(y)
        y = self.norm(name="bn2")(y, train=train)
        if self.relu_before_sum:
            y = ReLU(name="relu2")(y)
        if x.shape != y.shape:
            x = self.projection(self.features, strides=strides, name="shortcut_conv")(x)
            x = self.norm(name="shortcut_bn")(x, train=train)
        return x + y if self.relu_before_sum else ops.relu(x + y)


class ResNet(nn.Module):
    """Residual network. It maps images `[N, H, W, 3]` to float32 logits `[N, num_classes]`.

    The first layer is a 3×3 convolution with stride 1. The stages have 64, 128, 256 and 512
    channels. Each stage after the first halves height and width. Dropout precedes the last layer
    (section 3.5(1) of the paper).
    """

    stage_sizes: Sequence[int]
    """Number of residual blocks in each stage."""
    separable: bool = False
    """Whether the residual blocks use `SeparableConv` instead of standard 3×3 convolutions."""
    num_classes: int = 10
    dropout: float = 0.5
    """Rate of the dropout before the last layer."""
    stem_pool: bool = False
    """Whether 3×3 max-pooling with stride 2 follows the first layer, as in torchvision."""
    relu_before_sum: bool = False
    """Whether the second ReLU of each block precedes the sum with the shortcut, as in Table 23,
    instead of following it, as in the original ResNet."""
    dtype: Any = None
    """Data type of the computation. None: inferred from the input and the parameters."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        conv = partial(Conv, use_bias=False, dtype=self.dtype)
        conv3x3 = partial(conv, kernel_size=(3, 3), padding=1)
        norm = partial(BatchNorm, dtype=self.dtype)
        block = partial(
            ResidualBlock,
            conv=partial(SeparableConv, dtype=self.dtype) if self.separable else conv3x3,
            projection=partial(conv, kernel_size=(1, 1)),
            norm=norm,
            relu_before_sum=self.relu_before_sum,
        )
        x = ops.relu(norm(name="bn1")(conv3x3(64, name="conv1")(x), train=train))
        if self.stem_pool:
            # ReLU outputs are not negative, so padding with zeros changes no maximum.
            x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            # The ONNX converter takes keyword arguments only.
            x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2))
        for stage, blocks in enumerate(self.stage_sizes, start=1):
            for number in range(1, blocks + 1):
                x = block(
                    features=64 * 2 ** (stage - 1),
                    stride=2 if stage > 1 and number == 1 else 1,
                    name=f"stage{stage}_block{number}",
                )(x, train=train)
        x = GlobalAveragePool(name="avg_pool")(x)
        x = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(x)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="fc")(x).astype(jnp.float32)


ResNet18 = partial(ResNet, stage_sizes=(2, 2, 2, 2))
ResNet10 = partial(ResNet, stage_sizes=(1, 1, 1, 1))
ResNet10Separable = partial(ResNet, stage_sizes=(1, 1, 1, 1), separable=True)
