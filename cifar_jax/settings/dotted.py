"""Settings by dotted name: flat, as a run's folder stores them, and as `--set key=value`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import NoneType
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from cifar_jax.errors import UserError
from cifar_jax.settings.fields import (
    IN_WHOLE,
    TYPES,
    Before,
    RuntimeOnly,
    Settings,
    described,
    groups,
    item,
    message,
    nearest,
    options,
    shown,
    tags,
)

S = TypeVar("S", bound=Settings)


def flatten(settings: Settings) -> dict[str, Any]:
    """Values by dotted name, in the order of the fields, as JSON has them."""

    def leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in tree.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{name}.")
            else:
                yield prefix + name, value

    return dict(leaves(settings.model_dump(mode="json"), ""))


def restore(cls: type[S], stored: Mapping[str, Any]) -> S:
    """The settings of which `flatten` made `stored`, in this version or in an earlier one.

    Raises:
      UserError: a setting that this version does not know, or a value that it does not take.
    """
    known = _fields(cls, stored)
    for name in stored:
        if name not in known:
            raise UserError(f"the run has a setting {shown(name)} that this version does not know")
    before = {
        name: mark.value
        for name, field in known.items()
        for mark in field.metadata
        if isinstance(mark, Before)
    }
    return _make(cls, before | dict(stored))


def part(settings: Settings, *, execution: bool) -> dict[str, Any]:
    """Of the flat settings those that are marked `RuntimeOnly`, or else those that are not."""
    flat = flatten(settings)
    known = _fields(type(settings), flat)
    return {name: value for name, value in flat.items() if _is_execution(known[name]) is execution}


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Where two flat dictionaries differ: name to (value in a, value in b), None where absent."""
    return {
        name: (a.get(name), b.get(name))
        for name in dict.fromkeys([*a, *b])
        if a.get(name) != b.get(name)
    }


def override(settings: S, changes: Iterable[str]) -> S:
    """`settings` with `key=value` changes applied, each typed and checked.

    A list is JSON. Another alternative keeps what it has in common with the one before it.

    Raises:
      UserError: for text without `=`, an unknown field (naming the nearest), or a value of the
        wrong type or out of range.
    """
    given = flatten(settings)
    texts: dict[str, str] = {}
    for change in changes:
        name, equals, text = (word.strip() for word in change.partition("="))
        if not equals:
            raise _refusal(change, "expected key=value, such as optimizer.lr=3e-4")
        given = _without(given, name) | {name: text}
        texts = _without(texts, name) | {name: text}
    known = _fields(type(settings), given)
    flat = {name: value for name, value in given.items() if name in known}
    for name, text in texts.items():
        if name not in known:
            raise _refusal(f"{name}={text}", f"no field {shown(name)}{nearest(name, known)}")
        flat[name] = _read(name, text, known[name])
    beside = {
        name: getattr(settings, name)
        for name, field in type(settings).model_fields.items()
        if field.exclude
    }
    return _make(type(settings), flat | beside)


def describe(cls: type[Settings]) -> list[dict[str, Any]]:
    """Every setting in the order of the fields, as an object of JSON.

    `name`, `type`, `default` (not where one must be given), `description`, `identity` (whether it
    makes a run the run that it is) and, if it is of one alternative only, `when` that is.
    """
    rows: list[dict[str, Any]] = []
    for name, field, when in _walk(cls, None):
        kind: Any = field.annotation
        row: dict[str, Any] = {"name": name, "type": described(kind, field)}
        if not field.is_required():
            row["default"] = TypeAdapter(kind).dump_python(field.default, mode="json")
        row["description"] = " ".join((field.description or "").split())
        row["identity"] = not _is_execution(field)
        rows.append(row | ({"when": when} if when else {}))
    return rows


def _without(flat: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Without `name`, what is in it (`averaging=none` ends `averaging.decay`), and the reverse."""
    return {
        other: value
        for other, value in flat.items()
        if not f"{other}.".startswith(f"{name}.") and not name.startswith(f"{other}.")
    }


def _make(cls: type[S], flat: Mapping[str, Any]) -> S:
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *path, last = name.split(".")
        branch = tree
        for step in path:
            branch = branch.setdefault(step, {})
        branch[last] = value
    try:
        return cls.model_validate(tree, context=IN_WHOLE)
    except ValidationError as error:
        raise UserError(message(cls, error)) from None


def _is_execution(field: FieldInfo) -> bool:
    return any(isinstance(mark, RuntimeOnly) for mark in field.metadata)


def _fields(cls: type[Settings], given: Mapping[str, Any]) -> dict[str, FieldInfo]:
    """Fields by dotted name, of the alternatives that the flat settings `given` choose."""
    return {name: field for name, field, _ in _walk(cls, given)}


def _walk(
    cls: type[Settings], given: Mapping[str, Any] | None, prefix: str = "", when: str = ""
) -> Iterator[tuple[str, FieldInfo, str]]:
    """Each field with its dotted name and its condition; without `given`, of all alternatives."""
    for own_name, field in cls.model_fields.items():
        if field.exclude:
            continue
        name, found = prefix + own_name, groups(field.annotation)
        optional = NoneType in options(field.annotation)
        inside = given is None or any(other.startswith(f"{name}.") for other in given)
        if not found or (optional and (given is None or not inside)):
            yield name, field, when
        if optional and not inside:
            continue
        if not field.discriminator:
            for group in found:
                yield from _walk(group, given, f"{name}.", when)
            continue
        key, alternatives = f"{name}.{field.discriminator}", tags(field)
        default = getattr(field.default, str(field.discriminator), None)
        chosen = None if given is None else given.get(key, default)
        yield key, _choice(list(alternatives), default, field.description), when
        for tag, group in alternatives.items():
            if tag == chosen or chosen not in list(alternatives):
                for row in _walk(group, given, f"{name}.", f"{key}={tag}"):
                    if row[0] != key:
                        yield row


def _choice(tags: list[str], default: str | None, description: str | None) -> FieldInfo:
    """The field that says which of the alternatives is meant."""
    kind: Any = Literal[*tags]
    if default is None:
        return FieldInfo(annotation=kind, description=description)
    choice = FieldInfo(annotation=kind, description=description, default=default)
    choice.metadata.append(Before(default))
    return choice


def _read(name: str, text: str, field: FieldInfo) -> Any:
    """The first reading of `text` that the field takes."""
    kind: Any = field.annotation
    if groups(kind) or item(kind):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, list | dict):
            return value  # whatever is wrong in it is told with its place
    adapter = TypeAdapter(kind, config=TYPES)
    expected = _kinds(name, field) if field.discriminator else described(kind)
    for reading in _READINGS:
        try:
            return adapter.validate_python(reading(text), context=IN_WHOLE)
        except ValidationError as error:
            if error.errors()[0]["type"] == "finite_number":
                expected = "a finite number"
        except (ValueError, KeyError):
            continue
    raise _refusal(f"{name}={text}", f"expected {expected}")


def _kinds(name: str, field: FieldInfo) -> str:
    """How each of the groups of a field is asked for."""
    return " or ".join([*(f"{name}.{field.discriminator}={tag}" for tag in tags(field)), "none"])


_READINGS: tuple[Callable[[str], Any], ...] = (
    lambda text: {"none": None}[text.lower()],
    str,
    lambda text: {"true": True, "false": False, "1": True, "0": False}[text.lower()],
    int,
    float,
)


def _refusal(change: str, why: str) -> UserError:
    printable = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in change)
    return UserError(f"--set {printable}: {why}")
