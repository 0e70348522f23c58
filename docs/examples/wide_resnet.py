"""Train a small Wide ResNet with Lion, RandAugment, and warm-up with cosine decay.

    cifar-jax train docs/examples/wide_resnet.py --set model.arguments.width=4

This file shows all four custom parts: MODEL, OPTIMIZER, SCHEDULE and AUGMENTATION. Each custom part
receives its `arguments` setting as keyword arguments. The option `--set` can change each argument.
`Conv` and `BatchNorm` are the package's own layers, which are faster on a CPU than Linen's layers.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cifar_jax.config import Config, Data, Model, Optimizer, Schedule
from cifar_jax.models.layers import BatchNorm, Conv
from cifar_jax.training.schedules import StepInfo

CONFIG = Config(
    model=Model(name="wide-resnet", dropout=0.3, arguments={"blocks": 1, "width": 2}),
    epochs=30,
    batch_size=128,
    optimizer=Optimizer(
        name="custom", lr=3e-4, arguments={"b1": 0.9, "b2": 0.99, "weight_decay": 0.1}
    ),
    schedule=Schedule(name="custom", arguments={"warmup": 0.05}),
    data=Data(crop_padding=4, flip=True, arguments={"operations": 2, "magnitude": 0.3}),
)


class WideBlock(nn.Module):
    """A pre-activation residual block (S. Zagoruyko and N. Komodakis, arXiv:1605.07146)."""

    features: int
    stride: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        def norm_relu(x: jax.Array) -> jax.Array:
            return nn.relu(BatchNorm(dtype=self.dtype)(x, train=train))

        def conv(x: jax.Array, kernel: int, stride: int = 1) -> jax.Array:
            return Conv(
                self.features,
                (kernel, kernel),
                stride,
                padding=kernel // 2,
                use_bias=False,
                dtype=self.dtype,
            )(x)

        y = norm_relu(x)
        shortcut = x if x.shape[-1] == self.features else conv(y, 1, self.stride)
        y = norm_relu(conv(y, 3, self.stride))
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return shortcut + conv(y, 3)


class WideResNet(nn.Module):
    """A Wide ResNet with three stages.

    Attributes:
      num_classes: number of classes.
      dropout: dropout rate inside the residual blocks.
      blocks: number of residual blocks per stage. The network has 6 * blocks + 4 layers.
      width: factor by which the channels of a ResNet are multiplied.
      dtype: compute type, such as `jnp.bfloat16`. None: float32.
    """

    num_classes: int = 10
    dropout: float = 0.3
    blocks: int = 1
    width: int = 2
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = Conv(16, (3, 3), padding=1, use_bias=False, dtype=self.dtype)(x)
        for stage, features in enumerate((16, 32, 64)):
            for block in range(self.blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                x = WideBlock(features * self.width, stride, self.dropout, self.dtype)(
                    x, train=train
                )
        x = nn.relu(BatchNorm(dtype=self.dtype)(x, train=train))
        return nn.Dense(self.num_classes)(x.mean((1, 2)).astype(jnp.float32))


MODEL = WideResNet


def OPTIMIZER(b1: float, b2: float, weight_decay: float) -> optax.GradientTransformation:
    """Return Lion's update direction (X. Chen et al., arXiv:2302.06675).

    The train step multiplies the direction by `optimizer.lr` and the factor of SCHEDULE.
    """
    return optax.chain(optax.scale_by_lion(b1, b2), optax.add_decayed_weights(weight_decay))


def SCHEDULE(info: StepInfo, warmup: float) -> jax.Array:
    """Return the learning-rate factor of a step: linear warm-up, then cosine decay to zero.

    Args:
      info: the step, and the number of steps of the run.
      warmup: fraction of the run that the warm-up takes.
    """
    progress = info.step / info.total_steps
    decay = (1 + jnp.cos(jnp.pi * (progress - warmup) / (1 - warmup))) / 2
    return jnp.where(progress < warmup, progress / warmup, decay)


def AUGMENTATION(key: jax.Array, images: jax.Array, operations: int, magnitude: float) -> jax.Array:
    """Return randomly changed images, by a short RandAugment (E. Cubuk, arXiv:1909.13719).

    Args:
      key: random key of the train step.
      images: uint8 `[N, 32, 32, 3]`.
      operations: number of random operations on each image.
      magnitude: strength of each operation, from 0 to 1.
    """

    def brightness(image: jax.Array, sign: jax.Array) -> jax.Array:
        return image * (1 + sign * magnitude)

    def contrast(image: jax.Array, sign: jax.Array) -> jax.Array:
        return image.mean() + (image - image.mean()) * (1 + sign * magnitude)

    def color(image: jax.Array, sign: jax.Array) -> jax.Array:
        gray = image.mean(-1, keepdims=True)
        return gray + (image - gray) * (1 + sign * magnitude)

    def solarize(image: jax.Array, sign: jax.Array) -> jax.Array:
        return jnp.where(image < 255 * (1 - magnitude), image, 255 - image)

    def translate_x(image: jax.Array, sign: jax.Array) -> jax.Array:
        return jnp.roll(image, jnp.int32(sign * magnitude * 10), axis=1)

    def translate_y(image: jax.Array, sign: jax.Array) -> jax.Array:
        return jnp.roll(image, jnp.int32(sign * magnitude * 10), axis=0)

    choices = [brightness, contrast, color, solarize, translate_x, translate_y]

    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        choice_key, sign_key = jax.random.split(key)
        sign = jax.random.rademacher(sign_key, (), jnp.float32)
        return jax.lax.switch(
            jax.random.randint(choice_key, (), 0, len(choices)), choices, image, sign
        )

    augmented = images.astype(jnp.float32)
    for operation_key in jax.random.split(key, operations):
        augmented = jax.vmap(one)(jax.random.split(operation_key, len(images)), augmented)
    return augmented.clip(0, 255).astype(jnp.uint8)
