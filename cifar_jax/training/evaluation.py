"""Weights and images in, logits out: what training and inference have in common."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from cifar_jax import devices

LogitsFn = Callable[[Mapping[str, Any]], np.ndarray]
"""From a model's variables to the logits of the images that it was compiled for."""


class TTA(NamedTuple):
    """What else is seen of an image when it is classed: test-time augmentation, by mean of logits.

    An image and its two shifts count ½, ¼ and ¼, and each half as itself and half as its mirror
    image, where there are any: with both, airbench's level 2. That of the unsure images only is
    after hiverge's cifar10-speedrun, which goes by the largest probability alone and has all six
    views count alike.
    """

    flip: bool = False
    """Mirrored left to right as well."""
    shift: int = 0
    """Pixels: moved up and left by so many, and down and right, what comes in by reflection."""
    least_confident: float | None = None
    """The share of the images that this is for: those with the smallest difference between the
    two largest probabilities of the plain view, which is all that the others have. None: of all."""


def compile_logits(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: np.ndarray,
    *,
    normalize: Callable[[jax.Array], jax.Array],
    batch_size: int,
    mesh: Mesh,
    after_batch: Callable[[], None] = lambda: None,
    views: TTA | None = None,
) -> LogitsFn:
    """A function from variables to float32 logits `[N, classes]` of `images`, in evaluation mode.

    Args:
      model: the network.
      variables: for their shapes; they stay valid.
      images: uint8 `[N, H, W, C]`, at least one. They are put on the devices, in batches that are
        divided over them; the last is padded.
      normalize: from uint8 images to what the network takes.
      batch_size: images at a time, rounded up to a multiple of the devices.
      mesh: where it runs.
      after_batch: called after each batch; what it raises ends the evaluation.
      views: what the logits are the mean of; by default the images as they are.
    """
    batch = min(batch_size, len(images))
    batch = -(-batch // mesh.size) * mesh.size
    sharding = devices.batch_sharding(mesh)

    def batches(images: np.ndarray) -> list[jax.Array]:
        padded = np.pad(images, [(0, -len(images) % batch)] + [(0, 0)] * (images.ndim - 1))
        parts = np.split(padded, len(padded) // batch)
        return [devices.put(part, sharding) for part in parts]

    def logits(variables: Mapping[str, Any], images: jax.Array) -> Any:
        return model.apply(variables, normalize(images), train=False)

    kept = batches(images)  # on the devices from evaluation to evaluation; other views are not
    program = (
        jax.jit(logits, out_shardings=devices.replicated(mesh))
        .lower(variables, kept[0])
        .compile(compiler_options=devices.compiler_options(mesh, batch))
    )

    def evaluate(variables: Mapping[str, Any]) -> np.ndarray:
        def logits_of(seen: np.ndarray) -> np.ndarray:
            found = []
            for part in kept if seen is images else batches(seen):
                found.append(program(variables, part))
                after_batch()
            return np.concatenate(jax.device_get(found))[: len(seen)]

        return over_views(logits_of, images, views)

    return evaluate


def over_views(
    logits_of: Callable[[np.ndarray], np.ndarray], images: np.ndarray, views: TTA | None
) -> np.ndarray:
    """Logits `[N, classes]` of `images`, averaged over what `views` has of them.

    Args:
      logits_of: from images to their logits; called with `images` itself first, then with each
        other view, of all the images or of the unsure ones.
      images: `[N, H, W, C]`, H and W larger than the shift.
      views: None are the images as they are.
    """
    plain = logits_of(images)
    flip, shift, unsure = views or TTA()
    if not flip and not shift:
        return plain
    chosen = slice(None) if unsure is None else _least_sure(plain, unsure)
    picked = images[chosen]
    moved = [(0.5, 0), (0.25, shift), (0.25, -shift)] if shift else [(1.0, 0)]
    mean = np.zeros_like(plain[chosen])
    for share, by in moved:
        seen = _shifted(picked, by) if by else picked
        found = logits_of(seen) if by else plain[chosen]
        if flip:
            found = (found + logits_of(seen[:, :, ::-1])) / 2
        mean += share * found
    result = plain.copy()
    result[chosen] = mean
    return result


def _least_sure(logits: np.ndarray, share: float) -> np.ndarray:
    """Indices of that share of the rows, at least one, by the two largest probabilities."""
    odds = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    second, first = np.partition(odds / odds.sum(-1, keepdims=True), -2)[:, -2:].T
    return np.argsort(first - second, kind="stable")[: max(1, round(share * len(logits)))]


def _shifted(images: np.ndarray, by: int) -> np.ndarray:
    """Moved down and right by that many pixels, or by a negative number up and left."""
    pad = [(max(by, 0), max(-by, 0))] * 2
    padded = np.pad(images, [(0, 0), *pad, (0, 0)], mode="reflect")
    height, width = images.shape[1:3]
    start = max(-by, 0)
    return padded[:, start : start + height, start : start + width]


def measure(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Mean cross-entropy in nats (`loss`) and `accuracy` in percent.

    Args:
      logits: `[N, classes]`.
      labels: int32 `[N]`.
    """
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    losses = np.log(np.exp(wide).sum(-1)) - wide[np.arange(len(labels)), labels]
    correct = logits.argmax(-1) == labels
    return {"loss": float(losses.mean()), "accuracy": float(100 * correct.mean())}
