"""What the user sees on standard error while data is being read or fetched."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def notice(text: str) -> None:
    """One plain line on standard error."""
    print(text, file=sys.stderr, flush=True)


def reason(error: Exception) -> str:
    """An error in one line, for the end of a message."""
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextmanager
def progress(
    description: str, total: int | None, *, is_bytes: bool = False
) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, else one plain line; yields ``advance(count)``.

    The bar stands on standard error and goes away when the work is done.
    """
    if not sys.stderr.isatty():
        notice(f"{description} …")
        yield lambda count: None
        return
    from rich import progress as bar
    from rich.console import Console

    count = (
        (bar.DownloadColumn(), bar.TransferSpeedColumn())
        if is_bytes
        else (bar.MofNCompleteColumn(),)
    )
    with bar.Progress(
        bar.TextColumn("{task.description}"),
        bar.BarColumn(),
        *count,
        bar.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as display:
        task = display.add_task(description, total=total)
        yield lambda count: display.advance(task, count)
