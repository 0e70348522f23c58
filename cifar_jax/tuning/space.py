"""Convert between search spaces and the parameters of Optuna.

Optuna receives each value of a list as text, because it does not accept all types of values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from cifar_jax.config import Config, Range, as_text, flatten
from cifar_jax.settings.search import Space


def distribution(options: Range | Sequence[Any]) -> BaseDistribution:
    """Return the Optuna distribution of a searched setting."""
    if not isinstance(options, Range):
        return CategoricalDistribution([as_text(option) for option in options])
    if isinstance(options.low, int) and isinstance(options.high, int):
        return IntDistribution(options.low, options.high, log=options.log)
    return FloatDistribution(options.low, options.high, log=options.log)


def from_params(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the settings. Floats are rounded to four significant digits."""
    values: dict[str, Any] = {}
    for name, value in params.items():
        options = space[name]
        if not isinstance(options, Range):
            value = next(option for option in options if as_text(option) == value)
        elif isinstance(value, float):
            value = min(max(float(f"{value:.4g}"), options.low), options.high)
        values[name] = value
    return values


def as_params(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the Optuna parameters for values of the settings."""
    return {n: v if isinstance(space[n], Range) else as_text(v) for n, v in values.items()}


def experiment_values(space: Space, config: Config) -> dict[str, Any] | None:
    """Return a config's values of the searched settings, or None if the space excludes them."""
    flat = flatten(config)
    values = {name: flat.get(name) for name in space}
    return values if all(_allows(space[n], value) for n, value in values.items()) else None


def _allows(options: Range | Sequence[Any], value: Any) -> bool:
    if isinstance(options, Range):
        return isinstance(value, int | float) and options.low <= value <= options.high
    return value in options
