"""The base class of all settings, and functions that describe types and errors in words."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, model_validator
from pydantic.fields import FieldInfo

from cifar_jax.errors import UserError, nearest

STRICT = ConfigDict(strict=True, allow_inf_nan=False)
"""Pydantic options for strict types. An int is accepted as a float. No other type is converted. NaN
and infinity are refused."""
RAISE_AT_ROOT = object()
"""Pydantic context in which invalid `Settings` raise `ValidationError` instead of `UserError`. The
caller then makes the `UserError`, because only the caller knows the full dotted name."""


@dataclass(frozen=True)
class RuntimeOnly:
    """Marks a setting that may change when a run is resumed.

    Such a setting affects results only by rounding errors, or not at all.
    """


class Settings(BaseModel):
    """Base class of groups of settings. Instances are immutable, and types and ranges are strict.

    A field is a scalar, another group, or one of the following:

    - a list: `Annotated[tuple[Phase, ...], Field(strict=False)]`
    - an optional group: `Average | None`
    - one of several groups: `Annotated[Ema | Lookahead | None, Field(discriminator="name")]`
    - keyword arguments: `dict[str, bool | int | float | str]`
    - a value that is not a setting: `Annotated[..., Field(exclude=True)]`
    """

    model_config = STRICT | ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    is_root: ClassVar[bool] = False
    """Whether dotted names start in this class, such as `Config`. In error messages about other
    classes, dotted names start with the name of the class."""

    @model_validator(mode="wrap")
    @classmethod
    def _validate(cls, values: Any, handler: Any, info: ValidationInfo) -> Self:
        try:
            settings = handler(values)
        except ValidationError as error:
            if info.context is RAISE_AT_ROOT:
                raise
            raise UserError(explain(cls, error)) from None
        for name, value in settings:
            for key in value if isinstance(value, dict) else ():
                if not key.isidentifier():
                    owner = cls.__name__.lower()
                    raise UserError(
                        f"{owner}.{name}: {shorten(key)} is not a valid name of a Python argument"
                    )
        return settings

    def __hash__(self) -> int:
        values = self.__dict__.values()
        return hash(tuple(frozenset(v.items()) if isinstance(v, dict) else v for v in values))


def members(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union type, or the type itself, without metadata of `Annotated`."""
    # `Literal[...] | None` is a typing.Union, but `int | None` is a types.UnionType.
    is_union = typing.get_origin(annotation) in (UnionType, typing.Union)
    types = typing.get_args(annotation) if is_union else (annotation,)
    is_annotated = [typing.get_origin(kind) is typing.Annotated for kind in types]
    return tuple(
        typing.get_args(kind)[0] if annotated else kind
        for kind, annotated in zip(types, is_annotated, strict=True)
    )


def groups(annotation: Any) -> list[type[Settings]]:
    """Return the `Settings` classes that a type annotation allows."""
    return [m for m in members(annotation) if isinstance(m, type) and issubclass(m, Settings)]


def list_item(annotation: Any) -> Any:
    """Return the item type of a list annotation, or None if the type is not a list."""
    lists = (m for m in members(annotation) if typing.get_origin(m) is tuple)
    return next((typing.get_args(member)[0] for member in lists), None)


def dict_value(annotation: Any) -> Any:
    """Return the value type of a dictionary annotation, or None if the type is not a dictionary."""
    return typing.get_args(annotation)[1] if typing.get_origin(annotation) is dict else None


def tags(field: FieldInfo) -> dict[str, type[Settings]]:
    """Return the `Settings` classes of a union field, by the discriminator value of each class."""
    return {
        tag: group
        for group in groups(field.annotation)
        for tag in typing.get_args(group.model_fields[str(field.discriminator)].annotation)
    }


def explain(cls: type[Settings], error: ValidationError) -> str:
    """Return the first validation error in one line, with the dotted name of the setting.

    If a setting is missing, the first unknown setting is named too, because it may be the missing
    setting with a wrong spelling.
    """
    first, *others = error.errors(include_url=False)
    text = _explain_one(cls, first)
    unknown = [other for other in others if other["type"] == "extra_forbidden"]
    if first["type"] == "missing" and unknown:
        text += f", and {_explain_one(cls, unknown[0])}"
    return text


def _explain_one(cls: type[Settings], fault: Any) -> str:
    value, kind = fault["input"], fault["type"]
    path: list[Any] = [] if cls.is_root else [cls.__name__.lower()]
    owner: type[Settings] = cls
    annotation: Any = cls
    field: FieldInfo | None = None
    for step in fault["loc"]:
        if dict_value(annotation):
            annotation, field = dict_value(annotation), None
        elif isinstance(step, int):
            annotation, field = list_item(annotation), None
        elif field and field.discriminator and step in tags(field):
            annotation = tags(field)[step]
            continue
        elif inner := groups(annotation):
            owner = inner[0]
            field = owner.model_fields.get(step)
            annotation = field and field.annotation
        elif step == "[key]":
            annotation = str
            continue
        else:
            continue  # Pydantic adds the name of a type to the path of a union field.
        path.append(step if str(step).isprintable() else shorten(step))
    name = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    name = name.removeprefix(".")
    if kind == "missing":
        return f"the setting {name} is missing"
    if kind == "extra_forbidden":
        parent = name.rpartition(".")[0]
        known = [f"{parent}.{field}".removeprefix(".") for field in owner.model_fields]
        everything = "; `cifar-jax settings` lists all"
        if "[" in name:  # `cifar-jax settings` does not show the settings of list items.
            everything = f"; choose from {', '.join(owner.model_fields)}"
        hint = nearest(name, known) or everything
        return f"there is no setting {shorten(name)}{hint}"
    if kind.startswith("union_tag") and field:
        key = str(field.discriminator)
        expected = f"one of {', '.join(tags(field))}"
        if kind == "union_tag_not_found" and isinstance(value, dict) and value:
            setting, tag = next(iter(value)), next(iter(tags(field)))
            setting = setting if str(setting).isprintable() else shorten(setting)
            return f"{name}.{setting} needs {name}.{key}, {expected}: add --set {name}.{key}={tag}"
        return f"{name}.{key} is {shorten(value.get(key))}, but it must be {expected}"
    return f"{name} is {shorten(value)}, but it must be {describe_type(annotation, field)}"


def shorten(value: Any) -> str:
    """Return the `repr` of a value in one line, cut off if it is long."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    return " ".join(f"{value!r:.100}".split())


def describe_type(annotation: Any, field: FieldInfo | None = None) -> str:
    """Describe a type in words. If `field` is given, include its range."""
    words = [_describe_member(m) for m in members(annotation) if m is not NoneType]
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [
        f"{signs[name]} {getattr(constraint, name)}"
        for constraint in (field.metadata if field else ())
        for name in signs
        if hasattr(constraint, name)
    ]
    if bounds:
        words[-1] += " " + " and ".join(bounds)
    if NoneType in members(annotation):
        words.append("none")
    *first, last = words
    return f"{', '.join(first)}{',' if bounds else ''} or {last}" if first else last


def _describe_member(member: Any) -> str:
    if typing.get_origin(member) is Literal:
        values = [str(value) for value in typing.get_args(member)]
        return f"one of {', '.join(values)}" if len(values) > 1 else values[0]
    if inner := list_item(member):
        return f"a list (each item: {describe_type(inner)})"
    if inner := dict_value(member):
        return f"named values (each: {describe_type(inner)})"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names.get(member) or f"an object {{{', '.join(member.model_fields)}}}"


def example(annotation: Any, field: FieldInfo | None = None) -> Any:
    """Return a JSON value that is an example of a type, for an error message.

    The example of a group of settings contains all required fields, and at least two fields.
    """
    if item := list_item(annotation):
        return [example(item)]
    if field and field.discriminator:
        tag, group = next(iter(tags(field).items()))
        return {str(field.discriminator): tag} | example(group)
    if inner := groups(annotation):
        chosen = sorted(inner[0].model_fields.items(), key=lambda entry: not entry[1].is_required())
        needed = max(2, sum(f.is_required() for _, f in chosen))
        return {name: example(f.annotation, f) for name, f in chosen[:needed]}
    values = {int: 16, float: 0.5, bool: True, str: "text"}
    for member in members(annotation):
        if typing.get_origin(member) is Literal:
            return typing.get_args(member)[0]
        if member in values:
            return values[member]
    return None
