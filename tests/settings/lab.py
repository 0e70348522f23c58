"""Settings with what the package's own do not have yet: lists, alternatives, absent groups."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from cifar_jax.errors import UserError
from cifar_jax.settings.fields import Before, RuntimeOnly, Settings


class Phase(Settings):
    epochs: Annotated[int, Field(ge=1)]
    """How long."""
    size: Annotated[int, Field(ge=8, le=32)] = 32
    """In pixels."""


class Sgd(Settings):
    name: Literal["sgd"] = "sgd"
    lr: Annotated[float, Field(gt=0)] = 0.1
    """Rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: Annotated[bool, Before(False)] = True


class Muon(Settings):
    name: Literal["muon"] = "muon"
    lr: Annotated[float, Field(gt=0)] = 0.2
    rounds: Annotated[int, Field(ge=1)] = 5


class Average(Settings):
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99


class Ema(Settings):
    name: Literal["ema"] = "ema"
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99


class Lookahead(Settings):
    name: Literal["lookahead"] = "lookahead"
    every: Annotated[int, Field(ge=1)] = 5


class Lab(Settings):
    is_root: ClassVar = True

    optimizer: Annotated[Sgd | Muon, Field(discriminator="name")] = Sgd()
    """The update rule."""
    phases: Annotated[tuple[Phase, ...], Field(strict=False)] = ()
    """What comes after what."""
    sizes: Annotated[tuple[int, ...], Field(strict=False)] = (32,)
    average: Average | None = None
    """Evaluate the mean of the weights."""
    weights: Annotated[Ema | Lookahead | None, Field(discriminator="name")] = None
    smoothing: Annotated[float, Field(ge=0, lt=1), Before(0.0)] = 0.2
    rest: Annotated[Average | None, Before(None)] = Average(decay=0.5)
    workers: Annotated[int | None, Field(ge=1), RuntimeOnly()] = None
    note: str | None = None
    remark: Annotated[str, Field(exclude=True)] = "no setting"

    @model_validator(mode="after")
    def _phases_fit(self) -> "Lab":
        if self.average and self.weights:
            raise UserError("average and weights exclude each other")
        return self
