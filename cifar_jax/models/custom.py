"""A model that an experiment file defines: any Linen module that classifies images."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict

from cifar_jax.errors import UserError, one_line

IMAGE_SHAPE = (32, 32, 3)
"""Height, width and number of channels of an image of CIFAR-10."""


@dataclass(frozen=True)
class CustomModel:
    """A model that an experiment file defines as `MODEL`.

    Raises:
      UserError: `module` is not a Linen module, has no field `num_classes`, or its `__call__` does
        not take `train`.
    """

    module: nn.Module | type[nn.Module]
    """The Linen class, or an instance. Its fields `num_classes` and `dtype` are replaced."""
    name: str | None = None
    """Value of the experiment's setting `model.name`. None: every name is accepted."""
    file: Path | None = None
    """Path of the experiment file, or None if there is no file."""
    source: bytes = b""
    """Content of the experiment file. Empty if there is no file."""
    image_size: int = IMAGE_SHAPE[0]
    """Height and width, in pixels, of the images for which the module is checked."""

    def __post_init__(self) -> None:
        if not issubclass(self._module_class, nn.Module):
            raise UserError(
                f"{self} must be a subclass of flax.linen.Module or an instance of one, but its "
                f"class is {self._module_class.__name__}"
            )
        if "num_classes" not in self._module_class.__dataclass_fields__:
            raise UserError(f"{self} has no field num_classes: add `num_classes: int = 10`")
        parameters = inspect.signature(self._module_class.__call__).parameters.values()
        if not any(p.name == "train" or p.kind is p.VAR_KEYWORD for p in parameters):
            raise UserError(
                f"{self} has no argument train: define __call__(self, x, *, train=False)"
            )

    def __str__(self) -> str:
        return f"{self.file}: MODEL" if self.file else "the model"

    @property
    def _module_class(self) -> Any:
        return self.module if isinstance(self.module, type) else type(self.module)

    def build(self, name: str, **options: Any) -> nn.Module:
        """Set fields of the module, check that it can be trained, and return it.

        The check traces the module with abstract arrays, which have a shape but no values.

        Args:
          name: value of the run's setting `model.name`.
          **options: values of the module's fields. A module without the field `dtype` must use
            float32.

        Raises:
          UserError: the model has another name, lacks a field, fails in training or evaluation,
            does not return float32 logits `[N, num_classes]`, or has variables other than float32
            `params` and `batch_stats`.
        """
        if self.name not in (None, name):
            raise UserError(f"{self} defines the network {self.name!r}, not {name!r}")
        has_dtype = "dtype" in self._module_class.__dataclass_fields__
        if not has_dtype and options.get("dtype") == jnp.float32:
            del options["dtype"]
        validate_options(str(self), self._module_class, options)
        options.setdefault("num_classes", 10)  # The default without a data set.
        try:
            construct = self.module if isinstance(self.module, type) else self.module.clone
            model = construct(**options)
        except TypeError as error:  # For example, a field has no default value.
            raise UserError(
                f"{self} cannot be constructed ({error}): give its fields defaults, or set MODEL "
                "to an instance"
            ) from None
        self._validate(model, options["num_classes"], options.get("dtype") or jnp.float32)
        return model

    def _validate(self, model: nn.Module, classes: int, dtype: Any) -> None:
        """Raise UserError if the model cannot be trained or evaluated."""
        key = jax.random.key(0)
        images = jax.ShapeDtypeStruct((2, *image_shape(self.image_size)), dtype)

        def evaluate(variables: Any, x: jax.Array) -> Any:
            return model.apply(variables, x, train=False)

        def train(variables: Any, x: jax.Array) -> Any:
            rngs = {"dropout": key}
            return model.apply(variables, x, train=True, rngs=rngs, mutable=["batch_stats"])

        variables = self._trace(lambda x: model.init(key, x, train=False), images)
        variables = nn.unbox(variables)
        if others := sorted(variables.keys() - {"params", "batch_stats"}):
            raise UserError(
                f"{self} has variables in {others[0]!r}: only params and batch_stats are supported"
            )
        if not jax.tree.leaves(variables.get("params")):
            raise UserError(f"{self} has no parameters: there is nothing to train")
        leaves: dict[str, Any] = flatten_dict(variables, sep="/")
        for path, leaf in leaves.items():
            if getattr(leaf, "dtype", None) != jnp.float32:
                raise UserError(
                    f"{self} has {path} in {getattr(leaf, 'dtype', type(leaf).__name__)}: "
                    "variables must be float32 arrays; dtype is only the type of the computation"
                )
        logits = self._trace(evaluate, variables, images)
        train_logits, updated = self._trace(train, variables, images)
        if updated.get("batch_stats", {}) != variables.get("batch_stats", {}):
            raise UserError(
                f"{self} changes the structure of batch_stats when train=True: use the same "
                "BatchNorm layers for both values of train"
            )
        for output in (logits, train_logits):
            if getattr(output, "shape", None) != (2, classes) or output.dtype != jnp.float32:
                raise UserError(
                    f"{self} returns {_describe(output)} for 2 images with num_classes={classes}: "
                    f"it must return logits, float32 [2, {classes}]"
                )

    def _trace(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return `jax.eval_shape(function, *arguments)`. Turn any exception into a UserError."""
        try:
            return jax.eval_shape(function, *arguments)
        except Exception as error:  # A custom module may raise any exception.
            reason = one_line(error, self.file)
            raise UserError(f"{self} fails when it is called: {reason}") from error


def image_shape(image_size: int) -> tuple[int, int, int]:
    """Return height, width and number of channels of a square image."""
    return image_size, image_size, IMAGE_SHAPE[2]


def validate_options(owner: str, module_class: Any, options: Mapping[str, Any]) -> None:
    """Raise UserError if an option is not a field of the module.

    `owner` is the name of the module in the error message.
    """
    fields = [name for name in module_class.__dataclass_fields__ if name not in ("name", "parent")]
    for option in options:
        if option in fields:
            continue
        if option == "dtype":
            raise UserError(
                f"{owner} has no field dtype, which train.precision sets: add `dtype: Any = None` "
                "and pass it to the layers"
            )
        others = [name for name in fields if name not in ("num_classes", "dtype")]
        known = f". Its options are {', '.join(others)}." if others else ""
        setting = "model." if option in ("dropout", "pooling") else "model.arguments."
        raise UserError(
            f"{owner} has no option {option}: remove the setting {setting}{option}{known}"
        )


def _describe(output: Any) -> str:
    if not hasattr(output, "shape"):
        return f"a {type(output).__name__}"
    return f"{output.dtype} {list(output.shape)}"
