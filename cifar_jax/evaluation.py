"""Weights and images in, logits out: what training and inference have in common."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from cifar_jax import devices

LogitsFn = Callable[[Mapping[str, Any]], np.ndarray]
"""From a model's variables to the logits of the images that it was compiled for."""


def compile_logits(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: np.ndarray,
    *,
    normalise: Callable[[jax.Array], jax.Array],
    batch_size: int,
    mesh: Mesh,
    after_batch: Callable[[], None] = lambda: None,
) -> LogitsFn:
    """A function from variables to float32 logits `[N, classes]` of `images`, in evaluation mode.

    Args:
      model: the network.
      variables: for their shapes; they stay valid.
      images: uint8 `[N, H, W, C]`, at least one. They are put on the devices, in batches that are
        divided over them; the last is padded.
      normalise: from uint8 images to what the network takes.
      batch_size: images at a time, rounded up to a multiple of the devices.
      mesh: where it runs.
      after_batch: called after each batch; what it raises ends the evaluation.
    """
    count = len(images)
    batch = min(batch_size, count)
    batch = -(-batch // mesh.size) * mesh.size
    batches = -(-count // batch)
    padded = np.pad(images, [(0, batches * batch - count)] + [(0, 0)] * (images.ndim - 1))
    sharding = devices.batch_sharding(mesh, axis=1)
    data = devices.put(padded.reshape(batches, batch, *images.shape[1:]), sharding)

    def logits(variables: Mapping[str, Any], data: jax.Array, number: jax.Array) -> Any:
        return model.apply(variables, normalise(data[number]), train=False)

    program = (
        jax.jit(logits, out_shardings=devices.replicated(mesh))
        .lower(variables, data, np.int32(0))
        .compile()
    )

    def evaluate(variables: Mapping[str, Any]) -> np.ndarray:
        found = []
        for number in range(batches):
            found.append(program(variables, data, np.int32(number)))
            after_batch()
        return np.concatenate(jax.device_get(found))[:count]

    return evaluate


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
