"""Make the model card of a run, and check it against the stored card when the run resumes.

A model card describes a network and the data that it was trained on.
"""

from pathlib import Path

from cifar_jax import models
from cifar_jax.catalog import code_digest
from cifar_jax.config import FILE_KINDS
from cifar_jax.data import Dataset
from cifar_jax.errors import UserError
from cifar_jax.models.summary import summarize
from cifar_jax.runs.checkpoints import Checkpoints, DamagedError
from cifar_jax.runs.folder import RunFolder
from cifar_jax.runs.schemas import CodeCard, DataCard, LayerRow, ModelCard, NetworkCard, TTACard
from cifar_jax.training.freezing import Pretrained
from cifar_jax.training.request import RunRequest
from cifar_jax.training.result import params_sha256
from cifar_jax.training.setup import Setup
from cifar_jax.user_modules import late_modules


def make_card(request: RunRequest, setup: Setup, initial: Pretrained | None = None) -> ModelCard:
    """Return the model card of a run. The fields about trained weights are left out.

    Args:
      request: the run.
      setup: the setup of the run.
      initial: trained network that the run starts from. None: random weights.
    """
    dataset, config, custom = setup.dataset, request.config, request.custom
    layers = summarize(setup.spec.model, dataset.image_shape[0])
    code = None
    if custom.file:
        digest = code_digest(custom.source)
        modules = {**custom.modules, **late_modules(custom.loaded)}
        code = CodeCard(file=custom.file.name, sha256=digest, modules=modules)
    return ModelCard(
        experiment=request.experiment,
        seed=request.seed,
        model=NetworkCard(num_classes=len(dataset.classes), **config.model.model_dump()),
        precision=config.train.precision,
        classes=list(dataset.classes),
        input_shape=list(dataset.image_shape),
        center_crop=config.data.center_crop,
        mean=list(dataset.mean),
        std=list(dataset.std),
        white=dataset.white,
        tta=TTACard(**config.tta.model_dump()),
        layers=[LayerRow(**vars(layer)) for layer in layers],
        data=DataCard(
            name=dataset.name,
            sha256=dataset.fingerprint,
            content=dataset.content,
            official=dataset.official,
            train_images=len(setup.train.labels),
            validation_images=len(setup.validation.labels),
            skipped_images=len(dataset.skipped),
        ),
        code=code,
        initial_params_sha256=initial and params_sha256(initial.variables["params"]),
        paper_accuracy=config.paper.test_accuracy if config.paper else None,
    )


def update_card(
    request: RunRequest,
    setup: Setup,
    folder: RunFolder,
    checkpoints: Checkpoints,
    card: ModelCard,
) -> list[str]:
    """Write the model card of a new run, or check the card of a resumed run.

    If the experiment file defines custom parts, a copy of the file is also written.

    Returns:
      Lines for the log: one line if the code changed since the last session, else none.

    Raises:
      UserError: the run started with other images or pretrained weights, or its checkpoints do not
        fit the network.
    """
    old, custom = folder.card(), request.custom
    lines = []
    if old is None:
        folder.write_card(card)
    else:
        check_images(folder.path, old, setup.dataset)
        initial = card.initial_params_sha256
        if initial and old.initial_params_sha256 not in (None, initial):
            raise UserError(
                f"the weights in {request.config.train.init_from} have changed since the run in "
                f"{folder.path} started from them: choose another --workdir, or start over with "
                "--fresh"
            )
        if changed := _changed_files(old.code, card.code):
            message = f"these files changed since this run was last trained: {', '.join(changed)}"
            _check_weights(setup, checkpoints, message)
            lines.append(f"{message}; the copy in the run folder is updated")
            folder.write_card(old.model_copy(update={"code": card.code, "layers": card.layers}))
    if custom.file:
        folder.write_code(custom.source)
    if setup.dataset.skipped:
        folder.write_skipped(setup.dataset.skipped)
    folder.move_data(request.config.data.dataset)
    return lines


def check_images(path: Path, card: ModelCard, dataset: Dataset) -> None:
    """Raise UserError if a run was trained with other images or class names than `dataset` has."""
    if card.data is None:
        return
    if card.data.sha256 != dataset.fingerprint:
        same = card.data.content == dataset.content
        difference = "the same images in another order" if same else "other images"
    elif card.classes != list(dataset.classes):
        difference = f"the classes {', '.join(card.classes[:20])}"
    else:
        return
    remedy = "Set TFDS_DATA_DIR to the data folder that the run was started with"
    if dataset.name.partition(":")[0] in FILE_KINDS:
        remedy = "Name those images with --set data.dataset=folder:PATH or npz:FILE"
    raise UserError(
        f"the run in {path} was started with {difference} of {card.data.name}. {remedy}, or choose "
        "another --workdir."
    )


def _changed_files(old: CodeCard | None, new: CodeCard | None) -> list[str]:
    """Return the names of the code files that differ between two model cards."""

    def digests(code: CodeCard | None) -> dict[str, str]:
        return code.modules | {code.file: code.sha256} if code else {}

    before, after = digests(old), digests(new)
    return sorted(name for name in before | after if before.get(name) != after.get(name))


def _check_weights(setup: Setup, checkpoints: Checkpoints, message: str) -> None:
    """Raise UserError if the newest checkpoint does not fit the changed code of a network."""
    saved = checkpoints.latest()
    if saved is None:
        return
    try:
        weights = checkpoints.weights(saved)
    except DamagedError:
        return  # A damaged checkpoint is reported later, when it is restored.
    shapes = models.variable_shapes(setup.spec.model, setup.dataset.image_shape[0])
    try:
        models.match_variables(weights, shapes, "the last checkpoint")
    except UserError as error:
        raise UserError(
            f"{message}. Now {error}; choose another --workdir, or start over with --fresh"
        ) from None
