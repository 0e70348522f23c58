"""What a run shows while it goes: a progress display on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cifar_jax.runs.files import naming


class Display:
    """Lines to the console and the run's log, and a progress bar where there is a terminal."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self._console = console or Console(soft_wrap=True, highlight=False, quiet=quiet)
        self._log: IO[str] | None = None
        self._progress: Progress | None = None

    @property
    def live(self) -> bool:
        """Whether `update` is worth calling."""
        return self._progress is not None

    @contextmanager
    def showing(self, log: Path, title: str, epochs: int, steps: int) -> Iterator[None]:
        """While inside, lines are also appended to `log`, and the bar is shown on a terminal."""
        with ExitStack() as stack:
            self._log = stack.enter_context(_appended(log))
            if self._console.is_terminal:
                self._progress = stack.enter_context(_progress(self._console))
                self._task = self._progress.add_task(
                    title,
                    total=steps,
                    epochs=epochs,
                    epoch=1,
                    figures="",
                    speed="",
                )
            try:
                yield
            finally:
                self._log = self._progress = None

    def note(self, text: str) -> None:
        """A line for the person at the console that is no part of the log."""
        self._console.print(text, markup=False)

    def line(self, text: str, *, detail: bool = False) -> None:
        """A line of the log. On a terminal a `detail` is not printed: the bar shows it."""
        if self._log:
            with naming(Path(self._log.name)):
                self._log.write(text + "\n")
        if not (detail and self._progress):
            self._console.print(text, markup=False)

    def replan(self, epochs: int, steps: int) -> None:
        """Show that the run now has so many epochs and steps."""
        if self._progress:
            self._progress.update(self._task, total=steps, epochs=epochs)

    def update(
        self, step: int, epoch: int, images_per_second: float, loss: float, accuracy: float
    ) -> None:
        """Move the bar to `step`, which counts from the run's beginning; accuracy is in percent."""
        if self._progress:
            self._progress.update(
                self._task,
                completed=step,
                epoch=epoch,
                speed=f"{images_per_second:,.0f} images/s",
                figures=f"loss {loss:.3f}  acc {accuracy:.1f} %",
            )


@contextmanager
def _appended(log: Path) -> Iterator[IO[str]]:
    file = log.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)
    try:
        yield file
    finally:
        with naming(log):  # it tries again what it could not write
            file.close()


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("[bold]{task.description}"),
        TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
        transient=True,
        expand=True,
        speed_estimate_period=120,
    )
