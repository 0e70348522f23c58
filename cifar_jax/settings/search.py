"""Search spaces of hyperparameter studies: the searched settings and their possible values."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cifar_jax.errors import UserError
from cifar_jax.settings import dotted
from cifar_jax.settings.dotted import as_text, flatten, override
from cifar_jax.settings.fields import Settings

_EXAMPLE = 'SEARCH = {"optimizer.lr": Range(0.001, 0.1, log=True), "batch_size": [64, 128]}'


@dataclass(frozen=True)
class Range:
    """All numbers from `low` to `high`. For an integer setting, only the integers."""

    low: float
    high: float
    log: bool = False
    """Whether to search on a logarithmic scale, which suits learning rates."""

    def __post_init__(self) -> None:
        if not all(isinstance(end, int | float) for end in (self.low, self.high)):
            raise UserError(f"{self}: low and high must be numbers")
        if not self.low < self.high:
            raise UserError(f"{self}: low must be less than high")
        if self.log and self.low <= 0:
            raise UserError(f"{self}: with log=True, low must be greater than 0")


Space = Mapping[str, Range | Sequence[Any]]
"""Maps the dotted name of each searched setting to a range or a list of values."""


def parse(text: str) -> tuple[str, Range | Sequence[str]]:
    """Parse `NAME=LOW..HIGH[:log]` or `NAME=VALUE,VALUE` to a setting and its values.

    >>> parse("optimizer.lr=0.01..1:log")
    ('optimizer.lr', Range(low=0.01, high=1.0, log=True))
    >>> parse("batch_size=64,128")
    ('batch_size', ['64', '128'])
    """
    name, _, values = text.partition("=")
    low, dots, high = values.partition("..")
    is_range = dots and "/" not in values  # `../a,../b` are paths.
    if not is_range and values:
        return name.strip(), [value.strip() for value in values.split(",")]
    high, colon, scale = high.partition(":")
    try:
        if scale != "log" and colon:
            raise ValueError
        return name.strip(), Range(float(low), float(high), log=bool(colon))
    except ValueError:
        raise UserError(
            f"{text}: expected a range such as optimizer.lr=0.01..1:log, or values such as "
            "batch_size=64,128"
        ) from None


def check(settings: Settings, search: Any, fixed: Collection[str] = ()) -> Space:
    """Return a search space whose values have the types of the settings.

    Args:
      settings: the settings that all trials share.
      search: the search space, as a user wrote it.
      fixed: names of settings that must not be searched.

    Raises:
      UserError: `search` is not a search space, names an unknown setting, or has an invalid value.
    """
    if not isinstance(search, Mapping) or not search:
        raise UserError(f"expected settings and their values, such as {_EXAMPLE}")
    for name, values in search.items():
        if isinstance(values, str) or not isinstance(values, Range | Sequence) or not _ends(values):
            raise UserError(
                f"{name} is {values!r:.100}, but it must be a Range or a list of values"
            )
    first = {name: _ends(values)[0] for name, values in search.items()}
    space: dict[str, Range | Sequence[Any]] = {}
    for name, values in search.items():
        typed = [_typed(settings, first, name, value) for value in _ends(values)]
        if isinstance(values, Range):
            if any(isinstance(end, bool) or not isinstance(end, int | float) for end in typed):
                raise UserError(f"{name} is not a number: list its values instead of a Range")
            space[name] = Range(*typed, log=values.log)
        else:
            space[name] = [value for i, value in enumerate(typed) if value not in typed[:i]]
        if name in fixed or name in dotted.part(settings, runtime_only=True):
            raise UserError(f"{name} cannot be searched: set it to one value for the whole study")
    return space


def changes(values: Mapping[str, Any]) -> list[str]:
    """Return settings as `key=value` texts for `dotted.override`."""
    return [f"{name}={as_text(value)}" for name, value in values.items()]


def _ends(values: Range | Sequence[Any]) -> Sequence[Any]:
    """Return the two ends of a range, or all values of a list."""
    return (values.low, values.high) if isinstance(values, Range) else values


def _typed(settings: Settings, first: Mapping[str, Any], name: str, value: Any) -> Any:
    """Return a value of the setting `name`, converted to the type of the setting.

    The value must be valid by itself, or together with the first values of the other searched
    settings. For example, `averaging.decay` is valid only with `averaging.name`.
    """
    for values in ({name: value}, {**first, name: value}):
        try:
            return flatten(override(settings, changes(values))).get(name, value)
        except UserError as error:
            message = str(error).removeprefix("--set ")
    raise UserError(message)
