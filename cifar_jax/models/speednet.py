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
    """Fast network for a CPU. It maps images `[N, H, W, 3]` to float32 logits `[N, num_classes]`.

    H and W are at least 8. The first convolution is 2×2. With the setting `init.whitening`, this
    convolution has whitening filters, which are not trained. A 2×2 patch of RGB pixels has 12
    values, so there are 12 filters and their negatives, 24 in all. Each stage has two 3×3
    convolutions with BatchNorm and GELU, and pooling between them. The last layer takes the maximum
    of each channel. GELU is JAX's default, the tanh approximation. It differs from PyTorch's
    default, the exact form, by up to 5e-4.

    The network follows airbench (K. Jordan, arXiv:2404.00498), with two changes. Both suit the
    Winograd convolutions in `ops`, which do nearly all of the arithmetic on a CPU. First, the 2×2
    convolution keeps the image size, so the 4×4 tiles of the Winograd algorithm cover the image
    exactly. Second, pooling follows the activation instead of the convolution. The last step of the
    Winograd convolution is then computed only once.
    """

    num_classes: int = 10
    filters: int = 24
    """Number of channels of the first convolution."""
    widths: Sequence[int] = (64, 256, 256)
    """Number of channels of each stage."""
    exact_gelu: bool = False
    """Whether GELU is the exact form instead of the tanh approximation."""
    dtype: Any = None
    """Data type of the computation. None: inferred from the input and the parameters."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        conv = partial(Conv, kernel_size=(3, 3), padding=1, dtype=self.dtype)
        gelu = partial(nn.gelu, approximate=not self.exact_gelu)
        # In a short run, the running statistics must adapt quickly to the changing weights.
        norm = partial(BatchNorm, momentum=0.6, use_scale=False, dtype=self.dtype)
        whitening = Conv(
            self.filters, (2, 2), padding=((0, 1), (0, 1)), dtype=self.dtype, name="conv1"
        )
        x = gelu(whitening(x))
        for stage, width in enumerate(self.widths, start=1):
            name = f"stage{stage}"
            x = conv(width, use_bias=False, name=f"{name}_conv1")(x)
            x = gelu(norm(name=f"{name}_bn1")(x, train=train))
            x = Pool(name=f"{name}_pool")(x)
            x = conv(width, use_bias=False, name=f"{name}_conv2")(x)
            x = gelu(norm(name=f"{name}_bn2")(x, train=train))
        x = x.max(axis=(1, 2)) / math.sqrt(x.shape[-1])
        x = nn.Dense(self.num_classes, use_bias=False, dtype=self.dtype, name="fc")(x)
        return x.astype(jnp.float32)
