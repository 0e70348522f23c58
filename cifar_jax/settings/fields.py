"""Groups of typed fields, checked when made by pydantic; a fault is told in one line."""

from __future__ import annotations

import difflib
import reprlib
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic.fields import FieldInfo

from cifar_jax.errors import UserError

TYPES = ConfigDict(strict=True, allow_inf_nan=False)
"""No value is taken for one of another type, but whole numbers for numbers."""
IN_WHOLE = object()
"""The context in which a group leaves its faults to the whole, which knows the group's place."""


@dataclass(frozen=True)
class RuntimeOnly:
    """Marks a field that says how a run is carried out: it changes no result beyond rounding.

    It may differ from start to start; all others make a run the run that it is.
    """


@dataclass(frozen=True)
class Before:
    """Marks a field that came later, and whose default is not what the code did before it.

    A run that was stored without it has this value.
    """

    value: Any


class Settings(BaseModel):
    """A group of fields: keyword only, frozen, each of its very type and in its range.

    A list is `Annotated[tuple[Phase, ...], Field(strict=False)]`, one of several groups
    `Annotated[Sgd | Adam, Field(discriminator="name")]`, and a group that may be absent
    `Averaging | None`. A field of `Field(exclude=True)` is no setting.
    """

    model_config = TYPES | ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    is_root: ClassVar[bool] = False
    """Whether this is no group of another: its fields are then named without its own name."""

    @model_validator(mode="wrap")
    @classmethod
    def _tell(
        cls, values: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo
    ) -> Self:
        try:
            return handler(values)
        except ValidationError as error:
            if info.context is IN_WHOLE:
                raise
            raise UserError(message(cls, error)) from None


def options(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, else the type itself; `Literal[…] | None` is no UnionType."""
    is_union = typing.get_origin(annotation) in (UnionType, typing.Union)
    return typing.get_args(annotation) if is_union else (annotation,)


def groups(annotation: Any) -> list[type[Settings]]:
    """The groups among the alternatives of a type."""
    return [o for o in options(annotation) if isinstance(o, type) and issubclass(o, Settings)]


def item(annotation: Any) -> Any:
    """What a list holds; None for what is no list."""
    lists = (o for o in options(annotation) if typing.get_origin(o) is tuple)
    return next((typing.get_args(option)[0] for option in lists), None)


def tags(field: FieldInfo) -> dict[str, type[Settings]]:
    """The groups of a field by the name that tells them apart."""
    return {
        tag: group
        for group in groups(field.annotation)
        for tag in typing.get_args(group.model_fields[str(field.discriminator)].annotation)
    }


def message(cls: type[Settings], error: ValidationError) -> str:
    """One line of the first fault, by the field's dotted name."""
    fault = error.errors(include_url=False)[0]
    value, kind = fault["input"], fault["type"]
    place = [] if cls.is_root else [cls.__name__.lower()]
    owner: type[Settings] = cls
    annotation: Any = cls
    field: FieldInfo | None = None
    for step in fault["loc"]:
        if isinstance(step, int):
            annotation, field = item(annotation), None
        elif field and field.discriminator and step in tags(field):
            annotation = tags(field)[step]
            continue
        elif found := groups(annotation):
            owner = found[0]
            field = owner.model_fields.get(step)
            annotation = field and field.annotation
        else:
            continue  # which type of a union was tried
        place.append(str(step))
    name = ".".join(place)
    if kind == "missing":
        return f"{name} is missing"
    if kind == "extra_forbidden":
        return f"no field {shown(name)}{nearest(place[-1], owner.model_fields)}"
    expected = described(annotation)
    if kind == "finite_number":
        expected = "a finite number"
    elif kind.startswith("union_tag") and field:
        name, expected = f"{name}.{field.discriminator}", f"one of {', '.join(tags(field))}"
        if kind == "union_tag_not_found":
            return f"{name} is missing: it must be {expected}"
        value = value[field.discriminator]
    elif not (kind.endswith("_type") or kind == "literal_error"):
        expected = field and limits(field)
    return f"{name} must be {expected or fault['msg']}, not {shown(value)}"


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80


def shown(value: Any) -> str:
    """`value` as Python writes it, in one line and not too long."""
    return " ".join(_REPR.repr(value).split())


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint at what was meant, by the whole dotted name or by its last part."""
    names = list(names)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if not close:
        last_parts = {n.rpartition(".")[2]: n for n in names}
        part = name.rpartition(".")[2]
        close = [last_parts[m] for m in difflib.get_close_matches(part, last_parts, n=1)]
    return f"; did you mean {close[0]}?" if close else "; see `cifar-jax settings`"


def described(annotation: Any, field: FieldInfo | None = None) -> str:
    """A type in words, and the range of its field where that is given."""
    alternatives = [o for o in options(annotation) if o is not NoneType]
    words = " or ".join(map(_option_described, alternatives))
    if field and (bounds := limits(field)):
        words += f", {bounds}"
    if NoneType in options(annotation):
        words += ", or none" if "," in words else " or none"
    return words


def _option_described(option: Any) -> str:
    if typing.get_origin(option) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(option)))
    if held := item(option):
        return f"a list ({described(held)} each)"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names.get(option) or f"{option.__name__}(…)"


def limits(field: FieldInfo) -> str:
    """The range of a field, in words; empty where it has none."""
    bounds = {
        name: bound
        for mark in field.metadata
        for name in ("ge", "gt", "le", "lt")
        if (bound := getattr(mark, name, None)) is not None
    }
    match bounds:
        case {"ge": low, "le": high}:
            return f"in {low}..{high}"
        case {"ge": low, "lt": high}:
            return f"in [{low}, {high})"
        case {"gt": low, "lt": high}:
            return f"in ({low}, {high})"
        case {"gt": low, "le": high}:
            return f"in ({low}, {high}]"
        case {"gt": 0}:
            return "positive"
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    return "".join(f"{words[name]} {bound}" for name, bound in bounds.items())
