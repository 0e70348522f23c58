"""Classes of trained models, which compute logits or class probabilities from images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cifar_jax import models
from cifar_jax.data import Target, pipeline
from cifar_jax.errors import UserError, nearest
from cifar_jax.inference.images import to_batch
from cifar_jax.logits import softmax
from cifar_jax.runs.folder import RunFolder
from cifar_jax.runs.schemas import ModelCard
from cifar_jax.training.evaluation import TTA, Outputs, apply_tta, scale_count

if TYPE_CHECKING:
    from PIL.Image import Image

    Images = str | Path | Image | np.ndarray | Sequence[str | Path | Image | np.ndarray]


class Classifier:
    """A trained model: a function from images to logits, with its model card.

    `cifar_jax.load` returns an instance.

    Args:
      card: the model card, which describes the network, its classes and its normalization.
      function: function from uint8 images `[N, H, W, 3]` to float32 logits `[N, classes]`. JAX must
        be able to trace it.
      source: name of the model in error messages.

    Raises:
      UserError: the model does not take square RGB images.
    """

    batch_size = 256
    """Largest number of images in one call of the model's function, for images of 32×32 pixels. The
    number is smaller for larger images; see `scale_count`."""

    def __init__(
        self, card: ModelCard, function: Callable[[jax.Array], Any], source: Path | str
    ) -> None:
        height, *_ = shape = tuple(card.input_shape)
        if shape != models.image_shape(height):
            raise UserError(
                f"{source} needs images of shape {list(shape)}, but cifar-jax supports only square "
                "images with 3 channels"
            )
        self.image_shape = shape
        self.card = card
        self.function = function

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""
        return tuple(self.card.classes)

    @property
    def target(self) -> Target:
        """The size to which image files are resized, and how they become square."""
        return Target(self.image_shape[0], self.card.center_crop)

    @property
    def tta(self) -> TTA:
        """The test-time augmentation with which the training run evaluated the test images."""
        return TTA(**self.card.tta.model_dump())

    def predict(self, images: Images, tta: TTA | None = None) -> np.ndarray:
        """Return the class probabilities of images, float32 `[N, classes]`.

        Args:
          images: an image or a list of images. An image is the path of a file, a Pillow image, or a
            uint8 array `[H, W, 3]`, each of any size; the result for one image has N = 1. `images`
            may also be a uint8 array `[N, H, W, 3]` with the `image_shape` of the model.
          tta: test-time augmentation. None: one view of each image is used. `least_confident` is
            ignored, because the result for an image would depend on the other images.

        Raises:
          UserError: the array has another shape or type, or a file is not an image.
        """
        logits = self.logits(images, tta and tta._replace(least_confident=None))
        return softmax(logits).astype(np.float32)

    def logits(self, images: Images, tta: TTA | None = None) -> np.ndarray:
        """Return the logits of images, float32 `[N, classes]`.

        Arguments and exceptions are the same as for `predict`, with one difference: this method
        does not ignore `tta.least_confident`.
        """
        return self.outputs(images, tta).logits

    def outputs(self, images: Images, tta: TTA | None = None) -> Outputs:
        """Return logits with test-time augmentation, and logits of one view of each image.

        Arguments and exceptions are the same as for `logits`.
        """
        pixels = to_batch(images, self.card.white, self.target)
        if not len(pixels):
            nothing = np.zeros((0, len(self.classes)), np.float32)
            return Outputs(nothing, nothing)
        return apply_tta(partial(self._compute, self._compiled), pixels, tta)

    def features(self, images: Images) -> np.ndarray:
        """Return the features of images: the input of the last layer, float32 `[N, features]`.

        Arguments and exceptions are the same as for `predict`.

        Raises:
          UserError: the model is a StableHLO file, or a custom network whose last layer is not
            an `nn.Dense` with one output for each class.
        """
        pixels = to_batch(images, self.card.white, self.target)
        # If there are no images, call the network on a black image to get the number of features.
        batch = pixels if len(pixels) else np.zeros((1, *self.image_shape), np.uint8)
        try:
            return self._compute(self._compiled_features, batch)[: len(pixels)]
        # The features inside a layer such as `nn.remat` cannot be read.
        except jax.errors.UnexpectedTracerError:
            raise self._no_features() from None

    def _no_features(self) -> UserError:
        return UserError(
            f"the network {self.card.model.name} has no features, because its last layer is not a "
            "plain nn.Dense with one output for each class"
        )

    def _features(self, images: jax.Array) -> jax.Array:
        """Return the features of uint8 images. JAX can trace this method."""
        raise UserError(
            "a StableHLO file computes logits only: to get features, load the run folder or a "
            "safetensors file"
        )

    def _compute(self, function: Callable[[np.ndarray], Any], images: np.ndarray) -> np.ndarray:
        """Return the outputs of a compiled function for any number of images."""
        outputs = []
        largest = scale_count(self.batch_size, self.image_shape[0])
        for start in range(0, len(images), largest):
            batch = images[start : start + largest]
            # JAX compiles one program per batch size. Powers of two limit the number of programs.
            size = 1 << (len(batch) - 1).bit_length()
            padded = np.pad(batch, [(0, size - len(batch)), (0, 0), (0, 0), (0, 0)])
            outputs.append(np.asarray(function(padded))[: len(batch)])
        return np.concatenate(outputs)

    @cached_property
    def _compiled(self) -> Callable[[np.ndarray], jax.Array]:
        return jax.jit(self.function)

    @cached_property
    def _compiled_features(self) -> Callable[[np.ndarray], jax.Array]:
        return jax.jit(self._features)


class TrainedNetwork(Classifier):
    """A trained Linen module, with its weights and its model card.

    Args:
      card: the model card, which describes the network, its classes and its normalization.
      variables: arrays of the collections `params` and `batch_stats`.
      source: name of the model in error messages.
      custom: the custom model, if the network is not part of the package.

    Raises:
      UserError: the weights do not belong to the network that the card names, or `custom` is
        missing.
    """

    def __init__(
        self,
        card: ModelCard,
        variables: Mapping[str, Any],
        source: Path | str,
        custom: models.CustomModel | None = None,
    ) -> None:
        super().__init__(card, self.apply, source)
        if custom is None and card.model.name not in models.MODELS:
            raise UserError(_missing_code(card, source))
        options = card.model.model_dump(exclude={"name", "arguments"}) | card.model.arguments
        self.custom = custom = custom and replace(custom, image_size=self.image_shape[0])
        self.module: nn.Module = models.create(
            card.model.name, custom, **options, dtype=jnp.dtype(card.precision)
        )
        self.variables = models.match_variables(
            variables, models.variable_shapes(self.module, self.image_shape[0]), str(source)
        )

    def normalize(self, images: jax.Array) -> jax.Array:
        """Convert uint8 images to the normalized input of the network."""
        card = self.card
        return pipeline.normalize(
            images, tuple(card.mean), tuple(card.std), jnp.dtype(card.precision)
        )

    def apply(self, images: jax.Array) -> Any:
        """Return the logits of uint8 images. JAX can trace this method."""
        return self.module.apply(self.variables, self.normalize(images), train=False)

    def _features(self, images: jax.Array) -> jax.Array:
        calls: list[tuple[Any, Any]] = []

        def keep(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
            output = next_fun(*args, **kwargs)
            if isinstance(context.module, nn.Dense) and context.method_name == "__call__":
                calls.append((args[0] if args else kwargs["inputs"], output))
            return output

        with nn.intercept_methods(keep):
            self.apply(images)
        features, output = calls[-1] if calls else (None, None)
        if getattr(output, "shape", None) != (len(images), len(self.classes)):
            raise self._no_features()
        return jnp.asarray(features, jnp.float32)


def _missing_code(card: ModelCard, source: Path | str) -> str:
    """Return the error message if the user must name the code of a custom model."""
    if card.code is None:
        name = card.model.name
        return (
            f"{source} has the network {name}, which is not part of the package"
            f"{nearest(name, models.MODELS) or '.'} If it is your own, pass it in Python: model=..."
        )
    copy = RunFolder(Path(source)).code
    # The run folder has no copies of the modules that the file imports.
    file = copy if copy.is_file() and not card.code.modules else card.code.file
    return (
        f"{source} has a custom network, whose code is executed only if you name its file. Read "
        f"{file}, then add --code {file} (in Python: model=...)."
    )
