"""Convert settings to and from dotted names, such as `optimizer.lr`.

Flat dictionaries of settings and the option `--set key=value` use dotted names as keys.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from types import NoneType
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from cifar_jax.errors import UserError, nearest
from cifar_jax.settings import fields
from cifar_jax.settings.fields import RuntimeOnly, Settings, shorten

S = TypeVar("S", bound=Settings)


def flatten(settings: Settings) -> dict[str, Any]:
    """Return settings as a flat dictionary that maps dotted names to JSON values."""

    def leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in tree.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{name}.")
            else:
                yield prefix + name, value

    return dict(leaves(settings.model_dump(mode="json"), ""))


def restore(cls: type[S], flat: Mapping[str, Any]) -> S:
    """Return settings from a flat dictionary that `flatten` has made.

    Settings that are missing in the dictionary get their default values.

    Raises:
      UserError: a setting is unknown or has an invalid value, or a required setting is missing.
    """
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, last = name.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
            if not isinstance(branch, dict):
                raise UserError(
                    f"there is no setting {shorten(name)}, because {shorten(parent)} is a single "
                    "value"
                )
        branch[last] = value
    try:
        return cls.model_validate(tree, context=fields.RAISE_AT_ROOT)
    except ValidationError as error:
        raise UserError(fields.explain(cls, error)) from None


def part(settings: Settings, *, runtime_only: bool) -> dict[str, Any]:
    """Return the settings with the mark `RuntimeOnly`, or all other settings, by dotted name."""
    marked = {setting.name for setting in _walk(type(settings)) if setting.is_runtime_only}
    return {n: v for n, v in flatten(settings).items() if (n in marked) is runtime_only}


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the entries in which two flat dictionaries differ.

    The result maps a name to the pair of its values in `a` and `b`. A missing value is None.
    """
    names = dict.fromkeys([*a, *b])
    return {name: (a.get(name), b.get(name)) for name in names if a.get(name) != b.get(name)}


def override(settings: S, changes: Iterable[str]) -> S:
    """Return a copy of `settings` with changes such as `epochs=2`.

    Lists are written as JSON. A change cannot add a key to a dictionary or change the type of a
    value. A change such as `averaging.name=ema` selects another group of settings. Settings that
    exist in both groups keep their values.

    Raises:
      UserError: a change has no `=`, names an unknown setting, or has an invalid value.
    """
    cls = type(settings)
    original = flatten(settings)
    flat: dict[str, Any] = original
    texts: dict[str, str] = {}
    for change in changes:
        name, equals, text = (word.strip() for word in change.partition("="))
        if not equals:
            raise _error(change, "expected key=value, such as optimizer.lr=3e-4")
        flat = _without(flat, name) | {name: text}
        texts = _without(texts, name) | {name: text}
    known = {
        name: field
        for name, field, choice in _walk(cls)
        if not choice or flat.get(choice[0], choice[1]) == choice[1]
    }
    dicts = [name for name, field in known.items() if fields.dict_value(field.annotation)]
    for name in dicts:
        del known[name]
        keys = [key for key in original if key.startswith(f"{name}.")]
        known |= {key: FieldInfo(annotation=type(original[key])) for key in keys}
    flat = {name: flat[name] for name in known if name in flat}
    flat |= {name: _parse(name, texts[name], known[name]) for name in flat if name in texts}
    for name, text in texts.items():
        if name not in known:
            raise _error(
                f"{name}={text}", f"there is no setting {shorten(name)}{_hint(name, known, dicts)}"
            )
    excluded = [name for name, field in cls.model_fields.items() if field.exclude]
    return restore(cls, flat).model_copy(update={n: getattr(settings, n) for n in excluded})


def as_text(value: Any) -> str:
    """Return the value of a setting as text for `--set`. Whole numbers have no `.0`."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    if value is None:
        return "none"
    return json.dumps(value) if isinstance(value, bool | list | dict) else str(value)


def describe(cls: type[Settings]) -> list[dict[str, Any]]:
    """Return a JSON-compatible description of every setting, in the order of the fields.

    Each description has these keys:

    - `name`: the dotted name
    - `type`: the type in words
    - `default`: the default value; absent if the setting is required
    - `description`: the docstring of the setting
    - `identity`: whether the setting can change the result of a run, unlike `RuntimeOnly` settings
    - `when`: the setting exists only with this choice, such as `averaging.name=ema`; usually absent
    """
    rows = []
    for setting in _walk(cls):
        field = setting.field
        kind: Any = field.annotation
        row: dict[str, Any] = {"name": setting.name, "type": fields.describe_type(kind, field)}
        if not field.is_required():
            default = field.get_default(call_default_factory=True)
            row["default"] = TypeAdapter(kind).dump_python(default, mode="json")
        row["description"] = " ".join((field.description or "").split())
        row["identity"] = not setting.is_runtime_only
        rows.append(row | ({"when": "=".join(setting.choice)} if setting.choice else {}))
    return rows


class _Setting(NamedTuple):
    name: str
    field: FieldInfo
    choice: tuple[str, str] | None
    """Name and value of another setting that this setting requires, such as ("averaging.name",
    "ema"). None: the setting always exists."""

    @property
    def is_runtime_only(self) -> bool:
        return any(isinstance(mark, RuntimeOnly) for mark in self.field.metadata)


def _walk(
    cls: type[Settings], prefix: str = "", choice: tuple[str, str] | None = None
) -> Iterator[_Setting]:
    """Yield all settings of a class.

    If a field can hold several groups of settings, the settings of all these groups are yielded.
    """
    for field_name, field in cls.model_fields.items():
        name, groups = prefix + field_name, fields.groups(field.annotation)
        if field.exclude:
            continue
        if not groups or NoneType in fields.members(field.annotation):
            yield _Setting(name, field, choice)
        if not field.discriminator:
            for group in groups:
                yield from _walk(group, f"{name}.", choice)
            continue
        key = f"{name}.{field.discriminator}"
        kind: Any = Literal[*fields.tags(field)]
        discriminator = FieldInfo(annotation=kind, description=field.description)
        yield _Setting(key, discriminator, choice)
        for tag, group in fields.tags(field).items():
            settings = _walk(group, f"{name}.", (key, tag))
            yield from (setting for setting in settings if setting.name != key)


def _without(flat: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return `flat` without the setting `name`, its parents and its children.

    For example, the parent of `a.b` is `a`, and a child of `a.b` is `a.b.c`.
    """
    return {
        other: value
        for other, value in flat.items()
        if not f"{other}.".startswith(f"{name}.") and not name.startswith(f"{other}.")
    }


def _parse(name: str, text: str, field: FieldInfo) -> Any:
    """Convert text to the type of a setting. Ranges and lists are checked later, by `restore`."""
    kind: Any = field.annotation
    if fields.groups(kind) or fields.list_item(kind):
        with suppress(ValueError, RecursionError):
            if isinstance(value := json.loads(text), list | dict):
                return value
    adapter = TypeAdapter(kind, config=fields.STRICT)
    for value in _readings(text):
        with suppress(ValidationError):
            return adapter.validate_python(value, context=fields.RAISE_AT_ROOT)
    expected = fields.describe_type(kind, field)
    is_only_a_list = all(fields.list_item(m) or m is NoneType for m in fields.members(kind))
    if is_only_a_list:
        problem = "" if _is_json(text) else "not valid JSON; "
        such_as = json.dumps(fields.example(kind))
        raise _error(f"{name}={text}", f"{problem}expected a list such as {such_as}")
    if field.discriminator:
        choices = [f"--set {name}.{field.discriminator}={tag}" for tag in fields.tags(field)]
        raise _error(f"{name}={text}", f"write {', '.join(choices)} or --set {name}=none")
    raise _error(f"{name}={text}", f"expected {expected}")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _readings(text: str) -> Iterator[Any]:
    """Yield the values that a text can stand for: None, a string, a bool, an int or a float."""
    if text.lower() == "none":
        yield None
    yield text
    flags = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() in flags:
        yield flags[text.lower()]
    for number in (int, float):
        with suppress(ValueError):
            yield number(text)


def _hint(name: str, known: Iterable[str], dicts: Iterable[str]) -> str:
    for other in known:
        if other.startswith(f"{name}."):
            return f"; did you mean {other}?"
    parent = name.rpartition(".")[0]
    add = f"; add it to {parent} in the experiment file first" if parent in dicts else ""
    return nearest(name, known) or add or "; `cifar-jax settings` lists all"


def _error(change: str, reason: str) -> UserError:
    printable = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in change)
    return UserError(f"--set {printable}: {reason}")
