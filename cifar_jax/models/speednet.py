"""A network that learns in minutes on a CPU: none of the paper's."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cifar_jax.models.layers import BatchNorm, Conv, Dense, Pool


class SpeedNet(nn.Module):
    """Logits `[N, num_classes]`, float32, of images `[N, H, W, 3]`, H and W at least 8.

    The first convolution, 2×2, is meant to be whitened and frozen (`init.whitening`): twelve
    directions and their negatives are all that such a patch has, and its bias decides what is to be
    seen of them. Then each stage has two 3×3 convolutions, each with BatchNorm and GELU, and halves
    the image between them; the largest value of each channel goes to the last layer. So nearly all
    the arithmetic is in convolutions of stride 1 with many channels, which `ops` does by Winograd's
    algorithm on a CPU. The shape is airbench's (K. Jordan, arXiv:2404.00498), whose images lose a
    row and a column at first, which here would leave odd sizes for tiles of four, and whose pooling
    comes before BatchNorm, which would have the convolution's last step computed twice.
    """

    num_classes: int = 10
    filters: int = 24
    """Of the first convolution."""
    widths: Sequence[int] = (64, 256, 256)
    """Channels of each stage."""
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        conv = partial(Conv, kernel_size=(3, 3), padding=1, dtype=self.dtype)
        # In a short run statistics have to be forgotten fast: 0.4 of them are each batch's.
        norm = partial(BatchNorm, momentum=0.6, use_scale=False, dtype=self.dtype)
        whitening = Conv(
            self.filters, (2, 2), padding=((0, 1), (0, 1)), dtype=self.dtype, name="conv1"
        )
        x = nn.gelu(whitening(x))
        for stage, width in enumerate(self.widths, start=1):
            name = f"stage{stage}"
            x = conv(width, use_bias=False, name=f"{name}_conv1")(x)
            x = nn.gelu(norm(name=f"{name}_bn1")(x, train=train))
            x = Pool(name=f"{name}_pool")(x)
            x = conv(width, use_bias=False, name=f"{name}_conv2")(x)
            x = nn.gelu(norm(name=f"{name}_bn2")(x, train=train))
        x = x.max(axis=(1, 2)) / math.sqrt(x.shape[-1])
        x = Dense(self.num_classes, use_bias=False, dtype=self.dtype, name="fc")(x)
        return x.astype(jnp.float32)
