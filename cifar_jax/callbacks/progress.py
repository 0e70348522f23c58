"""The callback that shows progress on the terminal and writes the log file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from cifar_jax import distributed
from cifar_jax.callbacks.base import Callback, CallMetrics, RunContext
from cifar_jax.files import naming
from cifar_jax.runs.schemas import MetricsRow, Result

if TYPE_CHECKING:
    from cifar_jax.training.step import TrainState


class Progress(Callback):
    """Writes lines to the console and to `log.txt`, and shows a progress bar on a terminal.

    Args:
      console: console to write to. None: standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(soft_wrap=True, highlight=False)
        self._log: IO[str] | None = None
        self._bar: ProgressBar | None = None

    def open_log(self, path: Path) -> None:
        """Open a log file, to which the main process also writes each line from now on."""
        path = path if distributed.is_main_process() else Path(os.devnull)
        self._log = path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)

    def note(self, text: str) -> None:
        """Print a line on the console of the main process, but do not write it to the log."""
        if distributed.is_main_process():
            self._console.print(text, markup=False)

    def line(self, text: str) -> None:
        """Write a line to the log and to the console."""
        self._write(text)
        self.note(text)

    def on_start(self, context: RunContext, state: TrainState) -> None:
        """Show the progress bar if the console is a terminal."""
        self._context = context
        plan, settings = context.setup.plan, context.setup.config.train
        self._log_every = settings.log_every
        # If FORCE_COLOR is set, `is_terminal` is True even for a file. `isatty` is then False.
        if (
            self._console.is_terminal
            and self._console.file.isatty()
            and distributed.is_main_process()
        ):
            self._bar = _progress_bar(self._console)
            self._task = self._bar.add_task(
                context.identity.experiment,
                total=plan.steps,
                epochs=len(plan.epochs),
                epoch=int(state.epoch) + 1,
                completed=int(state.step),
                metrics="",
                speed="",
            )
            self._bar.start()

    def on_call(self, state: TrainState, metrics: CallMetrics) -> None:
        """Update the progress bar, and log the loss every `train.log_every` steps of an epoch."""
        epoch = self._context.epoch
        if (metrics.step - epoch.begin) % self._log_every == 0:
            loss_sum, images = self._context.logged
            loss = (metrics.loss_sum - loss_sum) / (metrics.images - images)
            self._context.logged = (metrics.loss_sum, metrics.images)
            iteration = f"[EPOCH {epoch.number + 1:03d} | IT {metrics.step - epoch.begin:05d}]"
            self._write(f"{iteration} LOSS: {loss:.3f}")
            if not self._bar:
                self.note(f"{iteration} LOSS: {loss:.3f}")
        if self._bar:
            self._bar.update(
                self._task,
                completed=metrics.step,
                epoch=epoch.number + 1,
                speed=f"{metrics.images_per_second:,.0f} images/s",
                metrics=f"loss {metrics.loss:.3f}  acc {metrics.accuracy:.1f} %",
            )

    def on_epoch_end(self, state: TrainState, metrics: MetricsRow) -> None:
        """Write a line with the metrics of the epoch."""
        self._context.logged = (0.0, 0)
        setup = self._context.setup
        self.line(_epoch_line(metrics, len(setup.plan.epochs), setup.config.train.best_by))

    def on_end(self, result: Result) -> None:
        """Write a line with the test accuracy."""
        self.line(result_line(result))

    def activity(self, text: str) -> None:
        """Show an activity in the progress bar, such as `validating`."""
        if self._bar:
            self._bar.update(self._task, metrics=text, speed="")
            self._bar.refresh()

    def close(self) -> None:
        """Remove the progress bar and close the log file."""
        if self._bar:
            self._bar.stop()
            self._bar = None
        if self._log:
            log, self._log = self._log, None
            log.close()

    def _write(self, text: str) -> None:
        if self._log:
            with naming(Path(self._log.name)):
                self._log.write(text + "\n")


def result_line(result: Result) -> str:
    """Return a line with the test accuracy of a finished run."""
    paper = ""
    if result.paper_accuracy and not result.overrides and result.data_official:
        paper = f" (paper: {result.paper_accuracy:.2f} %)"
    best = ""
    if result.best_validation_epoch not in (None, result.epochs):
        best = (
            f"; {result.best_validation_test_accuracy:.2f} % at the best validation "
            f"{result.settings.get('train.best_by', 'accuracy').replace('-', ' ')}, epoch "
            f"{result.best_validation_epoch}"
        )
    plain = ""
    if result.test_accuracy_plain not in (None, result.test_accuracy):
        plain = f", {result.test_accuracy_plain:.2f} % without test-time augmentation"
    return (
        f"{result.experiment} seed {result.seed}: test accuracy {result.test_accuracy:.2f} %"
        f"{plain}{paper}{best}"
    )


def _epoch_line(row: MetricsRow, epochs: int, best_by: str) -> str:
    parts = [
        f"epoch {row.epoch:{len(str(epochs))}d}/{epochs}",
        f"train loss {row.train_loss:.4f} acc {row.train_accuracy:5.2f} %",
    ]
    if row.validation_loss is not None:
        accuracy = row.validation_accuracy
        parts.append(f"validation loss {row.validation_loss:.4f} acc {accuracy:5.2f} %")
        if best_by == "balanced-accuracy":
            parts.append(f"balanced {row.validation_balanced_accuracy:5.2f} %")
    parts += [
        f"lr {row.learning_rate:.3g}",
        f"{row.images_per_second:,.0f} images/s",
        f"{row.wall_seconds:,.0f} s",
    ]
    return "  ".join(parts)


def _progress_bar(console: Console) -> ProgressBar:
    return ProgressBar(
        TextColumn("[bold]{task.description}"),
        TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TextColumn("{task.fields[metrics]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
        transient=True,
        expand=True,
        speed_estimate_period=120,
    )
