"""Example `Settings` classes with every supported kind of field."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from cifar_jax.errors import UserError
from cifar_jax.settings.fields import RuntimeOnly, Settings

Arguments = dict[str, bool | int | float | str]


class Phase(Settings):
    epochs: Annotated[int, Field(ge=1)]
    size: Annotated[int, Field(ge=8, le=32)] = 32


class Sgd(Settings):
    name: Literal["sgd"] = "sgd"
    lr: Annotated[float, Field(gt=0)] = 0.1
    """Learning rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9


class Muon(Settings):
    name: Literal["muon"] = "muon"
    lr: Annotated[float, Field(gt=0)] = 0.2
    steps: Annotated[int, Field(ge=1)] = 5
    arguments: Arguments = Field(default_factory=dict)


class Average(Settings):
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99


class Lookahead(Settings):
    name: Literal["lookahead"] = "lookahead"
    every: Annotated[int, Field(ge=1)] = 5


class Lab(Settings):
    is_root: ClassVar = True

    optimizer: Annotated[Sgd | Muon, Field(discriminator="name")] = Sgd()
    phases: Annotated[tuple[Phase, ...], Field(strict=False)] = ()
    sizes: Annotated[tuple[int, ...], Field(strict=False)] = (32,)
    average: Average | None = None
    weights: Annotated[Muon | Lookahead | None, Field(discriminator="name")] = None
    arguments: Arguments = Field(default_factory=dict)
    workers: Annotated[int | None, Field(ge=1), RuntimeOnly()] = None
    note: str | None = None
    remark: Annotated[str, Field(exclude=True)] = "no setting"

    @model_validator(mode="after")
    def _has_one_average(self) -> "Lab":
        if self.average and self.weights:
            raise UserError("average and weights exclude each other")
        return self
