"""Other beginnings than the layers' own: filters that pass their input on, or whiten it.

Both are of airbench (arXiv:2404.00498), and functions from variables to variables, of which those
that they say nothing of stay as they are.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cifar_jax.errors import UserError

Images = jax.Array | np.ndarray


def dirac(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The variables, with the first filters of each convolution passing their input channels on.

    Of a kernel `[H, W, I, O]` of odd sizes above 1, filter i of the first min(I, O) is one at the
    centre of channel i and zero elsewhere, as PyTorch's `dirac_` has it. The other filters, kernels
    1×1 and of even sizes, depthwise ones, and biases keep their values.
    """
    flat: dict[tuple[str, ...], Any] = flatten_dict(dict(variables))
    for path, kernel in flat.items():
        if path[-1] != "kernel" or kernel.ndim != 4:
            continue
        height, width, inputs, outputs = kernel.shape
        if height % 2 and width % 2 and height * width > 1 and inputs > 1:
            passing = np.zeros((height, width, inputs, min(inputs, outputs)), kernel.dtype)
            np.einsum("ii->i", passing[height // 2, width // 2, :, :])[:] = 1
            flat[path] = _with_first_filters(kernel, passing)
    return unflatten_dict(flat)


def whitened(variables: Mapping[str, Any], images: Images, eps: float = 5e-4) -> dict[str, Any]:
    """The variables, with the first convolution's first filters those of `whitening`.

    Where it has more filters than 2·H·W·C, the rest keep their values.

    Args:
      variables: of a network.
      images: float `[N, height, width, C]`, normalized, of the training images.
      eps: of `whitening`.

    Raises:
      UserError: the images have other channels than the convolution takes, or there is none.
    """
    path = ("params", *first_convolution(variables))
    flat: dict[tuple[str, ...], Any] = flatten_dict(dict(variables))
    flat[path] = _with_first_filters(flat[path], whitening(images, flat[path].shape, eps))
    return unflatten_dict(flat)


def whitening(images: Images, kernel_shape: tuple[int, ...], eps: float = 5e-4) -> np.ndarray:
    """Filters whose outputs over the images are uncorrelated and of variance one.

    They are the eigenvectors of the second moments of the images' patches, each divided by
    √(eigenvalue + eps), and its negative beside it, from the largest eigenvalue on. (The images
    are normalized, so the moments are nearly the covariance.) An eigenvector's sign is arbitrary:
    here its first number, of the patch's top left and its first channel, is positive.

    Args:
      images: float `[N, height, width, C]`, normalized; airbench takes 5,000.
      kernel_shape: `[H, W, C, O]`, of the convolution.
      eps: keeps directions that hardly vary from being all noise.

    Returns:
      float32 `[H, W, C, min(O, 2·H·W·C)]`.

    Raises:
      UserError: the images have other channels than the convolution takes.
    """
    height, width, channels, outputs = kernel_shape
    if images.shape[-1] != channels:
        raise UserError(
            f"whitening has images of {images.shape[-1]} channels, and the first convolution "
            f"takes {channels}: leave whitening out, or choose another model"
        )
    size = height * width * channels
    moments, chunk = np.zeros((size, size)), 256
    for start in range(0, len(images), chunk):
        some = np.asarray(images[start : start + chunk], np.float32)
        # Images of zeros add nothing, and let one compiled program do.
        some = np.pad(some, [(0, chunk - len(some)), (0, 0), (0, 0), (0, 0)])
        moments += np.asarray(_second_moments(some, height, width))
    patches = len(images) * (images.shape[1] + 1 - height) * (images.shape[2] + 1 - width)
    values, vectors = np.linalg.eigh(moments / patches)
    values, vectors = values[::-1], vectors[:, ::-1]
    vectors = vectors * np.where(vectors[0] < 0, -1, 1)
    scaled = vectors / np.sqrt(np.maximum(values, 0) + eps)
    both = np.stack([scaled, -scaled], axis=-1).reshape(height, width, channels, 2 * size)
    return both[..., :outputs].astype(np.float32)


def first_convolution(variables: Mapping[str, Any]) -> tuple[str, str]:
    """Path, in `params`, of the kernel of the convolution that takes the images: `conv1`'s.

    Raises:
      UserError: the network has none of that name.
    """
    kernel: Any = flatten_dict(variables["params"]).get(("conv1", "kernel"))
    if kernel is None or kernel.ndim != 4:
        raise UserError("the network has no convolution conv1 to whiten: choose another model")
    return "conv1", "kernel"


@partial(jax.jit, static_argnums=(1, 2))
def _second_moments(images: jax.Array, height: int, width: int) -> jax.Array:
    """Sum over all patches of the products of their numbers: `[H·W·C, H·W·C]`.

    By JAX, since NumPy's own takes a minute for it where its threads find the cores taken.
    """
    rows, columns = images.shape[1] + 1 - height, images.shape[2] + 1 - width
    shifted = [
        images[:, y : y + rows, x : x + columns] for y in range(height) for x in range(width)
    ]
    patches = jnp.concatenate(shifted, axis=-1).reshape(-1, height * width * images.shape[-1])
    return jnp.matmul(patches.T, patches, precision=jax.lax.Precision.HIGHEST)


def _with_first_filters(kernel: jax.Array, filters: np.ndarray) -> jax.Array:
    return jnp.asarray(kernel).at[..., : filters.shape[-1]].set(filters)
