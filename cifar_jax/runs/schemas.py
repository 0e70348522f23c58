"""Pydantic models of the JSON files that a run writes and reads.

docs/run-folder.md describes every file and field. Importing this module does not import JAX.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from cifar_jax.errors import UserError

FORMAT: Literal[1] = 1
"""Version of the file formats in a run folder. Files with another version are refused."""

_REMEDY = "Restore it from a backup, or train the run again with --fresh."

M = TypeVar("M", bound="Stored")


class Stored(BaseModel):
    """Base class of everything that a run writes as JSON and reads again."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class RunIdentity(Stored):
    """The content of `config.json`: experiment, seed and settings of a run.

    Training refuses a folder that holds another identity.
    """

    format: Literal[1] = FORMAT
    experiment: str
    """Name of the experiment file, such as `resnet18-adam`."""
    seed: int
    overrides: dict[str, Any]
    """Settings that differ from the experiment file, by dotted name."""
    settings: dict[str, Any]
    """Every setting by dotted name."""


class Device(Stored):
    """The devices that a session used for training."""

    platform: str
    """`cpu`, `gpu` or `tpu`."""
    kind: str
    """Name of the device model, as JAX reports it."""
    count: int
    """Number of devices."""


class Machine(Stored):
    """The machine on which a session ran."""

    system: str
    cpu: str | None
    """Model name of the processor."""
    cores: int | None
    """Number of processor cores that the process may use."""
    features: list[str]
    """Instruction sets that influence which CPU kernels XLA chooses."""


class Session(Stored):
    """An entry of `env.json`: one start of a run, and the environment that it ran in."""

    started: str | None = None
    """Start time in UTC, in ISO 8601."""
    command: list[str] | None = None
    git_commit: str | None
    """Git commit of the package, with `-dirty` if the code was changed. None: not in a git
    checkout."""
    versions: dict[str, str]
    device: Device
    machine: Machine
    xla_flags: str = ""
    matmul_precision: str = ""
    runtime_settings: dict[str, Any] = {}
    """Settings that may differ between the sessions of a run, by dotted name."""


class MetricsRow(Stored):
    """The metrics of an epoch, as in one line of `metrics.jsonl`.

    Accuracies are in percent, losses in nats.
    """

    epoch: int
    """Number of the epoch, counted from 1."""
    step: int
    """Number of steps of the run up to the end of the epoch."""
    train_loss: float
    train_accuracy: float
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    validation_balanced_accuracy: float | None = None
    """Mean of the validation accuracies of the classes, in percent. Left out of the file if it is
    None."""
    learning_rate: float
    """Learning rate of the last step in the epoch."""
    images_per_second: float
    wall_seconds: float
    """Time spent on the run so far, over all sessions, in seconds."""

    @model_serializer(mode="wrap")
    def _leave_out_balance(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Do not write the balanced accuracy if the run does not measure it.
        fields = serialize(self)
        if fields.get("validation_balanced_accuracy", 0) is None:
            del fields["validation_balanced_accuracy"]
        return fields


class DataCard(Stored):
    """The data set that a model was trained on."""

    name: str
    sha256: str
    """Digest of the training and test images and labels, in their order."""
    content: str
    """Digest of the images and labels that does not depend on their order."""
    official: bool
    """Whether images, labels and splits are those of the official CIFAR-10."""
    train_images: int
    validation_images: int
    skipped_images: int = 0
    """Number of unreadable images that were left out."""


class CodeCard(Stored):
    """The experiment file that defines a model's custom parts."""

    file: str
    sha256: str
    modules: dict[str, str] = {}
    """SHA-256 of each module that the file imports from its folder, by module name."""


class NetworkCard(Stored):
    """The name and the options of a network."""

    name: str
    num_classes: int
    dropout: float | None = None
    pooling: str | None = None
    arguments: dict[str, Any] = {}
    """Further arguments of the network."""


class TTACard(Stored):
    """Settings of test-time augmentation; see `cifar_jax.training.evaluation.TTA`."""

    flip: bool = False
    shift: int = 0
    least_confident: float | None = None


class LayerRow(Stored):
    """One layer of a network. The fields are the columns of the paper's tables."""

    name: str
    output_size: str
    configuration: str
    parameters: int
    multiply_adds: int


class ModelCard(Stored):
    """The description of a model: all that is needed to use its weights.

    It is stored in `model.json`, and as metadata in exported files.
    """

    format: Literal[1] = FORMAT
    experiment: str = Field(pattern=r"^[^/\\\x00]*$")
    seed: int
    model: NetworkCard
    precision: Literal["float32", "bfloat16"]
    """Data type of the computation. Parameters and logits are float32."""
    classes: list[str] = Field(min_length=1)
    """Names of the classes, in the order of the logits."""
    input_shape: list[int] = [32, 32, 3]
    """Height, width and channels of an image. The channels are red, green and blue."""
    center_crop: bool = True
    """How an image file becomes square: True if the largest centered square is used, False if the
    whole image is squeezed."""
    input_range: list[float] = [0, 255]
    """Smallest and largest pixel value that the model takes, before normalization."""
    mean: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=3, max_length=3)]
    """Mean of each channel, on a scale of 0 to 1. The network takes `(x / 255 - mean) / std`."""
    std: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=3, max_length=3)]
    """Standard deviation of each channel, on a scale of 0 to 1."""
    white: Annotated[int | None, Field(ge=1)] = None
    """The 16-bit pixel value that becomes 255. None if no training image had 16-bit values."""
    tta: TTACard = TTACard()
    """Test-time augmentation that was used to measure `test_accuracy`."""
    layers: list[LayerRow] = []
    data: DataCard | None = None
    """Data set that the model was trained on. None if the weights were imported."""
    code: CodeCard | None = None
    """Experiment file of the custom parts. None if all parts are the package's."""
    imported_from: str | None = None
    """File from which the weights were imported. None if they were not imported."""
    initial_params_sha256: str | None = None
    """Digest of the pretrained weights named by `train.init_from`. None: random weights."""
    paper_accuracy: float | None = None

    step: int | None = None
    """Number of training steps of the weights. None if the card describes no weights."""
    epoch: int | None = None
    test_accuracy: float | None = None
    """Test accuracy of exactly these weights, in percent, with `tta`. None if it was not
    measured."""
    test_accuracy_plain: float | None = None
    """Test accuracy in percent without test-time augmentation. None if it was not measured."""
    git_commit: str | None = None
    weights_sha256: str | None = None
    """Digest of the tensors or the program in an exported file."""

    @model_validator(mode="after")
    def _count_classes(self) -> Self:
        if self.model.num_classes != len(self.classes):
            raise ValueError(
                f"`model.num_classes` is {self.model.num_classes}, but the field `classes` has "
                f"{len(self.classes)} classes"
            )
        return self


class Result(Stored):
    """The content of `result.json`, which a run writes last. Records have the same fields."""

    format: Literal[1] = FORMAT
    experiment: str
    seed: int
    overrides: dict[str, Any]
    settings: dict[str, Any]
    model: str
    dataset: str
    parameters: int
    epochs: int
    steps: int
    train_loss: float | None
    train_accuracy: float | None
    validation_loss: float | None
    validation_accuracy: float | None
    test_loss: float
    test_accuracy: float
    """Test accuracy in percent of the last epoch's weights, with the run's test-time
    augmentation."""
    test_accuracy_plain: float | None
    """Test accuracy in percent without test-time augmentation. None in old records, which did not
    measure it."""
    best_validation_epoch: int | None
    """Epoch with the best validation metric. The setting `train.best_by` names the metric."""
    best_validation_accuracy: float | None
    """Validation accuracy in percent of the weights from epoch `best_validation_epoch`."""
    best_validation_test_accuracy: float | None
    """Test accuracy in percent of the weights from epoch `best_validation_epoch`."""
    images_per_second: float | None
    """Training speed in images per second: median over the epochs. Evaluation is not included."""
    params_sha256: str | None
    """Digest of the evaluated parameters; see `cifar_jax.training.result.params_sha256`."""
    data_sha256: str
    data_content: str
    data_official: bool
    paper_accuracy: float | None
    wall_seconds: float
    compile_seconds: float
    """Compilation time in the last session, in seconds."""
    git_commit: str | None
    versions: dict[str, str]
    device: Device
    machine: Machine
    sessions: list[Session]
    outputs_differ: int = 0
    """Only in old records, whose logits were rounded to float16: number of test images whose
    predicted class changed by the rounding. 0 otherwise."""


class SavedState(Stored):
    """The metadata of a checkpoint: everything except the arrays of the state."""

    format: Literal[1] = FORMAT
    number: int
    """Number of the checkpoint within the run, counted from 1."""
    step: int
    epoch: int
    """Number of completed epochs."""
    end_of_epoch: bool
    """Whether the checkpoint was saved at the end of an epoch. If False, it was saved within
    one."""
    validation_accuracy: float | None
    """Validation accuracy in percent. None if it was not measured for this checkpoint."""
    extra: dict[str, Any]
    """Further values that the training loop restores, by name."""
    digests: dict[str, str]
    """SHA-256 of the arrays in each field of the state, by name of the field."""
    meta_sha256: str = ""
    """SHA-256 of all other fields, written as JSON with sorted keys."""


def read_json(path: Path, remedy: str = _REMEDY) -> Any:
    """Return the JSON value in a file.

    Raises:
      UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path.parent} is not a run folder, because it has no file {path.name}: name a folder "
            "such as runs/EXPERIMENT/seedN"
        ) from None
    except (ValueError, RecursionError):
        raise UserError(f"{path} is damaged: it is not valid JSON. {remedy}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def read(path: Path, model: type[M], remedy: str = _REMEDY) -> M:
    """Read a JSON file as a pydantic model of type `model`.

    Raises:
      UserError: the file cannot be read, or a field is missing or has the wrong type.
    """
    return parse(read_json(path, remedy), model, path, remedy)


def parse(value: Any, model: type[M], path: Path | str, remedy: str = _REMEDY) -> M:
    """Convert a JSON value to a pydantic model of type `model`.

    Args:
      value: the JSON value.
      model: the class of the result.
      path: file that contained the value, for error messages.
      remedy: last sentence of an error message.

    Raises:
      UserError: a field is missing or has the wrong type. The message names the first such field.
    """
    if not isinstance(value, Mapping):
        raise UserError(f"{path} is damaged: it is not a JSON object. {remedy}")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        name = ".".join(map(str, fault["loc"]))
        if name == "format":
            raise UserError(
                f"{path} has the file format {fault['input']!r}, but this version of cifar-jax "
                f"reads only format {FORMAT}. Use the version of cifar-jax that wrote the file."
            ) from None
        if fault["type"] == "missing":
            raise UserError(f"{path} is damaged: the field `{name}` is missing. {remedy}") from None
        message = fault["msg"].removeprefix("Value error, ")
        if name:
            should_be = message.replace("Input should be a valid", "it must be a")
            should_be = should_be.replace("Input should", "it should").partition(", unable")[0]
            message = f"the field `{name}` is {fault['input']!r:.100}, but {should_be}"
        raise UserError(f"{path} is damaged: {message}. {remedy}") from None


def read_rows(path: Path) -> tuple[list[MetricsRow], int]:
    """Return the metrics in a `metrics.jsonl`, and the number of lines that cannot be read.

    A missing file has no metrics. If an epoch has several lines, the last line is used.
    """
    rows: dict[int, MetricsRow] = {}
    unreadable = 0
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.splitlines():
        try:
            row = MetricsRow.model_validate_json(line)
            rows[row.epoch] = row
        except ValidationError:
            unreadable += 1
    return [rows[epoch] for epoch in sorted(rows)], unreadable


def read_sessions(path: Path) -> list[Session]:
    """Return the sessions in an `env.json`, oldest first. A missing file has no sessions."""
    return read_list(path, Session, _REMEDY)


def read_list(path: Path, model: type[M], remedy: str) -> list[M]:
    """Read a JSON list whose entries are pydantic models. A missing file is an empty list.

    Args:
      path: the file.
      model: the class of the entries.
      remedy: what to do about a bad entry, for the error message.

    Raises:
      UserError: the file cannot be read, or an entry is incomplete.
    """
    if not path.exists():
        return []
    entries = read_json(path, remedy)
    if not isinstance(entries, list):
        raise UserError(f"{path} is damaged: it is not a JSON list. {remedy}")
    return [parse(entry, model, path, remedy) for entry in entries]


def dump(value: Stored) -> dict[str, Any]:
    """Return a pydantic model as a dictionary of JSON-compatible values."""
    return value.model_dump(mode="json")
