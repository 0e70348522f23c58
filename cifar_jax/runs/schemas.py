"""The files of a run that are read back, each as one pydantic model. Imports no JAX.

docs/run-folder.md describes every file and field.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cifar_jax.errors import UserError

FORMAT: Literal[1] = 1
"""Version of the run folder. A reader refuses any other."""

_REMEDY = "Restore it from a backup, or start over with --fresh."

M = TypeVar("M", bound="Stored")


class Stored(BaseModel):
    """Base of everything that a run writes as JSON and reads back."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class RunIdentity(Stored):
    """`config.json`: what the run is. A folder that holds another identity is refused."""

    format: Literal[1] = FORMAT
    experiment: str
    """Name of the experiment file, such as `resnet18-adam`."""
    seed: int
    overrides: dict[str, Any]
    """Settings that differ from the experiment file's, by dotted name."""
    settings: dict[str, Any]
    """Every setting by dotted name."""


class Device(Stored):
    """The devices that a session computed on."""

    platform: str
    """`cpu`, `gpu` or `tpu`."""
    kind: str
    count: int


class Machine(Stored):
    """The host of a session."""

    system: str
    cpu: str | None
    """Model name of the processor."""
    cores: int | None
    """Cores that the process may use."""
    features: list[str]
    """Instruction sets by which XLA chooses its kernels."""


class Session(Stored):
    """One entry of `env.json`: one start of the run, and where it computed."""

    started: str | None = None
    """UTC, ISO 8601."""
    command: list[str] | None = None
    git_commit: str | None
    """Commit of the package's checkout, with `-dirty` if its code was changed."""
    versions: dict[str, str]
    device: Device
    machine: Machine
    xla_flags: str = ""
    matmul_precision: str = ""
    runtime_settings: dict[str, Any] = {}
    """Settings that may differ from session to session, by dotted name."""


class MetricsRow(Stored):
    """One line of `metrics.jsonl`: an epoch. Accuracies are in percent, losses in nats."""

    epoch: int
    """From 1."""
    step: int
    """Updates made by the end of the epoch."""
    train_loss: float
    train_accuracy: float
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    learning_rate: float
    """Of the epoch's last update."""
    images_per_second: float
    wall_seconds: float
    """Training time so far, over all sessions."""


class DataCard(Stored):
    """The images that a model was trained on."""

    name: str
    sha256: str
    """Over training and test images and labels, in their order."""
    content: str
    """Digest that does not depend on the order of the images."""
    official: bool
    """Whether these are exactly the images of the official CIFAR-10."""
    train_images: int
    validation_images: int


class CodeCard(Stored):
    """The code that defines a model's custom parts."""

    file: str
    sha256: str
    modules: dict[str, str] = {}
    """SHA-256 of each module next to the file that it imports, by module name."""


class NetworkCard(Stored):
    """The network and its options."""

    name: str
    num_classes: int
    dropout: float | None = None
    pooling: str | None = None
    arguments: dict[str, Any] = {}
    """Further fields of a custom model."""


class TTACard(Stored):
    """Test-time augmentation; see `cifar_jax.training.evaluation.TTA`."""

    flip: bool = False
    shift: int = 0
    least_confident: float | None = None


class LayerRow(Stored):
    """One layer, in the columns of the paper's tables."""

    name: str
    output_size: str
    configuration: str
    parameters: int
    multiply_adds: int


class ModelCard(Stored):
    """`model.json`, and the metadata of exports: all that is needed to use a model."""

    format: Literal[1] = FORMAT
    experiment: str = Field(pattern=r"^[^/\\\x00]*$")
    seed: int
    model: NetworkCard
    precision: Literal["float32", "bfloat16"]
    """Compute type; parameters and logits are float32."""
    classes: list[str] = Field(min_length=1)
    """In the order of the logits."""
    input_shape: list[int] = [32, 32, 3]
    """Height, width, channels (red, green, blue)."""
    input_range: list[float] = [0, 255]
    """Values of the images that the model takes, before normalization."""
    mean: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=3, max_length=3)]
    """Of each channel, on a scale of 0 to 1; the network takes `(x / 255 - mean) / std`."""
    std: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=3, max_length=3)]
    tta: TTACard = TTACard()
    """Test-time augmentation behind `test_accuracy`."""
    layers: list[LayerRow] = []
    data: DataCard | None = None
    """None if the weights were imported."""
    code: CodeCard | None = None
    """None if all parts are the package's."""
    imported_from: str | None = None
    """File that the weights were imported from, if they were."""
    initial_params_sha256: str | None = None
    """Digest of the weights named by `train.init_from`."""
    paper_accuracy: float | None = None

    step: int | None = None
    """Of the weights, where the card goes with some."""
    epoch: int | None = None
    test_accuracy: float | None = None
    """Of exactly these weights, with `tta`; None if it was not measured."""
    test_accuracy_plain: float | None = None
    """The same with one view of each image."""
    git_commit: str | None = None
    weights_sha256: str | None = None
    """Digest of an export's tensors or program."""

    @model_validator(mode="after")
    def _count_classes(self) -> Self:
        if self.model.num_classes != len(self.classes):
            raise ValueError(
                f"model.num_classes is {self.model.num_classes}, but there are "
                f"{len(self.classes)} classes"
            )
        return self


class Result(Stored):
    """`result.json`, written last; a record in `results/` holds the same."""

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
    """Of the last epoch's weights, with the run's test-time augmentation."""
    test_accuracy_plain: float | None
    """The same with one view of each image; None in records from before it was measured."""
    best_validation_epoch: int | None
    best_validation_accuracy: float | None
    best_validation_test_accuracy: float | None
    """Test accuracy of the weights of `best_validation_epoch`."""
    images_per_second: float | None
    """Median over the epochs, training only."""
    params_sha256: str | None
    """Digest of the evaluated parameters; see `cifar_jax.training.result.params_sha256`."""
    data_sha256: str
    data_content: str
    data_official: bool
    paper_accuracy: float | None
    wall_seconds: float
    compile_seconds: float
    """Of the last session."""
    git_commit: str | None
    versions: dict[str, str]
    device: Device
    machine: Machine
    sessions: list[Session]
    outputs_differ: int = 0
    """Images for which the stored logits, rounded to float16, do not give the measured answer."""


class SavedState(Stored):
    """What a checkpoint tells about its state, without the arrays."""

    format: Literal[1] = FORMAT
    number: int
    """Counts the saves of a run, from 1."""
    step: int
    epoch: int
    """Epochs completed."""
    end_of_epoch: bool
    """Saved at the end of an epoch, not within one."""
    validation_accuracy: float | None
    """In percent; None if it was not measured here."""
    extra: dict[str, Any]
    """More values that the training loop restores."""
    digests: dict[str, str]
    """SHA-256 of the arrays of each field of the state."""
    meta_sha256: str = ""
    """SHA-256 of the other fields, as JSON with sorted keys."""


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
    """Return the `model` that a JSON file holds.

    Raises:
      UserError: the file cannot be read, or a field is missing or has the wrong type.
    """
    return parse(read_json(path, remedy), model, path, remedy)


def parse(value: Any, model: type[M], path: Path | str, remedy: str = _REMEDY) -> M:
    """Return `value`, which was read from `path`, as a `model`.

    `remedy` is the last sentence of an error message.

    Raises:
      UserError: a field is missing or has the wrong type. The message names the first one.
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
                f"{path} was written by another version of cifar-jax (file format "
                f"{fault['input']!r}, and this version reads {FORMAT}): use that version"
            ) from None
        if fault["type"] == "missing":
            raise UserError(f"{path} is damaged: the field {name} is missing. {remedy}") from None
        message = fault["msg"].removeprefix("Value error, ")
        if name:
            should_be = message.replace("Input should", "it should").partition(", unable")[0]
            message = f"the field {name} is {fault['input']!r:.100}, but {should_be}"
        raise UserError(f"{path} is damaged: {message}. {remedy}") from None


def read_rows(path: Path) -> tuple[list[MetricsRow], int]:
    """Return the epochs in a `metrics.jsonl`, and the number of lines that could not be read.

    A missing file has no epochs. If an epoch was written twice, the later line counts.
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
    """Return the sessions in an `env.json`, oldest first; none if the file is missing."""
    return read_list(path, Session, _REMEDY)


def read_list(path: Path, model: type[M], remedy: str) -> list[M]:
    """Return the models in a JSON list; none if the file is missing.

    Args:
      path: the file.
      model: the type of its entries.
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
    """Return a model as JSON-compatible values."""
    return value.model_dump(mode="json")
