"""Messages and progress bars on standard error."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def notice(text: str) -> None:
    """Print one line on standard error."""
    print(text, file=sys.stderr, flush=True)


def reason(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's class if there is no message."""
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextmanager
def progress(
    description: str, total: int | None, *, is_bytes: bool = False
) -> Iterator[Callable[[int], None]]:
    """Show a progress bar if standard error is a terminal; otherwise print one line.

    The bar disappears at the end.

    Yields:
      A function that takes a count and advances the bar by this count.
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
