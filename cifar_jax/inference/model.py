"""A trained model: a function from images to logits with a model card, or the network itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cifar_jax import models
from cifar_jax.data import pipeline
from cifar_jax.data.images import read_image
from cifar_jax.errors import UserError
from cifar_jax.inference import card as cards
from cifar_jax.runs.checkpoints import Checkpoints
from cifar_jax.runs.folder import Workdir, existing_workdir
from cifar_jax.training.evaluation import TTA, over_views

Variables = Mapping[str, Any]


class Classifier:
    """Images in, probabilities out, with a model card. What it is made of does not matter.

    Make one with `cifar_jax.load`.
    """

    largest_batch = 256
    """So many images are computed at a time."""

    def __init__(self, card: Mapping[str, Any], function: Callable[[jax.Array], Any]) -> None:
        self.card = card
        """What `cifar_jax.inference.card` describes."""
        self._function = function

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of the logits."""
        return tuple(self.card["classes"])

    @property
    def views(self) -> TTA:
        """What the run looked at of its test images, for `predict` and `logits`."""
        return TTA(**self.card.get("tta", {}))

    def predict(
        self, images: np.ndarray | Sequence[str | Path], views: TTA | None = None
    ) -> np.ndarray:
        """Probabilities `[N, classes]`, float32, each row of sum one.

        Args:
          images: uint8 `[N, 32, 32, 3]`, or files of any size and common format.
          views: what else is looked at, of each of them: with views of the unsure ones only an
            answer would depend on what else is asked. By default nothing.

        Raises:
          UserError: an array of another shape or type, or a file that is no image.
        """
        views = views and views._replace(least_confident=None)
        logits = self.logits(images, views).astype(np.float64)
        odds = np.exp(logits - logits.max(-1, keepdims=True))
        return (odds / odds.sum(-1, keepdims=True)).astype(np.float32)

    def logits(
        self, images: np.ndarray | Sequence[str | Path], views: TTA | None = None
    ) -> np.ndarray:
        """Logits `[N, classes]`, float32; arguments and errors are those of `predict`.

        Here `views.least_confident` counts, as in a run's test.
        """
        if not hasattr(images, "dtype"):
            files = [read_image(Path(file)) for file in images]
            images = np.stack(files) if files else np.zeros((0, *models.IMAGE_SHAPE), np.uint8)
        images = np.asarray(images)
        if images.shape[1:] != models.IMAGE_SHAPE or images.dtype != np.uint8:
            raise UserError(
                f"images are to be uint8 [N, 32, 32, 3], not {images.dtype} {list(images.shape)}"
            )
        if not len(images):
            return np.zeros((0, len(self.classes)), np.float32)
        return over_views(self._logits_of, images, views)

    def _logits_of(self, images: np.ndarray) -> np.ndarray:
        found = []
        for start in range(0, len(images), self.largest_batch):
            batch = images[start : start + self.largest_batch]
            # Each size is compiled by itself: so there are few, the next power of two.
            size = 1 << (len(batch) - 1).bit_length()
            padded = np.pad(batch, [(0, size - len(batch)), (0, 0), (0, 0), (0, 0)])
            found.append(np.asarray(self._compiled(padded))[: len(batch)])
        return np.concatenate(found)

    @cached_property
    def _compiled(self) -> Callable[[np.ndarray], jax.Array]:
        return jax.jit(self._function)


class TrainedNetwork(Classifier):
    """A network with its weights.

    Args:
      card: its card.
      variables: `params`, and `batch_stats` where the network has them, as arrays.
      name: what messages call it.
      own: the module, where the card names none of the package's.

    Raises:
      UserError: the weights are not those of the network that the card names, or `own` is missing.
    """

    def __init__(
        self,
        card: Mapping[str, Any],
        variables: Variables,
        name: str,
        own: models.CustomModel | None = None,
    ) -> None:
        super().__init__(card, self.apply)
        options = dict(card["model"])
        model = options.pop("name")
        if own is None and model not in models.MODELS and "code" in card:
            raise UserError(_code_is_missing(card, name))
        self.own = own
        """The module as it was given, where it is none of the package's."""
        self.module: nn.Module = models.create(
            model, own, **options, dtype=jnp.dtype(card["precision"])
        )
        self.variables = models.match_variables(
            variables, models.variable_shapes(self.module), name
        )

    def normalize(self, images: jax.Array) -> jax.Array:
        """uint8 images to what the network takes."""
        dtype = jnp.dtype(self.card["precision"])
        return pipeline.normalize(images, self.card["mean"], self.card["std"], dtype)

    def apply(self, images: jax.Array) -> Any:
        """Logits of uint8 images `[N, 32, 32, 3]`, as a function that JAX can trace."""
        return self.module.apply(self.variables, self.normalize(images), train=False)


def load_run(
    path: Path, *, best: bool = False, own: models.CustomModel | None = None
) -> TrainedNetwork:
    """The network of the run in folder `path`, of its last checkpoint or its best on validation.

    Raises:
      UserError: it is no run's folder, has no checkpoint, is damaged, or is of a model that is none
        of the package's, and not given.
    """
    card, variables = read_run(path, best=best)
    return TrainedNetwork(card, variables, str(path), own)


def read_run(path: Path, *, best: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """The card and the variables of the run in folder `path`, whatever the network.

    Raises:
      UserError: it is no run's folder, has no checkpoint, or is damaged.
    """
    workdir, identity = existing_workdir(path)
    card = cards.of_run(path, identity)
    if not workdir.checkpoints.is_dir():
        raise UserError(f"{path} has no checkpoint yet")
    with Checkpoints(workdir.checkpoints) as checkpoints:
        last = checkpoints.latest()
        step = checkpoints.best() if best else last
        if step is None:
            raise UserError(f"{path} has no checkpoint {'with a validation' if best else 'yet'}")
        variables = checkpoints.weights(step)
    result = workdir.result() or {}
    rows = [row for row in workdir.epochs()[0] if row.get("step") == step]
    own = result.get("steps") == step
    measured = result.get("test_accuracy") if own else None
    if best and result:
        measured = result.get("best_validation_test_accuracy")
    told = {
        "step": step,
        "epoch": rows[-1].get("epoch") if rows else None,
        "test_accuracy": measured,
        "git_commit": result.get("git_commit"),
    }
    return card | told, variables


def _code_is_missing(card: Mapping[str, Any], name: str) -> str:
    """What to do about a model that is none of the package's.

    A run's folder has a copy of its code, which is never run unasked: the folder may be a
    stranger's.
    """
    code, copy = card["code"], Workdir(Path(name)).code
    file = code.get("file") if isinstance(code, Mapping) else code
    kept = f", or after reading it the copy there, --code {copy}" if copy.is_file() else ""
    return (
        f"{name} is of {card['model']['name']!r}, a model that a file defined ({file!r}), and runs "
        f"no code unasked: name your file by --code FILE{kept}; in Python hand over the model"
    )
