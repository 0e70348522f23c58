"""A network that trains in minutes on a CPU. It is not in the paper."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cifar_jax.models.layers import BatchNorm, Conv, Pool


class SpeedNet(nn.Module):
    """Convolutions for a CPU: images `[N, H, W, 3]` to float32 logits `[N, num_classes]`.

    H and W are at least 8. The first convolution is 2×2 and meant to be whitened and frozen
    (`init.whitening`): its 24 filters are the 12 directions of such a patch and their negatives.
    Each stage has two 3×3 convolutions with BatchNorm and GELU, and pooling between them. The
    maximum of each channel goes to the last layer.

    The network follows airbench (K. Jordan, arXiv:2404.00498), with two changes for the Winograd
    convolutions in `ops`, which do nearly all of the arithmetic on a CPU: the first convolution
    keeps the image size, so that 4×4 tiles fill the image, and pooling follows the activation, not
    the convolution, so that the convolution's last step is computed once.
    """

    num_classes: int = 10
    filters: int = 24
    """Channels of the first convolution."""
    widths: Sequence[int] = (64, 256, 256)
    """Channels of each stage."""
    dtype: Any = None
    """Type of the computation; None: inferred from input and parameters."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        conv = partial(Conv, kernel_size=(3, 3), padding=1, dtype=self.dtype)
        # In a short run the statistics must follow the weights quickly.
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
        x = nn.Dense(self.num_classes, use_bias=False, dtype=self.dtype, name="fc")(x)
        return x.astype(jnp.float32)
