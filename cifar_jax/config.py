"""What a run is: frozen dataclasses, validated when made, and the `--set key=value` overrides.

Every field says what it means and its unit. Nothing here imports beyond the standard library, so
that an experiment file stays data and the command line starts at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cifar_jax.errors import UserError


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


class _Settings:
    """Checks, when made, that every field is of its declared type, which Python leaves undone."""

    def __post_init__(self) -> None:
        prefix = "" if isinstance(self, Config) else f"{type(self).__name__.lower()}."
        for name, hint in typing.get_type_hints(type(self)).items():
            value, options = getattr(self, name), _options(hint)
            if not any(_fits(value, option) for option in options):
                expected = " or ".join(_describe(option) for option in options)
                raise UserError(f"{prefix}{name} must be {expected}, not {value!r}")


@dataclass(frozen=True, kw_only=True)
class Model(_Settings):
    """Which network, and the options that the paper varies. None keeps the network's default."""

    name: str
    """A name of `cifar-jax models`."""
    dropout: float | None = None
    """Rate of the dropout layer, in [0, 1). The paper names 0.5 and no other."""
    pooling: Literal["max", "average", "strided-conv"] | None = None
    """Downsampling of the `net*` family."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rate = self.dropout
        _require(rate is None or 0 <= rate < 1, f"model.dropout must be in [0, 1), not {rate}")


@dataclass(frozen=True, kw_only=True)
class Optimizer(_Settings):
    """Update rule, in PyTorch's terms."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 1e-3
    momentum: float = 0.9
    """Of SGD; not used by the others."""
    weight_decay: float = 0.0
    """Coupled L2 on every parameter for sgd and adam (added to the gradient, as PyTorch's
    `weight_decay=` does); decoupled for adamw."""
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.lr > 0, f"optimizer.lr must be positive, not {self.lr}")
        for name in ("momentum", "beta1", "beta2"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"optimizer.{name} must be in [0, 1), not {value}")
        for name in ("weight_decay", "eps"):
            value = getattr(self, name)
            _require(value >= 0, f"optimizer.{name} must not be negative, not {value}")


@dataclass(frozen=True, kw_only=True)
class Schedule(_Settings):
    """How the learning rate moves. `plateau` observes once an epoch, the others follow the step."""

    name: Literal["constant", "step", "cosine", "one-cycle", "plateau"] = "constant"
    factor: float = 0.5
    """What `step` and `plateau` multiply the learning rate by."""
    patience: int = 5
    """`plateau`: bad epochs that are waited out; the next one reduces."""
    threshold: float = 1e-4
    """`plateau`: relative improvement that counts."""
    step_epochs: int = 30
    """`step`: epochs between reductions."""
    warmup: float = 0.3
    """`one-cycle`: share of the run in which the learning rate rises to `optimizer.lr`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(0 < self.factor < 1, f"schedule.factor must be in (0, 1), not {self.factor}")
        _require(self.patience >= 0, f"schedule.patience must be at least 0, not {self.patience}")
        _require(
            0 <= self.threshold < 1, f"schedule.threshold must be in [0, 1), not {self.threshold}"
        )
        _require(
            self.step_epochs >= 1,
            f"schedule.step_epochs must be at least 1, not {self.step_epochs}",
        )
        _require(0 < self.warmup < 1, f"schedule.warmup must be in (0, 1), not {self.warmup}")


@dataclass(frozen=True, kw_only=True)
class Data(_Settings):
    """Which images, how they are split, and what is done to them."""

    dataset: str = "cifar10"
    """`cifar10`, or the embedded `digits`, which needs no download."""
    validation: float = 0.1
    """The last images of the training set, held out: below 1 a share, from 1 on a number."""
    train_images: int | None = None
    """Train on the first so many of what is left only; None for all."""
    crop_padding: int = 0
    """Pad the image by so many pixels on each side and crop at random; 0 for none."""
    flip: bool = False
    """Mirror every other image at random."""
    last_batch: Literal["drop", "wrap"] = "drop"
    """What becomes of an epoch's incomplete last batch: left out, or filled up from the
    epoch's beginning."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self.validation >= 0, f"data.validation must not be negative, not {self.validation}"
        )
        _require(
            self.train_images is None or self.train_images >= 1,
            f"data.train_images must be at least 1, not {self.train_images}",
        )
        _require(
            0 <= self.crop_padding <= 16,
            f"data.crop_padding must be in 0..16 pixels, not {self.crop_padding}",
        )


@dataclass(frozen=True, kw_only=True)
class Train(_Settings):
    """How the run is carried out. Nothing here changes what is learned, but `precision`."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Compute type; parameters, statistics and logits are float32 either way."""
    steps_per_call: int | None = None
    """Train steps in one dispatch; None for as many as take about a fifth of a second."""
    eval_batch_size: int = 500
    log_every: int = 2000
    """Iterations between `[EPOCH 041 | IT 04000] LOSS: 0.001` lines."""
    keep_checkpoints: int = 2
    """The last so many are kept, and that of the best validation accuracy."""
    devices: int | None = None
    """Use the first so many devices; None for all that divide the batch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps_per_call", "eval_batch_size", "log_every", "keep_checkpoints"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"train.{name} must be at least 1, not {value}")
        _require(
            self.devices is None or self.devices >= 1,
            f"train.devices must be at least 1, not {self.devices}",
        )


@dataclass(frozen=True, kw_only=True)
class Paper(_Settings):
    """What the paper reports for an experiment."""

    tables: str
    test_accuracy: float
    """In percent."""
    parameters: int


@dataclass(frozen=True, kw_only=True)
class Config(_Settings):
    """One experiment. Fields are in the order of the paper's hyperparameter tables."""

    model: Model
    epochs: int
    batch_size: int
    optimizer: Optimizer
    schedule: Schedule = field(default_factory=Schedule)
    data: Data = field(default_factory=Data)
    train: Train = field(default_factory=Train)
    paper: Paper | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.epochs >= 1, f"epochs must be at least 1, not {self.epochs}")
        _require(self.batch_size >= 1, f"batch_size must be at least 1, not {self.batch_size}")


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name, in the order of the fields; what the paper says is not a setting.

    >>> flatten(Optimizer(lr=0.1))["lr"]
    0.1
    """
    flat: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if f.name == "paper":
            continue
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{prefix}{f.name}.")
        else:
            flat[f"{prefix}{f.name}"] = value
    return flat


def from_flat(settings: Mapping[str, Any]) -> Config:
    """The config of which `flatten` made `settings`, as read back from JSON.

    Raises:
      UserError: a setting that this version does not know.
    """
    known = _field_types(Config)
    for name in settings:
        _require(name in known, f"the run has a setting {name!r} that this version does not know")
    return _replace(
        Config(model=Model(name=""), epochs=1, batch_size=1, optimizer=Optimizer()), settings
    )


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Where two flattened configs differ: name to (value in a, value in b), None where absent."""
    return {
        name: (a.get(name), b.get(name))
        for name in dict.fromkeys([*a, *b])
        if a.get(name) != b.get(name)
    }


def override(config: Config, settings: Iterable[str]) -> Config:
    """`config` with `key=value` settings applied, each typed and checked.

    Raises:
      UserError: for text without `=`, an unknown field (naming the nearest), or a value of the
        wrong type or out of range.
    """
    types_by_name = _field_types(type(config))
    changes: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        name = name.strip()
        _require(bool(equals), f"--set {setting}: expected key=value, such as optimizer.lr=3e-4")
        if name not in types_by_name:
            raise UserError(f"--set {setting}: no field {name!r}{_nearest(name, types_by_name)}")
        changes[name] = _parse(text.strip(), types_by_name[name], setting)
    return _replace(config, changes)


def _field_types(cls: type, prefix: str = "") -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    found: dict[str, Any] = {}
    for f in dataclasses.fields(cls):
        hint = hints[f.name]
        if f.name == "paper":
            continue
        if dataclasses.is_dataclass(hint):
            found |= _field_types(typing.cast(type, hint), f"{prefix}{f.name}.")
        else:
            found[f"{prefix}{f.name}"] = hint
    return found


def _nearest(name: str, names: Iterable[str]) -> str:
    """A hint at what was meant, by the whole dotted name or by its last part."""
    names = list(names)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if not close:
        last_parts = {n.rpartition(".")[2]: n for n in names}
        part = name.rpartition(".")[2]
        close = [last_parts[m] for m in difflib.get_close_matches(part, last_parts, n=1)]
    return f"; did you mean {close[0]}?" if close else "; see `cifar-jax experiments --json`"


_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}
_READERS = {int: int, float: float, bool: lambda text: _BOOLEANS[text.lower()]}


def _options(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union, else the type itself; `Literal[…] | None` is no UnionType."""
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return typing.get_args(hint) if is_union else (hint,)


def _fits(value: Any, option: Any) -> bool:
    if typing.get_origin(option) is Literal:
        return value in typing.get_args(option)
    if isinstance(value, bool):  # which Python takes for an int
        return option is bool
    return isinstance(value, (int, float) if option is float else option)


def _describe(option: Any) -> str:
    if typing.get_origin(option) is Literal:
        return "one of " + ", ".join(typing.get_args(option))
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return "none" if option is types.NoneType else names.get(option, f"a {option.__name__}")


def _parse(text: str, hint: Any, setting: str) -> Any:
    options = _options(hint)
    if types.NoneType in options and text.lower() == "none":
        return None
    kind = next(option for option in options if option is not types.NoneType)
    try:
        value = _READERS.get(kind, str)(text)
    except (ValueError, KeyError):
        value = None
    if not _fits(value, kind):
        raise UserError(f"--set {setting}: expected {_describe(kind)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"--set {setting}: expected a finite number")
    return value


def _replace(config: Any, changes: Mapping[str, Any]) -> Any:
    direct: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        head, dot, rest = name.partition(".")
        if dot:
            nested.setdefault(head, {})[rest] = value
        else:
            direct[head] = value
    for head, inner in nested.items():
        direct[head] = _replace(getattr(config, head), inner)
    return dataclasses.replace(config, **direct)
