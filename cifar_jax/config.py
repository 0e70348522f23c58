"""The settings of a run, validated when a `Config` is created.

This module does not import JAX, so experiment files can be read without starting it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from cifar_jax.errors import UserError
from cifar_jax.settings import dotted
from cifar_jax.settings.dotted import as_text, differences, flatten, override
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
    "as_text",
    "describe",
    "differences",
    "flatten",
    "from_flat",
    "identity",
    "override",
    "runtime_settings",
]

Count = Annotated[int, Field(ge=1)]
OpenUnit = Annotated[float, Field(gt=0, lt=1)]
HalfOpenUnit = Annotated[float, Field(ge=0, lt=1)]
Arguments = dict[str, bool | int | float | str]


class Model(Settings):
    """The network and its options. None keeps the network's default."""

    name: str
    """A name that `cifar-jax models` lists, or any other name for a custom `MODEL`."""
    dropout: Annotated[float | None, Field(ge=0, lt=1)] = None
    """Dropout rate. The paper uses 0.5."""
    pooling: Literal["max", "average", "strided-conv"] | None = None
    """Downsampling in the `net*` networks."""
    arguments: Arguments = Field(default={})
    """Further fields of a custom `MODEL`, by name."""


class Optimizer(Settings):
    """Update rule, with PyTorch's semantics."""

    name: Literal["sgd", "adam", "adamw", "muon", "custom"] = "sgd"
    """SGD with momentum, Adam, Adam with decoupled weight decay, Muon (kernels only; put other
    parameters in a group of their own), or the experiment file's `OPTIMIZER`."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate, scaled by the schedule."""
    momentum: HalfOpenUnit = 0.9
    """SGD and Muon: momentum."""
    nesterov: bool = False
    """SGD and Muon: use Nesterov momentum."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Applied to every parameter. sgd, adam and muon: coupled L2, added to the gradient like
    PyTorch's `weight_decay`. adamw: decoupled."""
    beta1: HalfOpenUnit = 0.9
    """Adam and AdamW: decay of the mean of the gradients."""
    beta2: HalfOpenUnit = 0.999
    """Adam and AdamW: decay of the mean of the squared gradients."""
    eps: Annotated[float, Field(ge=0)] = 1e-8
    """Adam and AdamW: added to the root of the mean of the squared gradients."""
    newton_schulz_steps: Count = 3
    """Muon: iterations of the orthogonalization."""
    arguments: Arguments = Field(default={})
    """Keyword arguments of a custom `OPTIMIZER`."""


class ParamGroup(Settings):
    """Parameters with an optimizer of their own."""

    parameters: str
    """Pattern of parameter paths, such as `*/bias` or `fc3/*`. Separate several with commas."""
    optimizer: Optimizer
    """Their optimizer. The schedule scales its learning rate like all others."""
    until: Annotated[float | None, Field(ge=0, lt=1)] = None
    """Fraction of the epochs after which they are frozen: 0 freezes them from the start, None
    never."""


class Schedule(Settings):
    """Learning rate schedule. `plateau` updates once per epoch, all others every step."""

    name: Literal[
        "constant", "step", "cosine", "one-cycle", "linear", "triangular", "plateau", "custom"
    ] = "constant"
    """Constant; reduced every few epochs; cosine to zero; one cycle of cosines up and down; linear
    decay; linear up and down; reduced when the validation loss stops falling; or the experiment
    file's `SCHEDULE`."""
    factor: OpenUnit = 0.5
    """`step` and `plateau`: factor of each reduction."""
    patience: Annotated[int, Field(ge=0)] = 5
    """`plateau`: epochs without improvement before a reduction; the next one triggers it."""
    threshold: HalfOpenUnit = 1e-4
    """`plateau`: smallest relative improvement that counts."""
    step_epochs: Count = 30
    """`step`: epochs between reductions."""
    warmup: OpenUnit = 0.3
    """`one-cycle` and `triangular`: fraction of the run in which the rate rises."""
    start: Annotated[float, Field(ge=0, le=1)] = 0.0
    """`triangular`: initial rate, as a fraction of `optimizer.lr`."""
    end: Annotated[float, Field(ge=0, le=1)] = 0.0
    """`linear` and `triangular`: final rate, as a fraction of `optimizer.lr`."""
    arguments: Arguments = Field(default={})
    """Keyword arguments of a custom `SCHEDULE`."""


class Loss(Settings):
    """Cross-entropy loss."""

    label_smoothing: HalfOpenUnit = 0.0
    """Fraction of each label that is spread evenly over all classes."""


class Ema(Settings):
    """Evaluate an exponential moving average of the weights."""

    name: Literal["ema"] = "ema"
    """Kind of average."""
    decay: HalfOpenUnit = 0.999
    """Fraction of the average that an update keeps; early on `min(decay, (1 + t) / (10 + t))`."""
    every: Count = 1
    """Steps between updates of the average."""


class Lookahead(Settings):
    """Evaluate slow weights, to which the trained weights are reset after each update."""

    name: Literal["lookahead"] = "lookahead"
    """Kind of average."""
    decay: HalfOpenUnit = 0.5
    """Fraction of the slow weights that an update keeps at the end of training."""
    every: Count = 5
    """Steps between updates of the slow weights."""
    power: Annotated[float, Field(ge=0)] = 0.0
    """Earlier in training an update keeps `decay * progress**power`."""


class Initialization(Settings):
    """Changes to the initial weights."""

    dirac: bool = False
    """Let the first filters of each convolution pass its input through."""
    whitening: bool = False
    """Let the first convolution whiten patches of the training images, and freeze its kernel."""


class TTAConfig(Settings):
    """Test-time augmentation: average the logits over several views of an image."""

    flip: bool = False
    """Add the mirror image."""
    shift: Annotated[int, Field(ge=0, le=4)] = 0
    """Add the image shifted by this many pixels up and left, and down and right."""
    least_confident: Annotated[float | None, Field(gt=0, lt=1)] = None
    """Use the extra views only for this fraction of the images, the least confident ones. None:
    for all images."""


class Augmentation(Settings):
    """Random changes to the training images."""

    crop_padding: Annotated[int, Field(ge=0, le=16)] = 0
    """Pixels of padding on each side before a random crop; 0: no crop."""
    crop_fill: Literal["zeros", "reflect"] = "zeros"
    """Content of the padding: black, or the mirrored image."""
    flip: bool | Literal["alternating"] = False
    """Mirror each image with probability 1/2. `alternating`: mirror a random half in the first
    epoch and the other half in the next, by turns."""
    cutout: Annotated[int, Field(ge=0, le=32)] = 0
    """Side of a square that is erased, in pixels; 0: none."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """Mix pairs of images and labels with a ratio from Beta(mixup, mixup); 0: off."""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """Paste a box of another image, with an area from Beta(cutmix, cutmix); 0: off."""
    brightness: Annotated[float, Field(ge=0)] = 0.0
    """Change the brightness by up to this many standard deviations."""
    contrast: HalfOpenUnit = 0.0
    """Change the contrast by up to this fraction."""

    @model_validator(mode="after")
    def _mixes_once(self) -> Self:
        if self.mixup and self.cutmix:
            raise UserError(
                "the augmentations mixup and cutmix cannot be combined: set one of them to 0"
            )
        return self


class Phase(Settings):
    """A part of the training with its own image size, batch size or augmentation."""

    until: OpenUnit
    """Fraction of the epochs at which the phase ends. It begins where the previous one ends."""
    image_size: Annotated[int | None, Field(ge=8, le=32)] = None
    """Side to which images are resized, in pixels. None: 32."""
    batch_size: Annotated[int | None, Field(ge=1)] = None
    """Images per step. None: `batch_size` of the run."""
    augmentation: Augmentation | None = None
    """Replaces the augmentation in `data`."""

    @model_validator(mode="after")
    def _changes_training(self) -> Self:
        if self.image_size is self.batch_size is self.augmentation is None:
            raise UserError(
                f"the phase that ends at until={self.until} changes nothing: give it image_size, "
                "batch_size or augmentation"
            )
        return self


class Data(Augmentation):
    """The data set, its validation split, and the augmentation."""

    dataset: str = "cifar10"
    """`cifar10`; `digits`, which ships with the package; or `folder:PATH`, your own images."""
    validation: Annotated[float, Field(ge=0)] = 0.1
    """Training images held out for validation, taken from the end: a fraction if below 1, else a
    number."""
    train_images: Annotated[int | None, Field(ge=1)] = None
    """Train on only this many of the remaining images. None: all."""
    last_batch: Literal["drop", "wrap"] = "drop"
    """An incomplete last batch of an epoch is dropped, or filled from the epoch's start."""
    arguments: Arguments = Field(default={})
    """Keyword arguments of a custom `AUGMENTATION`."""


class Train(Settings):
    """How the run is carried out. Only the first two settings change what is learned."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Compute type. Parameters, statistics and logits are float32 in either case."""
    init_from: str | None = None
    """Start from the weights of another run, an export, or a packaged network. The last layer is
    reinitialized if its classes differ. None: random weights."""
    steps_per_call: Annotated[int | None, Field(ge=1), RuntimeOnly()] = None
    """Steps per compiled call. None: chosen so that one call takes about 0.2 s."""
    eval_batch_size: Annotated[Count, RuntimeOnly()] = 500
    """Images per evaluation batch."""
    log_every: Annotated[Count, RuntimeOnly()] = 2000
    """Steps between lines like `[EPOCH 041 | IT 04000] LOSS: 0.001` in the log."""
    keep_checkpoints: Annotated[Count, RuntimeOnly()] = 2
    """Checkpoints to keep: this many of the latest epochs, and the best on validation."""
    checkpoint_minutes: Annotated[float | None, Field(gt=0), RuntimeOnly()] = 10.0
    """Also save within an epoch when this many minutes have passed. None: only after epochs."""
    devices: Annotated[int | None, Field(ge=1), RuntimeOnly()] = None
    """Number of devices to use. None: as many as divide the batch size."""


class Paper(Settings):
    """What the paper reports for an experiment."""

    tables: str
    """Numbers of its tables, such as `17–18`."""
    test_accuracy: float
    """In percent."""
    parameters: int
    """Parameter count in the paper."""


class Config(Settings):
    """One experiment. Fields are in the order of the paper's hyperparameter tables."""

    is_root: ClassVar = True

    model: Model
    """The network."""
    epochs: Count
    """Passes over the training images."""
    batch_size: Count
    """Images per step, over all devices."""
    optimizer: Optimizer
    """Optimizer of all parameters that are in no group."""
    param_groups: Annotated[tuple[ParamGroup, ...], Field(strict=False)] = ()
    """Groups of parameters with their own optimizer. The first group that matches a parameter
    counts. Each has `parameters`, `optimizer` and `until`."""
    schedule: Schedule = Schedule()
    """Learning rate schedule."""
    loss: Loss = Loss()
    """Training loss."""
    averaging: Annotated[Ema | Lookahead | None, Field(discriminator="name")] = None
    """Average of the weights to evaluate. None: evaluate the trained weights."""
    init: Initialization = Initialization()
    """Initial weights."""
    phases: Annotated[tuple[Phase, ...], Field(strict=False)] = ()
    """Phases before the rest of the training. Each has `until`, and `image_size`, `batch_size` or
    `augmentation`."""
    data: Data = Data()
    """Images."""
    tta: TTAConfig = TTAConfig()
    """Test-time augmentation."""
    train: Train = Train()
    """How the run is carried out."""
    paper: Annotated[Paper | None, Field(exclude=True)] = None
    """What the paper reports. Not a setting."""

    @model_validator(mode="after")
    def _parts_fit_each_other(self) -> Self:
        ends = [phase.until for phase in self.phases]
        if ends != sorted(set(ends)):
            raise UserError(
                f"the phases end at until={', '.join(map(str, ends))}, but each phase must end "
                "later than the one before: give them in order"
            )
        if self.tta.least_confident and not (self.tta.flip or self.tta.shift):
            raise UserError(
                "tta.least_confident chooses which images get extra views, but no extra views are "
                "set: set tta.flip or tta.shift as well"
            )
        if self.train.init_from and (self.init.whitening or self.init.dirac):
            name = "whitening" if self.init.whitening else "dirac"
            raise UserError(
                f"init.{name} and train.init_from both set the initial weights: use only one"
            )
        return self


def from_flat(stored: Mapping[str, Any]) -> Config:
    """Return the config from which `flatten` made `stored`.

    Raises:
      UserError: a setting is unknown or has an invalid value.
    """
    return dotted.restore(Config, stored)


def identity(config: Config | Mapping[str, Any]) -> dict[str, Any]:
    """Return the flat settings that determine the result of a run.

    Args:
      config: a config, or its flat settings.
    """
    config = config if isinstance(config, Config) else from_flat(config)
    return dotted.part(config, runtime_only=False)


def runtime_settings(config: Config) -> dict[str, Any]:
    """Return the flat settings that may differ between the sessions of a run."""
    return dotted.part(config, runtime_only=True)


def describe() -> list[dict[str, Any]]:
    """Return a description of every setting; see `dotted.describe`."""
    return dotted.describe(Config)
