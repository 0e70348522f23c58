"""What a run is: settings, checked when made.

Every field says what it means and its unit. Nothing heavy is imported, so that an experiment file
stays data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from cifar_jax.errors import UserError
from cifar_jax.settings import dotted
from cifar_jax.settings.dotted import differences, flatten, override
from cifar_jax.settings.fields import RuntimeOnly, Settings

__all__ = [
    "Augmentation",
    "Config",
    "Data",
    "Ema",
    "Initialization",
    "Lookahead",
    "Loss",
    "Model",
    "Optimizer",
    "Paper",
    "ParamGroup",
    "Phase",
    "Schedule",
    "TTAConfig",
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
OpenUnit = Annotated[float, Field(gt=0, lt=1)]
HalfOpenUnit = Annotated[float, Field(ge=0, lt=1)]


class Model(Settings):
    """Which network, and the options that the paper varies. None keeps the network's default."""

    name: str
    """A name of `cifar-jax models`, or what the file that defines a `MODEL` of its own calls it."""
    dropout: Annotated[float | None, Field(ge=0, lt=1)] = None
    """Rate of the dropout layer. The paper names 0.5 and no other."""
    pooling: Literal["max", "average", "strided-conv"] | None = None
    """Downsampling of the `net*` family."""


class Optimizer(Settings):
    """Update rule, in PyTorch's terms."""

    name: Literal["sgd", "adam", "adamw", "muon"] = "sgd"
    """SGD with momentum, Adam, Adam with decoupled weight decay, or Muon, which is for kernels:
    give all else a group of its own."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate; the schedule moves it."""
    momentum: HalfOpenUnit = 0.9
    """Of SGD and Muon; not used by the others."""
    nesterov: bool = False
    """Of SGD and Muon: look ahead."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Coupled L2 on every parameter for sgd, adam and muon (added to the gradient, as PyTorch's
    `weight_decay=` does); decoupled for adamw."""
    beta1: HalfOpenUnit = 0.9
    """Of Adam and AdamW: decay of the mean of gradients."""
    beta2: HalfOpenUnit = 0.999
    """Of Adam and AdamW: decay of the mean of squared gradients."""
    eps: Annotated[float, Field(ge=0)] = 1e-8
    """Of Adam and AdamW: added to the root of the mean of squared gradients."""
    newton_schulz_steps: Count = 3
    """Of Muon: iterations that orthogonalize an update."""


class ParamGroup(Settings):
    """Parameters with an update rule of their own."""

    parameters: str
    """A pattern of their paths, such as `*/bias` or `fc3/*`; several, with commas between."""
    optimizer: Optimizer
    """Their update rule; the schedule moves its learning rate as that of the others."""
    until: Annotated[float | None, Field(ge=0, lt=1)] = None
    """OpenUnit of the epochs after which they stay as they are, and nothing is computed for their
    gradient: 0 freezes them from the first step on. None to train them to the end."""


class Schedule(Settings):
    """How the learning rate moves. `plateau` observes once an epoch, the others follow the step."""

    name: Literal["constant", "step", "cosine", "one-cycle", "linear", "triangular", "plateau"] = (
        "constant"
    )
    """As it is, lower every few epochs, a cosine to zero, up and down once by cosines, straight
    down, straight up and down, or lower whenever the validation loss stops falling."""
    factor: OpenUnit = 0.5
    """What `step` and `plateau` multiply the learning rate by."""
    patience: Annotated[int, Field(ge=0)] = 5
    """`plateau`: bad epochs that are waited out; the next one reduces."""
    threshold: HalfOpenUnit = 1e-4
    """`plateau`: relative improvement that counts."""
    step_epochs: Count = 30
    """`step`: epochs between reductions."""
    warmup: OpenUnit = 0.3
    """`one-cycle`, `triangular`: share of the run in which it rises to `optimizer.lr`."""
    start: Annotated[float, Field(ge=0, le=1)] = 0.0
    """`triangular`: share of `optimizer.lr` that it begins at."""
    end: Annotated[float, Field(ge=0, le=1)] = 0.0
    """`linear`, `triangular`: share of `optimizer.lr` that it ends at."""


class Loss(Settings):
    """Cross-entropy."""

    label_smoothing: HalfOpenUnit = 0.0
    """OpenUnit of a label that is spread evenly over all classes."""


class Ema(Settings):
    """Evaluate an exponential moving average of the weights, beside which training goes on."""

    name: Literal["ema"] = "ema"
    """Which average."""
    decay: HalfOpenUnit = 0.999
    """What an update keeps of the average; less at first, as `min(decay, (1 + t) / (10 + t))`."""
    every: Count = 1
    """Steps from update to update."""


class Lookahead(Settings):
    """Evaluate slow weights, from which the fast ones go on after each of their updates."""

    name: Literal["lookahead"] = "lookahead"
    """Which average."""
    decay: HalfOpenUnit = 0.5
    """What an update keeps of the slow weights, at the end of training."""
    every: Count = 5
    """Steps from update to update."""
    power: Annotated[float, Field(ge=0)] = 0.0
    """Earlier it keeps `decay · progress**power`."""


class Initialization(Settings):
    """What the weights begin with beside PyTorch's defaults."""

    dirac: bool = False
    """The first filters of each convolution of 3×3 or a larger odd size pass their input on."""
    whitening: bool = False
    """The first convolution's first filters whiten patches of the training images, and its kernel
    stays so."""


class TTAConfig(Settings):
    """Test-time augmentation: of which views of an image the logits are averaged."""

    flip: bool = False
    """Its mirror image as well."""
    shift: Annotated[int, Field(ge=0, le=4)] = 0
    """It moved by so many pixels as well, up and left, and down and right."""
    least_confident: Annotated[float | None, Field(gt=0, lt=1)] = None
    """Only for this share of the images, those that the plain view is the least sure of; none for
    all."""


class Augmentation(Settings):
    """What is done to training images at random."""

    crop_padding: Annotated[int, Field(ge=0, le=16)] = 0
    """Pad the image by so many pixels on each side and crop at random; 0 for none."""
    crop_fill: Literal["zeros", "reflect"] = "zeros"
    """What the image is padded with: black, or its mirror image."""
    flip: bool | Literal["alternating"] = False
    """Mirror every other image at random; or each at random in the first epoch, and the other way
    round in each that follows."""
    cutout: Annotated[int, Field(ge=0, le=32)] = 0
    """Side in pixels of a square that is blanked out; 0 for none."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """Mix images and labels with another's, by a share from Beta(mixup, mixup); 0 for none."""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """Put a box of another image into each, its area from Beta(cutmix, cutmix); 0 for none."""
    brightness: Annotated[float, Field(ge=0)] = 0.0
    """Make each image brighter or darker by up to so many standard deviations."""
    contrast: HalfOpenUnit = 0.0
    """Raise or lower each image's contrast by up to this share."""

    @model_validator(mode="after")
    def _has_one_mixture(self) -> Self:
        if self.mixup and self.cutmix:
            raise UserError("mixup and cutmix exclude each other: set one of them to 0")
        return self


class Phase(Settings):
    """A part of the training with other images than the rest, in whole epochs."""

    until: OpenUnit
    """OpenUnit of the epochs that are over when it ends; it begins where the one before ends."""
    image_size: Annotated[int | None, Field(ge=8, le=32)] = None
    """Pixels along a side that images are resized to; none for 32."""
    batch_size: Annotated[int | None, Field(ge=1)] = None
    """Images in a train step; none for the run's own."""
    augmentation: Augmentation | None = None
    """In place of that of `data`."""


class Data(Augmentation):
    """Which images, how they are split, and what is done to them."""

    dataset: str = "cifar10"
    """`cifar10`; the embedded `digits`, which needs no download; or `folder:PATH`, images of your
    own."""
    validation: Annotated[float, Field(ge=0)] = 0.1
    """The last images of the training set, held out: below 1 a share, from 1 on a number."""
    train_images: Annotated[int | None, Field(ge=1)] = None
    """Train on the first so many of what is left only; none for all."""
    last_batch: Literal["drop", "wrap"] = "drop"
    """What becomes of an epoch's incomplete last batch: left out, or filled up from the
    epoch's beginning."""


class Train(Settings):
    """How the run is carried out. Only the first three change what is learned, and `on_nan` where
    the loss is no longer finite."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Compute type; parameters, statistics and logits are float32 either way."""
    init_from: str | None = None
    """Begin with the weights of another run, of an export, or of a packaged network by its name;
    the last layer begins anew where it has other classes. They are read until the run has a
    checkpoint of its own. None for fresh ones."""
    max_minutes: Annotated[float | None, Field(gt=0)] = None
    """Train for so many minutes at most: where the epochs would take longer there are as many as
    fit, and the schedule with them; the last validation comes after it. None for all the epochs."""
    steps_per_call: Annotated[int | None, Field(ge=1), RuntimeOnly()] = None
    """Train steps in one dispatch; none for as many as take about a fifth of a second."""
    eval_batch_size: Annotated[Count, RuntimeOnly()] = 500
    """Images in a batch of an evaluation."""
    log_every: Annotated[Count, RuntimeOnly()] = 2000
    """Iterations between `[EPOCH 041 | IT 04000] LOSS: 0.001` lines."""
    keep_checkpoints: Annotated[Count, RuntimeOnly()] = 2
    """The last so many are kept, and that of the best validation accuracy."""
    checkpoint_minutes: Annotated[float | None, Field(gt=0), RuntimeOnly()] = 10.0
    """Save within an epoch too, when so many minutes have gone by since the last time; none for
    never."""
    on_nan: Annotated[Literal["stop", "restore"], RuntimeOnly()] = "stop"
    """When the loss is no longer finite: stop, or go on from the last checkpoint with half the
    learning rate, at most three times."""
    devices: Annotated[int | None, Field(ge=1), RuntimeOnly()] = None
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

    is_root: ClassVar = True

    model: Model
    """Which network."""
    epochs: Count
    """How often the training images are gone through."""
    batch_size: Count
    """Images in a train step, over all devices."""
    optimizer: Optimizer
    """Update rule."""
    param_groups: Annotated[tuple[ParamGroup, ...], Field(strict=False)] = ()
    """Parameters with an update rule of their own: of several groups the first that names them.
    Each has `parameters`, a pattern of their paths, an `optimizer`, and `until`, the share of the
    epochs after which they stay as they are: 0 for never trained, none to the end."""
    schedule: Schedule = Schedule()
    """How the learning rate moves."""
    loss: Loss = Loss()
    """What is minimized."""
    averaging: Annotated[Ema | Lookahead | None, Field(discriminator="name")] = None
    """Which weights are evaluated: an average; none for those that are trained."""
    init: Initialization = Initialization()
    """What the weights begin with."""
    phases: Annotated[tuple[Phase, ...], Field(strict=False)] = ()
    """Parts of the training before the rest, in which images differ. Each has `until`, the share of
    the epochs at which it ends, and of `image_size`, `batch_size` and `augmentation` its own."""
    data: Data = Data()
    """Which images."""
    tta: TTAConfig = TTAConfig()
    """How images are looked at in evaluation."""
    train: Train = Train()
    """How the run is carried out."""
    paper: Annotated[Paper | None, Field(exclude=True)] = None
    """What the paper reports, if it is of the paper. No setting."""

    @model_validator(mode="after")
    def _parts_fit_each_other(self) -> Self:
        ends = [phase.until for phase in self.phases]
        if ends != sorted(set(ends)):
            raise UserError(
                f"phases end at {ends} of the epochs: let each end after the one before"
            )
        if self.train.max_minutes and self.schedule.name in ("constant", "step", "plateau"):
            raise UserError(
                f"the schedule {self.schedule.name} has no end to fit into train.max_minutes: "
                "choose linear, triangular, cosine or one-cycle, or unset train.max_minutes"
            )
        if self.tta.least_confident and not (self.tta.flip or self.tta.shift):
            raise UserError(
                "tta.least_confident is a share of the images that are looked at again: set "
                "tta.flip or tta.shift too"
            )
        if self.init.whitening and self.train.init_from:
            raise UserError(
                "init.whitening makes the first layer of the training images, and "
                "train.init_from brings another: leave one of them out"
            )
        return self


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
