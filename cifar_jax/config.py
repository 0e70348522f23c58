"""The settings of a training run. Creating a `Config` validates them.

This module does not import JAX, so commands that only read settings are fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from cifar_jax.errors import UserError, counted
from cifar_jax.settings import dotted
from cifar_jax.settings.dotted import as_text, differences, flatten, override
from cifar_jax.settings.fields import RuntimeOnly, Settings
from cifar_jax.settings.search import Range

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
    "Range",
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


FILE_KINDS = ("folder", "npz")
"""Kinds of data sets whose names contain a path, such as `folder:PATH`."""


def _tidy_path(dataset: str) -> str:
    """Normalize the path in the name of a data set: `folder:./pets/` becomes `folder:pets`."""
    kind, _, path = dataset.partition(":")
    if kind not in FILE_KINDS or not path or "://" in path:
        return dataset
    return f"{kind}:{PurePath(path)}"


class Model(Settings):
    """The network and its options. An option that is None keeps the network's default."""

    name: str
    """Name of the network. `cifar-jax models` lists the known names. Any other name stands for the
    custom network `MODEL` in the experiment file."""
    dropout: Annotated[float | None, Field(ge=0, lt=1)] = None
    """Dropout rate. The paper uses 0.5. None: the network's default."""
    pooling: Literal["max", "average", "strided-conv"] | None = None
    """Kind of downsampling layers in the `net*` networks. None: the network's default."""
    arguments: Arguments = Field(default={})
    """Keyword arguments of the custom network `MODEL` in the experiment file, or further options of
    a network of the package, such as `relu_before_sum` of a ResNet."""


class Optimizer(Settings):
    """The optimizer. SGD, Adam and AdamW compute the same updates as in PyTorch."""

    name: Literal["sgd", "adam", "adamw", "muon", "custom"] = "sgd"
    """The update rule: `sgd` with momentum; `adam`; `adamw` with decoupled weight decay; `muon`,
    for kernels only; or `custom`, which uses `OPTIMIZER` of the experiment file. With `muon`, put
    all parameters that are not kernels into `param_groups`."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Base learning rate. The schedule multiplies it by a factor at each step."""
    momentum: HalfOpenUnit = 0.9
    """SGD and Muon: momentum coefficient."""
    nesterov: bool = False
    """SGD and Muon: whether to use Nesterov momentum."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay of every parameter. `sgd`, `adam` and `muon` use L2 regularization, which is
    added to the gradient as in PyTorch. `adamw` decouples weight decay from the gradient."""
    beta1: HalfOpenUnit = 0.9
    """Adam and AdamW: decay rate of the moving average of gradients."""
    beta2: HalfOpenUnit = 0.999
    """Adam and AdamW: decay rate of the moving average of squared gradients."""
    eps: Annotated[float, Field(ge=0)] = 1e-8
    """Adam and AdamW: constant added to the denominator of each update."""
    newton_schulz_steps: Count = 3
    """Muon: number of Newton-Schulz iterations that orthogonalize an update."""
    arguments: Arguments = Field(default={})
    """Keyword arguments of the custom `OPTIMIZER` in the experiment file."""


class ParamGroup(Settings):
    """A group of parameters with its own optimizer."""

    parameters: str
    """Glob patterns for the paths of the group's parameters, separated by commas. Examples are
    `*/bias` and `fc3/*`."""
    optimizer: Optimizer
    """Optimizer of the group. The schedule also scales this optimizer's learning rate."""
    until: Annotated[float | None, Field(ge=0, lt=1)] = None
    """Fraction of the epochs after which the group is frozen. 0: frozen from the start. None: never
    frozen."""


class Schedule(Settings):
    """The learning rate schedule. `plateau` is updated after an epoch, all others at each step."""

    name: Literal[
        "constant",
        "step",
        "milestones",
        "cosine",
        "warmup-cosine",
        "one-cycle",
        "linear",
        "triangular",
        "plateau",
        "custom",
    ] = "constant"
    """Form of the schedule. `constant`: never changes; `step`: reduced every `step_epochs` epochs;
    `milestones`: reduced after the epochs in `milestones`; `cosine`: decays to zero;
    `warmup-cosine`: rises linearly and decays to `end` along a cosine; `one-cycle`: rises and falls
    along cosines; `linear`: decays to `end`; `triangular`: rises and falls linearly; `plateau`:
    reduced when the validation loss stops falling; `custom`: `SCHEDULE` of the experiment file."""
    factor: OpenUnit = 0.5
    """`step`, `milestones` and `plateau`: factor by which each reduction multiplies the learning
    rate."""
    patience: Annotated[int, Field(ge=0)] = 5
    """`plateau`: number of consecutive epochs without improvement to wait for. The next such epoch
    reduces the learning rate."""
    threshold: HalfOpenUnit = 1e-4
    """`plateau`: smallest relative decrease of the loss that counts as an improvement."""
    step_epochs: Count = 30
    """`step`: number of epochs between two reductions of the learning rate."""
    milestones: Annotated[tuple[int, ...], Field(strict=False)] = ()
    """`milestones`: numbers of the epochs after which the learning rate is reduced, in ascending
    order."""
    warmup: OpenUnit = 0.3
    """`warmup-cosine`, `one-cycle` and `triangular`: fraction of the training steps during which
    the learning rate rises."""
    start: Annotated[float, Field(ge=0, le=1)] = 0.0
    """`warmup-cosine` and `triangular`: first learning rate, as a fraction of `optimizer.lr`."""
    end: Annotated[float, Field(ge=0, le=1)] = 0.0
    """`warmup-cosine`, `linear` and `triangular`: last learning rate, as a fraction of
    `optimizer.lr`."""
    arguments: Arguments = Field(default={})
    """Keyword arguments of the custom `SCHEDULE` in the experiment file."""

    @model_validator(mode="after")
    def _milestones_fit(self) -> Self:
        if self.name == "milestones" and not self.milestones:
            raise UserError(
                "schedule.name=milestones needs schedule.milestones: add "
                "--set 'schedule.milestones=[30,40]' with your epochs"
            )
        if self.milestones and self.name != "milestones":
            raise UserError(
                f"schedule.milestones has no effect with schedule.name={self.name}: add "
                "--set 'schedule.milestones=[]', or --set schedule.name=milestones"
            )
        if list(self.milestones) != sorted({max(epoch, 1) for epoch in self.milestones}):
            raise UserError(
                f"schedule.milestones is {list(self.milestones)}, but the epochs must be at least "
                "1 and in ascending order"
            )
        return self


class Loss(Settings):
    """Options of the training loss, which is cross-entropy."""

    label_smoothing: HalfOpenUnit = 0.0
    """Label smoothing: fraction of each label that is spread evenly over all classes."""
    class_weights: (
        Literal["balanced"] | Annotated[tuple[float, ...], Field(strict=False)] | None
    ) = None
    """Weight of each class in the training loss, as a list in the order of the classes. `balanced`:
    inversely proportional to the number of training images of the class. None: equal weights."""

    @model_validator(mode="after")
    def _weights_are_positive(self) -> Self:
        weights = self.class_weights
        if isinstance(weights, tuple) and not (weights and min(weights) > 0):
            raise UserError(
                f"loss.class_weights is {list(weights)}, but each class needs a weight above 0"
            )
        return self


class Ema(Settings):
    """Exponential moving average (EMA) of the weights. Validation and test use this average."""

    name: Literal["ema"] = "ema"
    """Kind of average: `ema`."""
    decay: HalfOpenUnit = 0.999
    """Fraction of the old average that an update keeps. Update number t keeps at most
    `(1 + t) / (10 + t)`."""
    every: Count = 1
    """Number of steps between updates of the average."""


class Lookahead(Settings):
    """The Lookahead method: slow weights repeatedly move toward the trained weights.

    After each update of the slow weights, training continues from the slow weights. Validation and
    test use the slow weights.
    """

    name: Literal["lookahead"] = "lookahead"
    """Kind of average: `lookahead`."""
    decay: HalfOpenUnit = 0.5
    """Fraction of the old slow weights that an update keeps, from 0 to 1. If `power` is above 0,
    earlier updates keep less."""
    every: Count = 5
    """Number of steps between updates of the slow weights."""
    power: Annotated[float, Field(ge=0)] = 0.0
    """Exponent that lowers `decay` early in training. An update uses `decay * progress**power`
    instead of `decay`. `progress` is the completed fraction of the training. 0: no change."""


class Initialization(Settings):
    """Changes to the random initial weights."""

    dirac: bool = False
    """Whether the first filters of each convolution initially copy the layer's input channels."""
    whitening: bool = False
    """Whether the first convolution whitens patches of the training images. Its kernel is then not
    trained."""


class TTAConfig(Settings):
    """Test-time augmentation: average the logits over several views of an image.

    A view is the image itself, or a mirrored or shifted copy of it.
    """

    flip: bool = False
    """Whether to add mirrored copies of the image."""
    shift: Annotated[int, Field(ge=0, le=4)] = 0
    """Distance in pixels by which two copies are shifted. One copy moves up and left, the other
    down and right. 0: no shifted copies."""
    least_confident: Annotated[float | None, Field(gt=0, lt=1)] = None
    """Fraction of the images for which the extra views are used. These are the images with the
    least confident predictions. None: all images."""


class Augmentation(Settings):
    """Data augmentation: random changes to the training images."""

    crop_padding: Annotated[int, Field(ge=0)] = 0
    """Padding on each side before a random crop, in pixels, up to half of `data.image_size`. 0: no
    crop."""
    crop_fill: Literal["zeros", "reflect"] = "zeros"
    """Content of the padding: `zeros` is black, `reflect` mirrors the image."""
    flip: bool | Literal["alternating"] = False
    """Mirror each image with probability 1/2. `alternating`: mirror a random half of the images in
    one epoch and the other half in the next epoch."""
    cutout: Annotated[int, Field(ge=0)] = 0
    """Side of a square that is erased from each image, in pixels, up to `data.image_size`. 0: no
    square."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """Blend pairs of images and their labels. The ratio is drawn from Beta(mixup, mixup). 0:
    off."""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """Paste a box of another image into each image. The fraction of the image that the box covers
    is drawn from Beta(cutmix, cutmix). 0: off."""
    brightness: Annotated[float, Field(ge=0)] = 0.0
    """Largest random change of an image's brightness, in standard deviations of the pixels. 0:
    off."""
    contrast: HalfOpenUnit = 0.0
    """Largest random change of an image's contrast, as a fraction of the contrast. 0: off."""

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
    """Fraction of the epochs after which the phase ends. The phase begins at the end of the
    previous phase."""
    image_size: Annotated[int | None, Field(ge=8)] = None
    """Height and width to which the images are resized, in pixels, up to `data.image_size`. None:
    `data.image_size`."""
    batch_size: Annotated[int | None, Field(ge=1)] = None
    """Number of images per step. None: the run's `batch_size`."""
    augmentation: Augmentation | None = None
    """Augmentation of the phase. None: the augmentation in `data`."""

    @model_validator(mode="after")
    def _changes_training(self) -> Self:
        if self.image_size is self.batch_size is self.augmentation is None:
            raise UserError(
                f"the phase that ends at until={self.until} changes nothing: set its image_size, "
                "batch_size or augmentation"
            )
        return self


class Data(Augmentation):
    """The data set, its validation split, and the augmentation."""

    dataset: Annotated[str, AfterValidator(_tidy_path)] = "cifar10"
    """The data set: `cifar10`; `cifar100`; `digits`, which is included in the package;
    `folder:PATH` for your own images; `tfds:NAME` for a data set that tensorflow-datasets has
    prepared; or `npz:FILE` for a NumPy archive."""
    image_size: Annotated[int, Field(ge=8, le=1024)] = 32
    """Height and width of the images, in pixels. The images of `folder:`, `tfds:` and `npz:` are
    resized to this size when they are read. All other data sets have 32×32 pixels."""
    center_crop: bool = True
    """How an image of `folder:`, `tfds:` or `npz:` becomes square. If True, the largest centered
    square is used. If False, the whole image is used, and its longer side is squeezed."""
    validation: Annotated[float, Field(ge=0)] = 0.1
    """Images held out for validation, from the end of the training set. A value below 1 is a
    fraction of the training set. A value of 1 or more is a number of images."""
    train_images: Annotated[int | None, Field(ge=1)] = None
    """Number of images to train on, after the validation split. None: all."""
    last_batch: Literal["drop", "wrap"] = "drop"
    """How to treat an incomplete last batch of an epoch: `drop` leaves it out, `wrap` fills it with
    the epoch's first images."""
    skip_bad_images: Annotated[bool, RuntimeOnly()] = False
    """Whether to leave out unreadable images if the data set is a folder of images. If False, an
    unreadable image is an error."""
    arguments: Arguments = Field(default={})
    """Keyword arguments of the custom `AUGMENTATION` in the experiment file."""


class Train(Settings):
    """Settings of precision, pretrained weights, early stopping, logging and checkpoints."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Data type of the computation. Parameters, BatchNorm statistics and logits are always
    float32."""
    init_from: str | None = None
    """Run folder, exported file or packaged network with pretrained weights to start from. If
    its classes are not those of the data set, the last layer is reinitialized. None: random
    weights."""
    freeze: str | None = None
    """Layers that keep their pretrained weights and BatchNorm statistics. `backbone`: all layers
    except the last. Otherwise glob patterns for the paths of the layers, separated by commas, such
    as `conv1, bn1, stage*`. None: all layers are trained."""
    best_by: Literal["accuracy", "loss", "balanced-accuracy"] = "accuracy"
    """Validation metric that determines the best epoch. `balanced-accuracy` is the mean of the
    accuracies of the classes."""
    early_stopping: Annotated[int | None, Field(ge=1)] = None
    """End the run after this number of epochs without a new best epoch. None: train all epochs."""
    steps_per_call: Annotated[int | None, Field(ge=1), RuntimeOnly()] = None
    """Number of training steps per compiled call. None: chosen so that one call takes about 0.2
    s."""
    eval_batch_size: Annotated[Count, RuntimeOnly()] = 500
    """Number of images per evaluation batch, for images of 32×32 pixels. A batch of larger images
    has fewer images and about the same number of pixels."""
    log_every: Annotated[Count, RuntimeOnly()] = 2000
    """Number of steps between loss lines in the log. Example: `[EPOCH 041 | IT 04000] LOSS:
    0.001`."""
    keep_checkpoints: Annotated[Count, RuntimeOnly()] = 2
    """Number of latest end-of-epoch checkpoints to keep. The checkpoint of the best epoch is always
    kept too."""
    checkpoint_minutes: Annotated[float | None, Field(gt=0), RuntimeOnly()] = 10.0
    """Time between checkpoints within an epoch, in minutes. None: save a checkpoint only at the end
    of each epoch."""
    devices: Annotated[int | None, Field(ge=1), RuntimeOnly()] = None
    """Number of devices to use. None: the largest available number that divides the batch size."""


class Paper(Settings):
    """The paper's results for an experiment."""

    tables: str
    """Numbers of the paper's tables about the experiment, such as `17–18`."""
    test_accuracy: float
    """Test accuracy in the paper, in percent."""
    parameters: int
    """Number of parameters in the paper."""


class Config(Settings):
    """The settings of one experiment, in the order of the paper's hyperparameter tables."""

    is_root: ClassVar = True

    model: Model
    """The network and its options."""
    epochs: Count
    """Number of passes over the training images."""
    batch_size: Count
    """Number of images per step, over all devices together."""
    optimizer: Optimizer
    """Optimizer of all parameters outside of `param_groups`."""
    param_groups: Annotated[tuple[ParamGroup, ...], Field(strict=False)] = ()
    """Groups of parameters with their own optimizer. A parameter belongs to the first group that
    matches it. Each group has `parameters`, `optimizer` and `until`."""
    clip_norm: Annotated[float | None, Field(gt=0)] = None
    """Largest norm of the gradient of all trained parameters. A larger gradient is scaled down
    to this norm. None: gradients are not clipped."""
    schedule: Schedule = Schedule()
    """Learning rate schedule."""
    loss: Loss = Loss()
    """Training loss."""
    averaging: Annotated[Ema | Lookahead | None, Field(discriminator="name")] = None
    """Average of the weights that is evaluated. None: the trained weights are evaluated."""
    init: Initialization = Initialization()
    """Changes to the initial weights."""
    phases: Annotated[tuple[Phase, ...], Field(strict=False)] = ()
    """Phases at the start of the training. Each phase has `until`, and can set `image_size`,
    `batch_size` and `augmentation`."""
    data: Data = Data()
    """Data set, validation split and augmentation."""
    tta: TTAConfig = TTAConfig()
    """Test-time augmentation."""
    train: Train = Train()
    """Precision, pretrained weights, early stopping, logging and checkpoints."""
    paper: Annotated[Paper | None, Field(exclude=True)] = None
    """The paper's results for the experiment. This is not a setting."""
    varies: Annotated[str | None, Field(exclude=True)] = None
    """Name of the paper's experiment of which this experiment is a variant. This is not a
    setting."""

    @model_validator(mode="after")
    def _parts_fit_each_other(self) -> Self:
        ends = [phase.until for phase in self.phases]
        if ends != sorted(set(ends)):
            raise UserError(
                f"the phases end at until={', '.join(map(str, ends))}, but each phase must end "
                "after the previous phase: sort the phases by until"
            )
        self._check_pixels()
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
        if self.train.freeze and not self.train.init_from:
            raise UserError(
                "train.freeze keeps pretrained weights, but train.init_from names none: set "
                "train.init_from, such as --set train.init_from=fast-net-bn-gap"
            )
        if any(milestone >= self.epochs for milestone in self.schedule.milestones):
            raise UserError(
                f"schedule.milestones is {list(self.schedule.milestones)}, but the run has only "
                f"{counted(self.epochs, 'epoch')}: each milestone must be below the number of "
                "epochs"
            )
        return self

    def _check_pixels(self) -> None:
        """Raise UserError if an image size, crop padding or cutout is too large for the images."""
        side = self.data.image_size
        places: list[tuple[str, Augmentation | None]] = [("data", self.data)]
        for number, phase in enumerate(self.phases):
            places.append((f"phases[{number}].augmentation", phase.augmentation))
            if phase.image_size and phase.image_size > side:
                raise UserError(
                    f"phases[{number}].image_size is {phase.image_size}, but it must be at most "
                    f"{side}, which is data.image_size"
                )
        for place, augmentation in places:
            limits = {"crop_padding": side // 2, "cutout": side}
            for name, largest in limits.items():
                if augmentation and (pixels := getattr(augmentation, name)) > largest:
                    raise UserError(
                        f"{place}.{name} is {pixels}, but it must be at most {largest}, because "
                        f"the images have {side} × {side} pixels"
                    )


def from_flat(stored: Mapping[str, Any]) -> Config:
    """Return the config for settings by dotted name, as returned by `flatten`.

    Raises:
      UserError: a setting is unknown or has an invalid value.
    """
    return dotted.restore(Config, stored)


def identity(config: Config | Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that determine the result of a run, by dotted name.

    Args:
      config: a config, or its settings by dotted name.
    """
    config = config if isinstance(config, Config) else from_flat(config)
    settings = dotted.part(config, runtime_only=False)
    # The images may be moved to another folder, so ignore the path. A digest identifies the images.
    kind, _, path = settings["data.dataset"].partition(":")
    if kind in FILE_KINDS and path:
        settings["data.dataset"] = f"{kind}:{Path(path).absolute().name}"
    return settings


def changes(before: Config, after: Config) -> dict[str, Any]:
    """Return the settings of `after` that differ from `before` and affect the result of a run."""
    differing = differences(identity(before), identity(after))
    return {name: value for name, (_, value) in differing.items()}


def runtime_settings(config: Config) -> dict[str, Any]:
    """Return the settings that may change when a run is resumed, by dotted name."""
    return dotted.part(config, runtime_only=True)


def describe() -> list[dict[str, Any]]:
    """Return a description of every setting of a run; see `dotted.describe`."""
    return dotted.describe(Config)
