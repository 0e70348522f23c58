"""Initialize convolutions with identity filters or whitening filters.

Both kinds come from airbench (K. Jordan, arXiv:2404.00498). `dirac` and `whitened` return a changed
copy of a network's variables.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cifar_jax.errors import UserError, counted

Images = jax.Array | np.ndarray


def dirac(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables with identity filters in the convolutions, like PyTorch's `dirac_`.

    In a kernel `[H, W, I, O]`, the first min(I, O) filters change: filter i becomes one at the
    center of channel i and zero elsewhere. The remaining filters do not change. Biases, 1×1
    kernels, kernels of even size and depthwise kernels do not change either.
    """
    flat: dict[tuple[str, ...], Any] = flatten_dict(dict(variables))
    for path, kernel in flat.items():
        if path[-1] != "kernel" or kernel.ndim != 4:
            continue
        height, width, inputs, outputs = kernel.shape
        if height % 2 and width % 2 and height * width > 1 and inputs > 1:
            filters = np.zeros((height, width, inputs, min(inputs, outputs)), kernel.dtype)
            i = np.arange(filters.shape[-1])
            filters[height // 2, width // 2, i, i] = 1
            flat[path] = _with_first_filters(kernel, filters)
    return unflatten_dict(flat)


def whitened(variables: Mapping[str, Any], images: Images, eps: float = 5e-4) -> dict[str, Any]:
    """Return the variables with `whitening_filters` in the first convolution.

    A kernel of height H, width W and C input channels has at most 2·H·W·C whitening filters. If the
    convolution has more filters, the remaining filters keep their values.

    Args:
      variables: variables of a network with a convolution `conv1`.
      images: normalized training images, float `[N, height, width, C]`.
      eps: a small constant that limits the scale of filters with small eigenvalues.

    Raises:
      UserError: there is no convolution `conv1`, or it has another number of input channels than
        the images.
    """
    path = ("params", *first_convolution(variables))
    flat: dict[tuple[str, ...], Any] = flatten_dict(dict(variables))
    flat[path] = _with_first_filters(flat[path], whitening_filters(images, flat[path].shape, eps))
    return unflatten_dict(flat)


def whitening_filters(
    images: Images, kernel_shape: tuple[int, ...], eps: float = 5e-4
) -> np.ndarray:
    """Return filters whose outputs over the images are uncorrelated and have variance one.

    Each filter is an eigenvector of the second-moment matrix of the image patches, divided by
    √(eigenvalue + eps). The images are normalized, so this matrix is nearly the covariance matrix.
    The filters are sorted by decreasing eigenvalue, and each filter is followed by its negative.
    The sign of an eigenvector is arbitrary. Here, the first element (top left pixel, first channel)
    is positive.

    Args:
      images: normalized images, float `[N, height, width, C]`. airbench uses 5,000 images.
      kernel_shape: `(H, W, C, O)`.
      eps: a small constant that limits the scale of filters with small eigenvalues.

    Returns:
      float32 `[H, W, C, min(O, 2·H·W·C)]`.

    Raises:
      UserError: the images do not have C channels.
    """
    height, width, channels, outputs = kernel_shape
    if images.shape[-1] != channels:
        raise UserError(
            f"init.whitening: the images have {counted(images.shape[-1], 'channel')}, but the "
            f"first convolution needs {channels}. Turn init.whitening off, or choose another model."
        )
    size = height * width * channels
    moments, chunk = np.zeros((size, size)), 256
    for start in range(0, len(images), chunk):
        part = np.asarray(images[start : start + chunk], np.float32)
        # Pad the last chunk with zeros. Then all chunks have one shape, and JAX compiles one
        # program.
        part = np.pad(part, [(0, chunk - len(part)), (0, 0), (0, 0), (0, 0)])
        moments += np.asarray(_second_moments(part, height, width))
    patches = len(images) * (images.shape[1] + 1 - height) * (images.shape[2] + 1 - width)
    values, vectors = np.linalg.eigh(moments / patches)
    values, vectors = values[::-1], vectors[:, ::-1]
    vectors = vectors * np.where(vectors[0] < 0, -1, 1)
    scaled = vectors / np.sqrt(np.maximum(values, 0) + eps)
    pairs = np.stack([scaled, -scaled], axis=-1).reshape(height, width, channels, 2 * size)
    return pairs[..., :outputs].astype(np.float32)


def first_convolution(variables: Mapping[str, Any]) -> tuple[str, str]:
    """Return the path of the kernel of `conv1`, the first convolution, in `params`.

    Raises:
      UserError: the network has no convolution of that name.
    """
    kernel: Any = flatten_dict(variables["params"]).get(("conv1", "kernel"))
    if kernel is None or kernel.ndim != 4:
        raise UserError(
            "init.whitening needs a first convolution named conv1, and the network has none: turn "
            "init.whitening off, or choose another model"
        )
    return "conv1", "kernel"


@partial(jax.jit, static_argnums=(1, 2))
def _second_moments(images: jax.Array, height: int, width: int) -> jax.Array:
    """Return the sum of p pᵀ over all image patches p, `[H·W·C, H·W·C]`.

    JAX computes the sum, because NumPy's threads take a minute when other processes use the cores.
    """
    rows, columns = images.shape[1] + 1 - height, images.shape[2] + 1 - width
    shifted = [
        images[:, y : y + rows, x : x + columns] for y in range(height) for x in range(width)
    ]
    patches = jnp.concatenate(shifted, axis=-1).reshape(-1, height * width * images.shape[-1])
    return jnp.matmul(patches.T, patches, precision=jax.lax.Precision.HIGHEST)


def _with_first_filters(kernel: jax.Array, filters: np.ndarray) -> jax.Array:
    return jnp.asarray(kernel).at[..., : filters.shape[-1]].set(filters)
