"""Start a session of a run: open the run folder, check it, and restore the newest checkpoint."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import jax

from cifar_jax import config as configs
from cifar_jax import devices, distributed, models
from cifar_jax.callbacks.base import RunContext
from cifar_jax.catalog import code_digest
from cifar_jax.data import check_workdir
from cifar_jax.errors import UserError, counted
from cifar_jax.files import expand_home
from cifar_jax.runs import environment, schemas
from cifar_jax.runs import folder as folders
from cifar_jax.runs.checkpoints import Checkpoints
from cifar_jax.runs.folder import RunFolder
from cifar_jax.runs.schemas import Device, MetricsRow, Result, SavedState
from cifar_jax.training import model_card, notes
from cifar_jax.training.freezing import Pretrained
from cifar_jax.training.request import RunRequest
from cifar_jax.training.setup import Setup, load_dataset
from cifar_jax.training.step import TrainState


class Restored(NamedTuple):
    """The state of a run that is ready to start or resume, with its context."""

    state: TrainState
    context: RunContext
    lines: list[str]
    """Lines for the log about the start of this session."""


def finished_result(request: RunRequest) -> Result | None:
    """Return the result of the run if it is already finished, else None."""
    if request.fresh:
        return None

    def read() -> dict[str, Any] | None:
        identity = request.identity()
        result = folders.finished_result(request.workdir, identity, extend=request.extend)
        if result:
            _check_folder_of_images(request)
        return schemas.dump(result) if result else None

    result = distributed.run_on_main(read)
    return Result(**result) if result else None


def _check_folder_of_images(request: RunRequest) -> None:
    """Raise UserError if the folder or file of images has other images than the finished run used.

    The check is skipped if the config names the same path as the finished run, but the path no
    longer exists.
    """
    folder, settings = RunFolder(request.workdir), request.config.data
    kind, _, path = settings.dataset.partition(":")
    is_known = folder.identity().settings["data.dataset"] == settings.dataset
    if kind not in configs.FILE_KINDS or (is_known and not expand_home(path).exists()):
        return
    if card := folder.card():
        model_card.check_images(request.workdir, card, load_dataset(request.config))


def check_processes(request: RunRequest) -> None:
    """Raise UserError if the processes of a run have different settings, versions or code."""
    commit, _ = environment.git_commit()
    distributed.require_equal(
        {
            "experiment": request.experiment,
            "seed": request.seed,
            **configs.flatten(request.config),
            **environment.versions(),
            "git commit": commit,
            "experiment file": code_digest(request.custom.source),
            **{f"module {name}": sha256 for name, sha256 in request.custom.modules.items()},
            "XLA_FLAGS": os.environ.get("XLA_FLAGS"),
            "JAX_DEFAULT_MATMUL_PRECISION": os.environ.get("JAX_DEFAULT_MATMUL_PRECISION"),
            "--fresh": request.fresh,
            "--workdir": request.extend,
        },
        "settings, versions or code",
    )


def check_images(setup: Setup) -> None:
    """Raise UserError if the processes of a run have different images."""
    distributed.require_equal({"data.dataset": setup.dataset.fingerprint}, "images")


@contextmanager
def open_run(request: RunRequest, setup: Setup) -> Iterator[tuple[RunFolder, Checkpoints]]:
    """Open the folder and the checkpoints of a run. The main process locks the folder.

    Raises:
      UserError: the folder belongs to another run, is in use, or is not shared by all processes.
    """
    keep = setup.config.train.keep_checkpoints
    # Create the `Checkpoints` before the folder: if orbax cannot use the path, no folder is made.
    checkpoints = Checkpoints(RunFolder(request.workdir).checkpoints, keep)
    with ExitStack() as stack:

        def lock() -> None:
            check_workdir(setup.config.data.dataset, request.workdir)
            stack.enter_context(
                folders.open_run_folder(
                    request.workdir,
                    request.identity(),
                    fresh=request.fresh,
                    extend=request.extend,
                )
            )

        distributed.run_on_main(lock)
        if not all(distributed.allgather((request.workdir / "config.json").exists())):
            raise UserError(
                f"{request.workdir} is not the same folder in all processes: choose a --workdir "
                "on a shared file system"
            )
        yield RunFolder(request.workdir), stack.enter_context(checkpoints)


def load_initial(request: RunRequest) -> Pretrained | None:
    """Return the trained network that a new run starts from.

    The result is None if the run starts from random weights, or resumes from a checkpoint.
    """
    if request.load_weights is None:
        return None
    folder = RunFolder(request.workdir)
    if not request.fresh and folder.checkpoints.is_dir():
        with Checkpoints(folder.checkpoints) as checkpoints:
            if checkpoints.latest():
                return None
    return request.load_weights()


def restore_or_init(
    request: RunRequest,
    setup: Setup,
    folder: RunFolder,
    checkpoints: Checkpoints,
    beginning: TrainState,
    initial: Pretrained | None,
) -> Restored:
    """Restore the newest checkpoint, or start from `beginning`.

    Args:
      request: the run.
      setup: the setup of the run.
      folder: the run folder. The model card and the session are written to it.
      checkpoints: the checkpoints of the run.
      beginning: the state before the first step.
      initial: trained network whose weights are in `beginning`. None: random weights.

    Raises:
      UserError: the run was started with other images, other pretrained weights or another network.
    """
    card = model_card.make_card(request, setup, initial)
    lines = distributed.run_on_main(
        lambda: model_card.update_card(request, setup, folder, checkpoints, card)
    )
    state, saved, damaged = checkpoints.restore_latest(beginning)
    # Add the session only after a successful restore. Otherwise the next start would not report
    # what changed.
    lines += distributed.run_on_main(lambda: _add_session(setup, folder))
    if request.extend:
        distributed.run_on_main(lambda: folder.extend(request.identity()))
    epoch = int(state.epoch)

    def rewind() -> list[dict[str, Any]]:
        # Delete the metrics of epochs whose checkpoint is missing, because a process was killed.
        return [schemas.dump(row) for row in folder.rewind(epoch)]

    rows = [MetricsRow(**row) for row in distributed.run_on_main(rewind)]
    if len(rows) != epoch:
        lines.append(
            f"metrics.jsonl lacks {epoch - len(rows)} of the {counted(epoch, 'finished epoch')}"
        )
    extra = saved.extra if saved else {}
    context = RunContext(
        setup,
        folder,
        request.identity(),
        rows,
        elapsed_before=extra.get("elapsed_seconds", 0.0),
        images_per_second=extra.get("images_per_second", 0.0),
        logged=tuple(extra.get("logged", (0.0, 0))),
    )
    names = ", ".join(setup.dataset.classes[:20])
    more = ", …" if len(setup.dataset.classes) > 20 else ""
    first = [_headline(request, setup, saved), f"classes: {names}{more}", *setup.dataset.notes]
    first += notes.settings_lines(setup, None if saved else initial)
    if setup.config.train.precision == "bfloat16":
        warning = devices.bfloat16_warning(setup.mesh)
        first += [warning] if warning else []
    return Restored(state, context, [*first, *lines, *damaged])


def _device(setup: Setup) -> Device:
    device = setup.mesh.devices.flat[0]
    return Device(platform=device.platform, kind=device.device_kind, count=setup.mesh.size)


def _add_session(setup: Setup, folder: RunFolder) -> list[str]:
    """Add this session to the run folder.

    Returns:
      Lines for the log about what changed since the previous session.
    """
    commit, reason = environment.git_commit()
    settings = configs.runtime_settings(setup.config)
    session = environment.session(_device(setup), commit, settings)
    previous = folder.sessions()
    folder.add_session(session)
    lines = []
    if reason:
        lines = [f"the git commit is not recorded, so changes of the code are unknown: {reason}"]
        # An unknown commit is not reported as a change.
        previous = [old.model_copy(update={"git_commit": commit}) for old in previous]
    if previous and (changes := environment.changes(previous[-1], session)):
        lines.append(
            "the result may differ slightly from that of an uninterrupted run, because of changes "
            f"since the last session: {', '.join(changes)}"
        )
    return lines


def _headline(request: RunRequest, setup: Setup, saved: SavedState | None) -> str:
    device, dataset = _device(setup), setup.dataset
    source = request.config.train.init_from
    start = f"starts from the weights of {source}" if source else "starts"
    if saved:
        start = f"resumes at step {saved.step:,}"
    numbers = sorted({epoch.steps for epoch in setup.plan.epochs})
    *fewer, most = numbers
    steps = " or ".join([*(f"{number:,}" for number in fewer), counted(most, "step")])
    side = dataset.image_shape[0]
    size = "" if side == models.IMAGE_SHAPE[0] else f" of {side}×{side} pixels"
    arithmetic = ""
    if device.platform != "cpu":
        precision = jax.config.jax_default_matmul_precision or "default"  # pyright: ignore
        arithmetic = f" in {request.config.train.precision} (matrix products: {precision})"
    return (
        f"{request.experiment} seed {request.seed} {start}: "
        f"{counted(len(setup.plan.epochs), 'epoch')} of {steps} on {dataset.name}, "
        f"{len(dataset.classes)} classes, {len(setup.train.labels):,} training, "
        f"{len(setup.validation.labels):,} validation and {len(dataset.test.labels):,} test "
        f"images{size}, on {device.count} × {device.kind}{arithmetic}; {request.workdir}"
    )
