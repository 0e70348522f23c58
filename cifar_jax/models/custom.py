"""A model of one's own: any Linen module that classes images, as an experiment file defines it."""

import inspect
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cifar_jax.errors import UserError

IMAGE_SHAPE = (32, 32, 3)
COLLECTIONS = ("params", "batch_stats")
"""What is trained and saved. Others, such as `intermediates` that a module sows, are not kept."""

_KEEPS = 10
"""Classes to check a module with, before those of the data are known."""


@dataclass(frozen=True)
class CustomModel:
    """A module, and where it comes from.

    Raises:
      UserError: it is no Linen module, has no `num_classes`, or its `__call__` takes no `train`.
    """

    module: nn.Module | type[nn.Module]
    """The class, or an instance that has its fields set. `num_classes` and `dtype` are set anew."""
    name: str | None = None
    """As `Config.model.name` has it; None fits every name."""
    file: Path | None = None
    """Whose `MODEL` it is."""
    source: bytes = b""
    """What is in that file."""

    def __post_init__(self) -> None:
        kind: Any = self.module if isinstance(self.module, type) else type(self.module)
        if not issubclass(kind, nn.Module):
            raise UserError(
                f"{self} is to be a flax.linen.Module, its class or an instance, "
                f"not of type {kind.__name__}"
            )
        if "num_classes" not in self.fields:
            raise UserError(f"{self} has no num_classes: add the field `num_classes: int = 10`")
        parameters = inspect.signature(kind.__call__).parameters.values()
        if not any(p.name == "train" or p.kind is p.VAR_KEYWORD for p in parameters):
            raise UserError(f"{self} takes no train: let it be __call__(self, x, *, train=False)")

    def __str__(self) -> str:
        return f"{self.file}: MODEL" if self.file else "the model"

    @property
    def fields(self) -> dict[str, Any]:
        """Those of the module, by name."""
        return getattr(self.module, "__dataclass_fields__", {})

    def build(self, name: str, **options: Any) -> nn.Module:
        """The module with these fields, tried on shapes alone, in training and evaluation.

        Args:
          name: what the run calls it.
          **options: fields of the module. `dtype` float32 need not be one.

        Raises:
          UserError: the model has another name, or lacks a field; it cannot be called; its logits
            are not float32 `[N, num_classes]`; or it has variables beside COLLECTIONS.
        """
        if self.name not in (None, name):
            raise UserError(f"{self} is named {self.name!r}, not {name!r}")
        if "dtype" not in self.fields and options.get("dtype") == jnp.float32:
            del options["dtype"]
        for option in options:
            if option == "dtype" and option not in self.fields:
                raise UserError(
                    f"{self} has no dtype, which train.precision sets: add `dtype: Any = None`, "
                    "and hand it to the layers"
                )
            if option not in self.fields:
                raise UserError(f"{self} has no {option}: add the field, or unset model.{option}")
        options = {"num_classes": _KEEPS} | options
        try:
            make = self.module if isinstance(self.module, type) else self.module.clone
            model = make(**options)
        except TypeError as error:  # of a field without a default
            raise UserError(
                f"{self} cannot be made ({error}): give its fields defaults, or name an instance "
                "that has them set"
            ) from None
        self._try(model, options["num_classes"], options.get("dtype") or jnp.float32)
        return model

    def _try(self, model: nn.Module, classes: int, dtype: Any) -> None:
        key = jax.random.key(0)
        images = jax.ShapeDtypeStruct((2, *IMAGE_SHAPE), dtype)
        try:
            variables: Any = jax.eval_shape(lambda x: model.init(key, x, train=False), images)
            variables = nn.unbox(variables)
            for collection in variables:
                if collection not in COLLECTIONS:
                    raise UserError(
                        f"{self} has variables in {collection!r}: of those beside params, "
                        "batch_stats alone are kept from step to step"
                    )
            if not jax.tree.leaves(variables.get("params")):
                raise UserError(f"{self} has no parameters: there is nothing to train")
            for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
                if leaf.dtype != jnp.float32:
                    name = jax.tree_util.keystr(path, simple=True, separator="/")
                    raise UserError(
                        f"{self} has {name} in {leaf.dtype}: all that is kept is to be float32; "
                        "dtype is the type to compute in"
                    )

            def train(variables: Any, x: jax.Array) -> Any:
                return model.apply(
                    variables, x, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
                )

            evaluated = jax.eval_shape(
                lambda v, x: model.apply(v, x, train=False), variables, images
            )
            trained, updated = jax.eval_shape(train, variables, images)
            if updated.get("batch_stats", {}) != variables.get("batch_stats", {}):
                raise UserError(f"{self} has other batch_stats with train=True than without")
        except UserError:
            raise
        except Exception as error:  # whatever a person's code runs into
            raise UserError(f"{self} cannot be called: {self._told(error)}") from error
        for found in (evaluated, trained):
            if getattr(found, "shape", None) != (2, classes) or found.dtype != jnp.float32:
                raise UserError(
                    f"{self} gives {_described(found)} of 2 images; logits are to be "
                    f"float32 [2, {classes}], num_classes of them for each"
                )

    def _told(self, error: Exception) -> str:
        """In one line, with the place in the person's own file, if it is there."""
        why = next(iter(str(error).strip().splitlines()), "").rstrip(".")
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(self.file)]
        place = f" (line {lines[-1]})" if lines else ""
        return f"{type(error).__name__}: {why}{place}"


def _described(output: Any) -> str:
    if not hasattr(output, "shape"):
        return f"a {type(output).__name__}"
    return f"{output.dtype} {list(output.shape)}"
