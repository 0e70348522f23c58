"""Trains a run from its config to its result: the one place that wires all the rest together."""

import hashlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tensorboardX import SummaryWriter

from cifar_jax import models, processes
from cifar_jax.config import Config, flatten
from cifar_jax.errors import UserError
from cifar_jax.evaluation import measure
from cifar_jax.runs.checkpoints import Checkpoints
from cifar_jax.runs.folder import Workdir, finished_result, open_workdir
from cifar_jax.training import programs, signals
from cifar_jax.training.display import Display
from cifar_jax.training.programs import Pace, Programs, Setup
from cifar_jax.training.step import TrainState

SECONDS_BETWEEN_UPDATES = 0.5


class Run(NamedTuple):
    """What is asked for: an experiment with its settings, a seed, and a folder."""

    experiment: str
    config: Config
    seed: int
    workdir: Path
    overrides: Mapping[str, Any] = {}
    """Settings that differ from the experiment file's, by dotted name."""
    fresh: bool = False
    """Begin anew, whatever the folder holds."""

    def identity(self) -> dict[str, Any]:
        """What config.json holds; a folder that holds another is refused."""
        return {
            "experiment": self.experiment,
            "seed": self.seed,
            "overrides": dict(self.overrides),
            "config": flatten(self.config),
        }


def fit(run: Run, display: Display) -> dict[str, Any]:
    """Train `run`, or go on with it, or find it finished; returns what result.json holds.

    Of several processes all must call it, with the same `run`. The first writes for all, but for
    the checkpoints, which orbax writes from every process.

    Raises:
      UserError: settings that do not fit each other, the data or the folder, or a loss that is
        no longer finite. What stops one process so, stops all.
      signals.Stopped: a signal asked for it; the run is saved.
    """
    began = time.perf_counter()
    finished = None
    if not run.fresh:
        finished = processes.from_first(lambda: finished_result(run.workdir, run.identity()))
    if finished:
        display.note(f"{run.workdir} is finished; --fresh would train it anew")
        return finished
    setup = processes.from_all(lambda: programs.setup(run.config))
    if len(set(processes.exchange(setup.dataset.fingerprint))) > 1:
        raise UserError(f"the processes have different images of {setup.dataset.name}")
    with (
        _opened(run) as workdir,
        Checkpoints(workdir.checkpoints, run.config.train.keep_checkpoints) as checkpoints,
        signals.remembered() as stop,
    ):
        start = processes.from_first(lambda: workdir.record_start(_device(setup)))
        state = programs.init_state(setup, run.seed)
        if (latest := checkpoints.latest()) is not None:
            state = checkpoints.restore(latest, state)
        # An epoch may have been written down whose checkpoint was not finished.
        rows = processes.from_first(lambda: workdir.rewind(latest or 0))
        # What a killed start did after its last whole epoch is repeated, and not counted twice.
        began -= rows[-1]["wall_seconds"] if rows else 0
        log = workdir.log if processes.is_first() else Path(os.devnull)
        with display.showing(log, run.experiment, run.config.epochs, setup.steps_per_epoch):
            display.line(_headline(run, setup, latest))
            pace = Pace(run.config.train.steps_per_call)
            training = _Training(run, setup, workdir, checkpoints, display, stop, began, pace)
            state, compile_seconds = training.train(state, rows)
            result = _result(run, setup, state, rows, checkpoints)
        result |= {
            "wall_seconds": round(time.perf_counter() - began, 1),
            "compile_seconds": round(compile_seconds, 1),
            **{key: start[key] for key in ("git_commit", "versions", "device", "machine")},
        }
        if processes.is_first():
            workdir.write_result(result)
    return result


@contextmanager
def _opened(run: Run) -> Iterator[Workdir]:
    """The run's folder, which the first process opens for all of them."""
    with ExitStack() as stack:

        def open_it() -> None:
            stack.enter_context(open_workdir(run.workdir, run.identity(), fresh=run.fresh))

        processes.from_first(open_it)
        if not all(processes.exchange((run.workdir / "config.json").exists())):
            raise UserError(
                f"{run.workdir} is not the same folder in every process: "
                "choose a --workdir on a file system that they share"
            )
        yield Workdir(run.workdir)


@dataclass
class _Training:
    """The loop over epochs of one start of a run."""

    run: Run
    setup: Setup
    workdir: Workdir
    checkpoints: Checkpoints
    display: Display
    stop: Callable[[], int | None]
    """The signal that asked to stop, if one did."""
    began: float
    """On `perf_counter`'s clock, put back by what earlier starts took."""
    pace: Pace

    def train(self, state: TrainState, rows: list[dict[str, Any]]) -> tuple[TrainState, float]:
        """Go on from `state` to the last epoch, adding to `rows`; also gives compile seconds."""
        setup, epochs = self.setup, self.run.config.epochs
        first_epoch = int(state.step) // setup.steps_per_epoch
        if first_epoch == epochs:
            return state, 0.0
        data = programs.train_data(setup)
        training = programs.compile_training(setup, self.run.seed, state, data)
        validate = None
        compile_seconds = training.compile_seconds
        if len(setup.validation.labels):
            began = time.perf_counter()
            validate = programs.compile_evaluation(setup, state, setup.validation.images)
            compile_seconds += time.perf_counter() - began
        first_process = processes.is_first()
        with SummaryWriter(
            str(self.workdir.tensorboard), purge_step=first_epoch + 1, write_to_disk=first_process
        ) as board:
            for epoch in range(first_epoch, epochs):
                state, row = self.epoch(state, epoch, training)
                if validate:
                    found = measure(validate(state.variables), setup.validation.labels)
                    row |= {f"validation_{name}": value for name, value in found.items()}
                row["learning_rate"] = self.learning_rate(state)
                observed = row["validation_loss" if validate else "train_loss"]
                if not math.isfinite(row["train_loss"]) or not math.isfinite(observed):
                    raise UserError(
                        f"the loss is not finite after epoch {epoch + 1}: lower optimizer.lr "
                        f"(now {row['learning_rate']:g})"
                        + (f"; the checkpoint of epoch {epoch} is kept" if epoch else "")
                    )
                state = training.end_epoch(state, observed)
                row["wall_seconds"] = round(time.perf_counter() - self.began, 1)
                rows.append(row)
                if first_process:
                    self.workdir.append_epoch(row)
                for name, value in row.items():
                    if name not in ("epoch", "step"):
                        split, _, metric = name.partition("_")
                        tag = f"{split}/{metric}" if split in ("train", "validation") else name
                        board.add_scalar(tag, value, epoch + 1)
                self.checkpoints.save(state, row.get("validation_accuracy"))
                self.display.line(_epoch_line(row, epochs))
        return state, compile_seconds

    def epoch(
        self, state: TrainState, epoch: int, training: Programs
    ) -> tuple[TrainState, dict[str, Any]]:
        """From wherever in `epoch` the state is to its last step, with the metrics of training."""
        setup, display = self.setup, self.display
        every = self.run.config.train.log_every
        first = epoch * setup.steps_per_epoch
        begun_at = step = int(state.step)
        end = first + setup.steps_per_epoch
        order = training.order(epoch)
        loss_sum, count = self.loss_sum(state)
        began = updated = time.perf_counter()
        while step < end:
            next_line = first + (step - first) // every * every + every
            take = min(self.pace.steps, end - step, next_line - step)
            called = time.perf_counter()
            state = training.train(state, order, take)
            step += take
            if not self.pace.settled:
                jax.block_until_ready(state)
                # All processes must make the same calls.
                taken = max(processes.exchange(time.perf_counter() - called))
                self.pace.observe(take, taken)
            if step == next_line:
                before = loss_sum, count
                loss_sum, count = self.loss_sum(state)
                mean = (loss_sum - before[0]) / (count - before[1])
                iteration = f"[EPOCH {epoch + 1:03d} | IT {step - first:05d}]"
                display.line(f"{iteration} LOSS: {mean:.3f}", detail=True)
            now = time.perf_counter()
            if display.live and now - updated > SECONDS_BETWEEN_UPDATES:
                means = programs.means(state.metrics)
                updated = time.perf_counter()
                speed = (step - begun_at) * self.run.config.batch_size / (updated - began)
                display.update(step, speed, **means)
            signum = self.stop()
            if jax.process_count() > 1:  # it may have reached one of them only
                signum = max(processes.exchange(signum or 0)) or None if step == next_line else None
            if signum is not None and step < end:
                self.checkpoints.save(state)
                raise signals.Stopped(signum)
        means = programs.means(state.metrics)
        seconds = time.perf_counter() - began
        return state, {
            "epoch": epoch + 1,
            "step": step,
            **{f"train_{name}": value for name, value in means.items()},
            "images_per_second": round((end - begun_at) * self.run.config.batch_size / seconds, 1),
        }

    def learning_rate(self, state: TrainState) -> float:
        """Of the epoch's last update."""
        rate = np.asarray(self.setup.schedule(int(state.step) - 1))
        return float(rate) * float(state.plateau.scale)

    @staticmethod
    def loss_sum(state: TrainState) -> tuple[float, int]:
        """The epoch's sum of losses so far, and over how many images."""
        loss, _, count = jax.device_get(state.metrics)
        return float(loss), int(count)


def _result(
    run: Run,
    setup: Setup,
    state: TrainState,
    rows: list[dict[str, Any]],
    checkpoints: Checkpoints,
) -> dict[str, Any]:
    """What came out: the test images are read here, once, after everything is decided."""
    images, labels = setup.dataset.test
    evaluate = programs.compile_evaluation(setup, state, images)
    test = measure(evaluate(state.variables), labels)
    if not math.isfinite(test["loss"]):  # the last update's doing, where nothing is held out
        raise UserError("the loss on the test images is not finite: lower optimizer.lr")
    paper, last = run.config.paper, rows[-1]
    result: dict[str, Any] = {
        "experiment": run.experiment,
        "model": run.config.model.name,
        "dataset": setup.dataset.name,
        "seed": run.seed,
        "overrides": dict(run.overrides),
        "parameters": models.count_parameters(state.params),
        "epochs": run.config.epochs,
        "steps": int(state.step),
        "train_loss": last["train_loss"],
        "train_accuracy": last["train_accuracy"],
        "validation_loss": last.get("validation_loss"),
        "validation_accuracy": last.get("validation_accuracy"),
        "test_loss": test["loss"],
        "test_accuracy": test["accuracy"],
        "best_validation_epoch": None,
        "best_validation_accuracy": None,
        "best_validation_test_accuracy": None,
        "images_per_second": round(float(np.median([row["images_per_second"] for row in rows])), 1),
        "params_sha256": params_sha256(state.params),
        "data_sha256": setup.dataset.fingerprint,
        "paper_accuracy": paper.test_accuracy if paper else None,
    }
    if (best := checkpoints.best()) is not None:
        epoch = best // setup.steps_per_epoch
        if best != int(state.step):
            test = measure(evaluate(checkpoints.restore(best, state).variables), labels)
        result |= {
            "best_validation_epoch": epoch,
            "best_validation_accuracy": rows[epoch - 1]["validation_accuracy"],
            "best_validation_test_accuracy": test["accuracy"],
        }
    return result


def params_sha256(params: Any) -> str:
    """SHA-256 over the parameters in the order of their paths: each path, then little-endian bytes.

    Paths are such as `stage1_block1/conv1/kernel`, in UTF-8 and followed by a zero byte.
    """
    leaves = {
        "/".join(str(key.key) for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    digest = hashlib.sha256()
    for name in sorted(leaves):
        array = np.asarray(jax.device_get(leaves[name]))
        digest.update(name.encode() + b"\0" + array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def _headline(run: Run, setup: Setup, latest: int | None) -> str:
    device = _device(setup)
    begun = f"goes on from step {latest}" if latest else "begins"
    return (
        f"{run.experiment} seed {run.seed} {begun}: "
        f"{run.config.epochs} epochs of {setup.steps_per_epoch} steps on {setup.dataset.name}, "
        f"{len(setup.train.labels)} training and {len(setup.validation.labels)} validation images, "
        f"on {device['count']} × {device['kind']}; {run.workdir}"
    )


def _epoch_line(row: Mapping[str, Any], epochs: int) -> str:
    parts = [
        f"epoch {row['epoch']:{len(str(epochs))}d}/{epochs}",
        f"train loss {row['train_loss']:.4f} acc {row['train_accuracy']:5.2f} %",
    ]
    if "validation_loss" in row:
        loss, accuracy = row["validation_loss"], row["validation_accuracy"]
        parts.append(f"validation loss {loss:.4f} acc {accuracy:5.2f} %")
    parts += [
        f"lr {row['learning_rate']:.3g}",
        f"{row['images_per_second']:,.0f} images/s",
        f"{row['wall_seconds']:,.0f} s",
    ]
    return "  ".join(parts)


def _device(setup: Setup) -> dict[str, Any]:
    device = setup.mesh.devices.flat[0]
    return {"platform": device.platform, "kind": device.device_kind, "count": setup.mesh.size}
