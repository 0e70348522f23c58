"""Evaluation of a network: variables and images in, logits out, with test-time augmentation."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from cifar_jax import devices


class Outputs(NamedTuple):
    """Logits of images, float32 `[N, classes]`."""

    logits: np.ndarray
    """Averaged over the views of test-time augmentation."""
    plain: np.ndarray
    """Of the unchanged image only; the same array as `logits` without test-time augmentation."""


LogitsFn = Callable[[Mapping[str, Any]], Outputs]
"""From a model's variables to the logits of the images that it was compiled for."""


class TTA(NamedTuple):
    """Test-time augmentation: logits are averaged over several views of an image.

    The image has weight 1/2 and each of its two shifts 1/4. Each of these is averaged with its
    mirror image. With both, this is level 2 of airbench. `least_confident` follows hiverge's
    cifar10-speedrun, which ranks by the largest probability alone and weights six views equally.
    """

    flip: bool = False
    """Add mirror images."""
    shift: int = 0
    """Pixels: add the image moved up and left, and down and right, padded by reflection."""
    least_confident: float | None = None
    """Use the extra views only for this fraction of the images: those with the smallest difference
    between the two largest probabilities of the plain view. None: for all."""


def compile_logits(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: np.ndarray,
    *,
    normalize: Callable[[jax.Array], jax.Array],
    batch_size: int,
    mesh: Mesh,
    after_batch: Callable[[], None] = lambda: None,
    tta: TTA | None = None,
) -> LogitsFn:
    """Return a function from variables to the logits of `images`, in evaluation mode.

    Args:
      model: the network.
      variables: provide the shapes; they stay valid.
      images: uint8 `[N, H, W, C]`, at least one. They are put on the devices in batches; the last
        batch is padded.
      normalize: from uint8 images to the network's input.
      batch_size: images per batch, rounded up to a multiple of the devices.
      mesh: the devices.
      after_batch: called after each batch; an exception ends the evaluation.
      tta: test-time augmentation; None: none.
    """
    batch = min(batch_size, len(images))
    batch = -(-batch // mesh.size) * mesh.size
    sharding = devices.batch_sharding(mesh)

    def batches(images: np.ndarray) -> list[jax.Array]:
        padded = np.pad(images, [(0, -len(images) % batch)] + [(0, 0)] * (images.ndim - 1))
        parts = np.split(padded, len(padded) // batch)
        return [devices.put(part, sharding) for part in parts]

    def apply(variables: Mapping[str, Any], images: jax.Array) -> Any:
        return model.apply(variables, normalize(images), train=False)

    plain_batches = batches(images)  # These stay on the devices; other views do not.
    program = (
        jax.jit(apply, out_shardings=devices.replicated(mesh))
        .lower(variables, plain_batches[0])
        .compile(compiler_options=devices.compiler_options(mesh, batch))
    )

    def evaluate(variables: Mapping[str, Any]) -> Outputs:
        def logits_of(view: np.ndarray) -> np.ndarray:
            logits = []
            for part in plain_batches if view is images else batches(view):
                logits.append(program(variables, part))
                after_batch()
            return np.concatenate(jax.device_get(logits))[: len(view)]

        return apply_tta(logits_of, images, tta)

    return evaluate


def apply_tta(
    logits_of: Callable[[np.ndarray], np.ndarray], images: np.ndarray, tta: TTA | None
) -> Outputs:
    """Return the logits of `images`, averaged over the views of test-time augmentation.

    Args:
      logits_of: from images to logits. It is called with `images` first, then with each other view
        of all images or of the least confident ones.
      images: `[N, H, W, C]`, with H and W larger than the shift.
      tta: the views; None: only the plain one.
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


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return class probabilities, float64 `[N, classes]`, computed on the host."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def loss_and_accuracy(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return the mean cross-entropy in nats and the accuracy in percent.

    Args:
      logits: `[N, classes]`.
      labels: int32 `[N]`.
    """
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(len(labels)), labels]
    correct = logits.argmax(-1) == labels
    return float(losses.mean()), float(100 * correct.mean())


def _least_confident(logits: np.ndarray, fraction: float) -> np.ndarray:
    """Return the indices of this fraction of the rows, at least one, least confident first."""
    second, first = np.partition(softmax(logits), -2)[:, -2:].T
    return np.argsort(first - second, kind="stable")[: max(1, round(fraction * len(logits)))]


def _shifted(images: np.ndarray, pixels: int) -> np.ndarray:
    """Return the images moved down and right, or up and left for a negative number of pixels."""
    pad = [(max(pixels, 0), max(-pixels, 0))] * 2
    padded = np.pad(images, [(0, 0), *pad, (0, 0)], mode="reflect")
    height, width = images.shape[1:3]
    start = max(-pixels, 0)
    return padded[:, start : start + height, start : start + width]
