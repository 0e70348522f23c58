"""What a run is: settings, checked when made.

Every field says what it means and its unit. Nothing heavy is imported, so that an experiment file
stays data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from cifar_jax.settings import dotted
from cifar_jax.settings.dotted import differences, flatten, override
from cifar_jax.settings.groups import Execution, Settings

__all__ = [
    "Config",
    "Data",
    "Model",
    "Optimizer",
    "Paper",
    "Schedule",
    "Train",
    "describe",
    "differences",
    "execution",
    "flatten",
    "from_flat",
    "identity",
    "override",
]

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class Model(Settings):
    """Which network, and the options that the paper varies. None keeps the network's default."""

    name: str
    """A name of `cifar-jax models`."""
    dropout: Annotated[float | None, Field(ge=0, lt=1)] = None
    """Rate of the dropout layer. The paper names 0.5 and no other."""
    pooling: Literal["max", "average", "strided-conv"] | None = None
    """Downsampling of the `net*` family."""


class Optimizer(Settings):
    """Update rule, in PyTorch's terms."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    """SGD with momentum, Adam, or Adam with decoupled weight decay."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate; the schedule moves it."""
    momentum: Decay = 0.9
    """Of SGD; not used by the others."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Coupled L2 on every parameter for sgd and adam (added to the gradient, as PyTorch's
    `weight_decay=` does); decoupled for adamw."""
    beta1: Decay = 0.9
    """Of Adam: decay of the mean of gradients."""
    beta2: Decay = 0.999
    """Of Adam: decay of the mean of squared gradients."""
    eps: Annotated[float, Field(ge=0)] = 1e-8
    """Of Adam: added to the root of the mean of squared gradients."""


class Schedule(Settings):
    """How the learning rate moves. `plateau` observes once an epoch, the others follow the step."""

    name: Literal["constant", "step", "cosine", "one-cycle", "plateau"] = "constant"
    """As it is, lower every few epochs, a cosine to zero, up and down once, or lower whenever the
    validation loss stops falling."""
    factor: Share = 0.5
    """What `step` and `plateau` multiply the learning rate by."""
    patience: Annotated[int, Field(ge=0)] = 5
    """`plateau`: bad epochs that are waited out; the next one reduces."""
    threshold: Decay = 1e-4
    """`plateau`: relative improvement that counts."""
    step_epochs: Count = 30
    """`step`: epochs between reductions."""
    warmup: Share = 0.3
    """`one-cycle`: share of the run in which the learning rate rises to `optimizer.lr`."""


class Data(Settings):
    """Which images, how they are split, and what is done to them."""

    dataset: str = "cifar10"
    """`cifar10`; the embedded `digits`, which needs no download; or `folder:PATH`, images of your
    own."""
    validation: Annotated[float, Field(ge=0)] = 0.1
    """The last images of the training set, held out: below 1 a share, from 1 on a number."""
    train_images: Annotated[int | None, Field(ge=1)] = None
    """Train on the first so many of what is left only; none for all."""
    crop_padding: Annotated[int, Field(ge=0, le=16)] = 0
    """Pad the image by so many pixels on each side and crop at random; 0 for none."""
    flip: bool = False
    """Mirror every other image at random."""
    last_batch: Literal["drop", "wrap"] = "drop"
    """What becomes of an epoch's incomplete last batch: left out, or filled up from the
    epoch's beginning."""


class Train(Settings):
    """How the run is carried out. But for the first two, nothing here changes what is learned."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Compute type; parameters, statistics and logits are float32 either way."""
    init_from: str | None = None
    """Begin with the weights of another run, of an export, or of a packaged network by its name;
    the last layer begins anew where it has other classes. None for fresh ones."""
    steps_per_call: Annotated[int | None, Field(ge=1), Execution()] = None
    """Train steps in one dispatch; none for as many as take about a fifth of a second."""
    eval_batch_size: Annotated[Count, Execution()] = 500
    """Images in a batch of an evaluation."""
    log_every: Annotated[Count, Execution()] = 2000
    """Iterations between `[EPOCH 041 | IT 04000] LOSS: 0.001` lines."""
    keep_checkpoints: Annotated[Count, Execution()] = 2
    """The last so many are kept, and that of the best validation accuracy."""
    checkpoint_minutes: Annotated[float | None, Field(gt=0), Execution()] = 10.0
    """Save within an epoch too, when so many minutes have gone by since the last time; none for
    never."""
    on_nan: Annotated[Literal["stop", "restore"], Execution()] = "stop"
    """When the loss is no longer finite: stop, or go on from the last checkpoint with half the
    learning rate, at most three times."""
    devices: Annotated[int | None, Field(ge=1), Execution()] = None
    """Use the first so many devices; none for all that divide the batch."""


class Paper(Settings):
    """What the paper reports for an experiment."""

    tables: str
    """Their numbers, such as 17–18."""
    test_accuracy: float
    """In percent."""
    parameters: int
    """How many the paper counts."""


class Config(Settings):
    """One experiment. Fields are in the order of the paper's hyperparameter tables."""

    is_whole: ClassVar = True

    model: Model
    """Which network."""
    epochs: Count
    """How often the training images are gone through."""
    batch_size: Count
    """Images in a train step, over all devices."""
    optimizer: Optimizer
    """Update rule."""
    schedule: Schedule = Schedule()
    """How the learning rate moves."""
    data: Data = Data()
    """Which images."""
    train: Train = Train()
    """How the run is carried out."""
    paper: Annotated[Paper | None, Field(exclude=True)] = None
    """What the paper reports, if it is of the paper. No setting."""


def from_flat(stored: Mapping[str, Any]) -> Config:
    """The config of which `flatten` made `stored`, in this version or in an earlier one.

    Raises:
      UserError: a setting that this version does not know, or a value that it does not take.
    """
    return dotted.restore(Config, stored)


def identity(run: Config | Mapping[str, Any]) -> dict[str, Any]:
    """The settings, flat and complete, that make a run the run that it is."""
    return dotted.part(_config(run), execution=False)


def execution(run: Config | Mapping[str, Any]) -> dict[str, Any]:
    """The settings, flat and complete, that may differ from start to start of a run."""
    return dotted.part(_config(run), execution=True)


def describe() -> list[dict[str, Any]]:
    """Every setting as an object of JSON: see `dotted.describe`."""
    return dotted.describe(Config)


def _config(run: Config | Mapping[str, Any]) -> Config:
    return run if isinstance(run, Config) else from_flat(run)
