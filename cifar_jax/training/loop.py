"""The loop over epochs: calls of train steps, validation, metrics, checkpoints, signals."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from tensorboardX import SummaryWriter

from cifar_jax import distributed, models
from cifar_jax.config import Config
from cifar_jax.errors import Stopped, UserError
from cifar_jax.runs.checkpoints import Checkpoints
from cifar_jax.runs.files import naming
from cifar_jax.runs.folder import Workdir
from cifar_jax.training import compilation, plan, setup
from cifar_jax.training.compilation import CompiledSteps, StepsPerCallTuner
from cifar_jax.training.display import Display
from cifar_jax.training.evaluation import measure
from cifar_jax.training.plan import Epoch, Plan
from cifar_jax.training.schedules import StepInfo
from cifar_jax.training.setup import Setup
from cifar_jax.training.signals import Signals
from cifar_jax.training.step import TrainState

SECONDS_BETWEEN_UPDATES = 0.5
MAX_HALVINGS = 3
FITTED_EVERY = 0.01
"""OpenUnit of `train.max_minutes`: so often that the learning rate moves evenly."""


class Diverged(Exception):
    """The loss, or the state, is no longer finite."""


@dataclass
class Progress:
    """What is known of a run beside its state, and saved with it."""

    began: float
    """On `perf_counter`'s clock, put back by what earlier starts took."""
    line: tuple[float, int] = (0.0, 0)
    """The epoch's sum of losses at its last log line, and over how many images."""
    halvings: int = 0
    """How often the learning rate was halved because the loss was not finite."""
    epochs: list[list[int]] | None = None
    """The plan, as `plan.as_json` has it, where `train.max_minutes` makes it."""

    @classmethod
    def saved(cls, extra: Mapping[str, Any], began: float, elapsed: float) -> "Progress":
        """That which was saved as `extra`, in a start that `began` then; `elapsed` is what earlier
        ones took, where it was not saved."""
        loss, images = extra.get("line", (0.0, 0))
        seconds = extra.get("elapsed_seconds", elapsed)
        halvings, epochs = extra.get("halvings", 0), extra.get("epochs")
        return cls(began - seconds, (loss, images), halvings, epochs)

    def elapsed(self) -> float:
        """Seconds that the run has taken, over all its starts."""
        return time.perf_counter() - self.began

    def extra(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "elapsed_seconds": round(self.elapsed(), 3),
            "line": list(self.line),
            "halvings": self.halvings,
            "epochs": self.epochs,
        }


@dataclass
class Trainer:
    """The loop over epochs of one start of a run."""

    config: Config
    seed: int
    workload: Setup
    workdir: Workdir
    checkpoints: Checkpoints
    display: Display
    signals: Signals
    progress: Progress
    rows: list[dict[str, Any]]
    """Metrics of the epochs so far."""
    initial: Callable[[], Mapping[str, Any]] | None = None
    """Gives the variables to begin with, instead of fresh ones."""
    plan: Plan = field(init=False)
    """What happens when: the workload's, but where `train.max_minutes` makes it shorter."""
    origin: tuple[float, int] = field(init=False)
    """Seconds that the run had taken when this start began to train or went back, and the plan's
    pixels until there."""
    fitted_at: float = field(init=False)
    """Seconds that it had taken when the plan was last fitted into its minutes."""
    tuner: StepsPerCallTuner = field(init=False)
    saved: float = field(init=False)
    """When it was saved last, on `perf_counter`'s clock."""

    def __post_init__(self) -> None:
        self.plan = planned(self.workload, self.progress.epochs)
        self.tuner = StepsPerCallTuner(self.config.train.steps_per_call)
        self.saved = time.perf_counter()

    def train(self, state: TrainState) -> tuple[TrainState, float]:
        """Go on from `state` to the last epoch; also gives the seconds that compiling took.

        Raises:
          Stopped: a signal asked for it; the run is saved.
          UserError: the loss is no longer finite.
        """
        if epochs_over(self.plan, state) == len(self.plan.epochs):
            return state, 0.0
        with self.signals.at_once():
            training, validate, compile_seconds = self._compile(state)
        self._set_out(state)
        with _board(self.workdir.tensorboard, epochs_over(self.plan, state) + 1) as board:
            while (number := epochs_over(self.plan, state)) < len(self.plan.epochs):
                try:
                    epoch = self.plan.epochs[number]
                    state = self._epoch(state, epoch, training, validate, board)
                except Diverged as error:
                    state = self._go_back(error)
        return state, compile_seconds

    def _set_out(self, state: TrainState) -> None:
        """Take the speed by which the plan is fitted from here on."""
        (elapsed,) = distributed.all_max(self.progress.elapsed())
        self.origin = (elapsed, self.plan.pixels_before(int(state.step)))
        self.fitted_at = elapsed

    def _compile(
        self, state: TrainState
    ) -> tuple[CompiledSteps, Callable[[TrainState], dict[str, float]] | None, float]:
        workload = self.workload
        data = compilation.train_data(workload)
        training = compilation.compile_training(workload, self.seed, state, data)
        images, labels = workload.validation
        if not len(labels):
            return training, None, training.compile_seconds
        began = time.perf_counter()
        logits = compilation.compile_evaluation(workload, state, images, self.signals.check)
        seconds = training.compile_seconds + time.perf_counter() - began
        return training, lambda state: measure(logits(state.evaluated), labels), seconds

    def _epoch(
        self,
        state: TrainState,
        epoch: Epoch,
        training: CompiledSteps,
        validate: Callable[[TrainState], dict[str, float]] | None,
        board: SummaryWriter,
    ) -> TrainState:
        """From wherever in `epoch` the state is to the next epoch's beginning."""
        state, row = self._train_epoch(state, epoch, training)
        if validate:
            try:
                row |= {f"validation_{name}": value for name, value in validate(state).items()}
            except Stopped as stopped:
                self._save(state, whole=False)
                raise Stopped(stopped.signum, saved=True) from None
        row["learning_rate"] = self._learning_rate(state)
        if self.progress.halvings:
            row["halvings"] = self.progress.halvings
        observed = row["validation_loss" if validate else "train_loss"]
        if not math.isfinite(observed):
            raise Diverged(f"the validation loss is not finite after epoch {epoch.number + 1}")
        state = training.end_epoch(state, observed)
        self.progress.line = (0.0, 0)
        row["wall_seconds"] = round(self.progress.elapsed(), 1)
        self.rows.append(row)
        if distributed.is_main_process():
            self.workdir.append_epoch(row)
        for name, value in row.items():
            if name not in ("epoch", "step"):
                split, _, metric = name.partition("_")
                tag = f"{split}/{metric}" if split in ("train", "validation") else name
                board.add_scalar(tag, value, epoch.number + 1)
        self._save(state, row.get("validation_accuracy"))
        self.display.line(_epoch_line(row, len(self.plan.epochs)))
        try:
            self.signals.check()
        except Stopped as stopped:
            raise Stopped(stopped.signum, saved=True) from None
        return state

    def _train_epoch(
        self, state: TrainState, epoch: Epoch, training: CompiledSteps
    ) -> tuple[TrainState, dict[str, Any]]:
        """From wherever in `epoch` the state is to its last step, with the metrics of training."""
        display, every = self.display, self.config.train.log_every
        order = training.order(epoch)
        take_steps = training.begin(epoch, order, self.plan.steps)
        begun_at = step = int(state.step)
        began = updated = time.perf_counter()
        while step < epoch.end:
            next_line = epoch.begin + (step - epoch.begin) // every * every + every
            take = min(self.tuner.steps, epoch.end - step, next_line - step)
            called = time.perf_counter()
            state = take_steps(state, take)
            step += take
            sums = loss_sums(state)  # waits for it
            now = time.perf_counter()
            if not math.isfinite(sums[0]):
                place = f"in epoch {epoch.number + 1}, by step {step}"
                raise Diverged(f"the loss is not finite {place}")
            if step == next_line:
                loss, images = self.progress.line
                mean = (sums[0] - loss) / (sums[1] - images)
                self.progress.line = sums
                iteration = f"[EPOCH {epoch.number + 1:03d} | IT {step - epoch.begin:05d}]"
                display.line(f"{iteration} LOSS: {mean:.3f}", detail=True)
            if display.live and now - updated > SECONDS_BETWEEN_UPDATES:
                updated = now
                speed = (step - begun_at) * epoch.stage.batch_size / (now - began)
                display.update(step, epoch.number + 1, speed, **compilation.means(state.metrics))
            # All processes must make the same calls, and stop and save after the same one.
            seconds, signum, due, elapsed = distributed.all_max(
                now - called, self.signals.received or 0, self._is_due(now), self.progress.elapsed()
            )
            if self._refit(epoch, step, elapsed):
                epoch = self.plan.epochs[epoch.number]
                take_steps = training.begin(epoch, order, self.plan.steps)
                display.replan(len(self.plan.epochs), self.plan.steps)
            self.tuner.observe(take, seconds)
            if signum:
                self._save(state, whole=False)
                raise Stopped(int(signum), saved=True)
            if due:
                self._save(state, whole=False)
        seconds = time.perf_counter() - began
        speed = (step - begun_at) * epoch.stage.batch_size / seconds if step > begun_at else 0.0
        return state, {
            "epoch": epoch.number + 1,
            "step": step,
            **{f"train_{name}": value for name, value in compilation.means(state.metrics).items()},
            "images_per_second": round(speed, 1),
        }

    def _refit(self, epoch: Epoch, step: int, elapsed: float) -> bool:
        """Whether there is another plan, since the one before would not end in time.

        Of several processes all know the same.
        """
        minutes = self.config.train.max_minutes
        if minutes is None or elapsed - self.fitted_at < minutes * 60 * FITTED_EVERY:
            return False
        self.fitted_at = elapsed
        done = self.plan.pixels_before(step)
        began, before = self.origin
        left = (60 * minutes - elapsed) * (done - before) / (elapsed - began)
        begun, size = self.plan.epochs[: epoch.number + 1], models.IMAGE_SHAPE[0]
        images = len(self.workload.train.labels)
        fitted = plan.fitted(self.config, images, size, begun, done + max(left, 0.0))
        changed = fitted != self.plan
        self.plan = fitted
        self.progress.epochs = plan.as_json(fitted, self.workload.stages)
        return changed

    def _is_due(self, now: float) -> bool:
        minutes = self.config.train.checkpoint_minutes
        return minutes is not None and now - self.saved > 60 * minutes

    def _save(
        self, state: TrainState, validation_accuracy: float | None = None, *, whole: bool = True
    ) -> None:
        if not compilation.is_finite(state):
            raise Diverged(f"the weights are not finite after step {int(state.step)}")
        self.checkpoints.save(state, validation_accuracy, whole=whole, extra=self.progress.extra())
        self.saved = time.perf_counter()

    def _go_back(self, error: Diverged) -> TrainState:
        """The last checkpoint, or the beginning, with half the learning rate.

        Raises:
          UserError: the settings do not ask for it, or it was done often enough.
        """
        self.checkpoints.wait()
        kept = self.checkpoints.latest()
        if self.config.train.on_nan == "stop" or self.progress.halvings == MAX_HALVINGS:
            halvings, row = self.progress.halvings, self.rows[-1] if self.rows else None
            rate = f" ({row['learning_rate']:g} in epoch {row['epoch']})" if row else ""
            raise UserError(
                f"{error}: lower optimizer.lr{rate}"
                + (" or those of groups" if self.config.param_groups else "")
                + (f", which was halved {halvings} times" if halvings else "")
                + (f"; the checkpoint of step {kept} is kept" if kept else "")
            )
        initial = self.initial() if self.initial and kept is None else None
        beginning = setup.init_state(self.workload, self.seed, initial)
        state, meta, damaged = self.checkpoints.restore_newest(beginning)
        for found in damaged:
            self.display.line(str(found))
        before = meta.extra.get("halvings", 0) if meta else 0
        self.progress.halvings += 1
        self.progress.line = tuple(meta.extra.get("line", (0.0, 0))) if meta else (0.0, 0)
        self.progress.epochs = meta.extra.get("epochs") if meta else None
        self.plan = planned(self.workload, self.progress.epochs)
        factor = 0.5 ** (self.progress.halvings - before)
        state = compilation.with_lower_rate(self.workload, state, factor)
        epochs = epochs_over(self.plan, state)
        self.rows[:] = distributed.run_on_main(lambda: self.workdir.rewind(epochs))
        self._set_out(state)
        self.display.replan(len(self.plan.epochs), self.plan.steps)
        self.display.line(
            f"{error}: back to step {int(state.step)} with half the learning rate, "
            f"{self._learning_rate(state):g}"
        )
        return state

    def _learning_rate(self, state: TrainState) -> float:
        """Of the last update."""
        step = max(int(state.step) - 1, 0)
        moment = StepInfo(step, self.plan.epochs_before(step), self.plan.steps)
        shape, scale = float(self.workload.recipe.schedule(moment)), float(state.plateau.scale)
        return self.config.optimizer.lr * shape * scale


@contextmanager
def _board(folder: Path, epoch: int) -> Iterator[SummaryWriter]:
    """TensorBoard's events, from `epoch` on, of the first process."""
    # Unbounded, since its thread ends on a full disk, and a full queue would then block.
    board = SummaryWriter(
        str(folder), purge_step=epoch, max_queue=0, write_to_disk=distributed.is_main_process()
    )
    try:
        yield board
    finally:
        try:
            with naming(folder):
                board.close()
        except OSError:  # a thread that is left would die with a traceback
            if worker := board.file_writer.event_writer._worker:  # pyright: ignore
                worker.stop()
            raise


def planned(workload: Setup, epochs: list[list[int]] | None) -> Plan:
    """What happens when, in a run whose progress has these `epochs`."""
    return workload.plan if epochs is None else plan.from_json(epochs, workload.stages)


def epochs_over(plan: Plan, state: TrainState) -> int:
    """How many epochs are over: one is once it was validated, not before."""
    step = int(state.step)
    ended = int(state.metrics.images) == 0
    return plan.epochs_before(step if ended else step - 1)


def loss_sums(state: TrainState) -> tuple[float, int]:
    """The epoch's sum of losses so far, and over how many images."""
    loss, _, count = jax.device_get(state.metrics)
    return float(loss), int(count)


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
