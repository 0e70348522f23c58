"""Compute the logits of a network for images, with optional test-time augmentation."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from cifar_jax import devices
from cifar_jax.logits import softmax


class Outputs(NamedTuple):
    """The logits of a network for N images, as two float32 arrays `[N, classes]`."""

    logits: np.ndarray
    """Logits, averaged over all views of test-time augmentation."""
    plain: np.ndarray
    """Logits of the unchanged images. Without test-time augmentation, this is the same array as
    `logits`."""


class LogitsFn(Protocol):
    """Function from a model's variables to the logits of images."""

    def __call__(self, variables: Mapping[str, Any], other: np.ndarray | None = None, /) -> Outputs:
        """Return the logits of the images for which the function was compiled.

        If `other` is given, return the logits of the images in `other` instead. `other` may hold
        any number of images, but they must have the same height and width.
        """
        ...


class TTA(NamedTuple):
    """Test-time augmentation: logits are averaged over several views of an image.

    With `shift`, the unshifted image has weight 1/2, and the two shifted images have weight 1/4
    each. With `flip`, the logits of each image are averaged with the logits of its mirror image.
    `shift` and `flip` together are TTA level 2 of airbench.

    `least_confident` follows hiverge's cifar10-speedrun, with two differences. cifar10-speedrun
    ranks images by their largest probability, and gives its six views equal weights.
    """

    flip: bool = False
    """Whether to add mirrored images."""
    shift: int = 0
    """Distance in pixels by which two copies are shifted. One copy moves up and left, the other
    down and right. Borders are filled by reflection. 0: no shifted copies."""
    least_confident: float | None = None
    """Fraction of the images for which the extra views are used. These are the images with the
    smallest difference between their two largest probabilities. None: all images."""


def compile_logits(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: np.ndarray,
    *,
    normalize: Callable[[jax.Array], jax.Array],
    batch_size: int,
    mesh: Mesh,
    precision: str = "float32",
    after_batch: Callable[[], None] = lambda: None,
    tta: TTA | None = None,
) -> LogitsFn:
    """Compile a function from a model's variables to the logits of `images`.

    The model is in evaluation mode.

    Args:
      model: the network.
      variables: variables with the right shapes. They are not donated.
      images: uint8 `[N, H, W, C]`, at least one image. They are put on the devices in batches, and
        the last batch is padded.
      normalize: function from uint8 images to the network's input.
      batch_size: number of 32×32 images per batch, rounded up to a multiple of the number of
        devices. Batches of larger images are smaller; see `scale_count`.
      mesh: the devices.
      precision: type of the model's computation, `float32` or `bfloat16`. It is used only to choose
        compiler options.
      after_batch: function called after each batch. An exception from it ends the evaluation.
      tta: test-time augmentation. None: only the unchanged images.
    """
    batch = min(scale_count(batch_size, images.shape[1]), len(images))
    batch = -(-batch // mesh.size) * mesh.size
    sharding = devices.batch_sharding(mesh)

    def batches(images: np.ndarray) -> list[jax.Array]:
        padded = np.pad(images, [(0, -len(images) % batch)] + [(0, 0)] * (images.ndim - 1))
        parts = np.split(padded, len(padded) // batch)
        return [devices.put(part, sharding) for part in parts]

    def apply(variables: Mapping[str, Any], images: jax.Array) -> Any:
        return model.apply(variables, normalize(images), train=False)

    # Keep the unchanged images on the devices. Mirrored and shifted copies are not kept.
    plain_batches = batches(images)
    program = devices.compile_program(
        jax.jit(apply, out_shardings=devices.replicated(mesh)),
        *(variables, plain_batches[0]),
        mesh=mesh,
        batch_size=batch,
        precision=precision,
    )

    def evaluate(variables: Mapping[str, Any], other: np.ndarray | None = None, /) -> Outputs:
        def logits_of(view: np.ndarray) -> np.ndarray:
            logits = []
            for part in plain_batches if view is images else batches(view):
                logits.append(program(variables, part))
                after_batch()
            return np.concatenate(jax.device_get(logits))[: len(view)]

        return apply_tta(logits_of, images if other is None else other, tta)

    return evaluate


def scale_count(count: int, image_size: int) -> int:
    """Return how many images of `image_size` have at most as many pixels as `count` 32×32 images.

    The images are square. This function limits the memory of a batch of large images. The result
    is at least 1 and at most `count`.
    """
    return max(1, min(count, count * 32**2 // image_size**2))


def apply_tta(
    logits_of: Callable[[np.ndarray], np.ndarray], images: np.ndarray, tta: TTA | None
) -> Outputs:
    """Return the logits of `images`, averaged over the views of test-time augmentation.

    Args:
      logits_of: function from images to logits. It is called first with `images`, and then with
        each further view of all images or of the least confident images.
      images: `[N, H, W, C]`, with H and W larger than the shift.
      tta: the views. None: only the unchanged images.
    """
    plain = logits_of(images)
    flip, shift, least_confident = tta or TTA()
    if not flip and not shift:
        return Outputs(plain, plain)
    chosen = slice(None) if least_confident is None else _least_confident(plain, least_confident)
    selected = images[chosen]
    moves = [(0.5, 0), (0.25, shift), (0.25, -shift)] if shift else [(1.0, 0)]
    mean = np.zeros_like(plain[chosen])
    for weight, pixels in moves:
        view = _shifted(selected, pixels) if pixels else selected
        logits = logits_of(view) if pixels else plain[chosen]
        if flip:
            logits = (logits + logits_of(view[:, :, ::-1])) / 2
        mean += weight * logits
    averaged = plain.copy()
    averaged[chosen] = mean
    return Outputs(averaged, plain)


def _least_confident(logits: np.ndarray, fraction: float) -> np.ndarray:
    """Return the indices of the least confident rows of `logits`, least confident first.

    The given fraction of the rows is returned, but at least one row.
    """
    second, first = np.partition(softmax(logits), -2)[:, -2:].T
    return np.argsort(first - second, kind="stable")[: max(1, round(fraction * len(logits)))]


def _shifted(images: np.ndarray, pixels: int) -> np.ndarray:
    """Return images moved down and right by `pixels`, or up and left if `pixels` is negative."""
    pad = [(max(pixels, 0), max(-pixels, 0))] * 2
    padded = np.pad(images, [(0, 0), *pad, (0, 0)], mode="reflect")
    height, width = images.shape[1:3]
    start = max(-pixels, 0)
    return padded[:, start : start + height, start : start + width]
