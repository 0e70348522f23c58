"""What a run shows, without one: see `test_fit.py` for a run's own."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from cifar_jax.training.display import Display


@pytest.fixture
def shown() -> io.StringIO:
    return io.StringIO()


def terminal(file: io.StringIO) -> Console:
    return Console(file=file, force_terminal=True, width=150, color_system=None)


def test_what_looks_like_markup_is_shown_as_it_is(shown: io.StringIO, tmp_path: Path) -> None:
    """Brackets may be in a folder's name."""
    display = Display(Console(file=shown))
    with display.showing(tmp_path / "log.txt", "basic", epochs=1, steps=1):
        display.line("runs/a[b]/seed0 [red]")
    display.note("runs/a[b] is finished")
    assert shown.getvalue() == "runs/a[b]/seed0 [red]\nruns/a[b] is finished\n"
    assert (tmp_path / "log.txt").read_text() == "runs/a[b]/seed0 [red]\n"


def test_the_bar_begins_in_the_first_epoch_and_follows(shown: io.StringIO, tmp_path: Path) -> None:
    display = Display(terminal(shown))
    assert not display.live
    with display.showing(tmp_path / "log.txt", "basic", epochs=3, steps=30):
        assert display.live
        display.line("epoch 1/3 is over")
    first = shown.getvalue()
    assert "epoch 1/3  " in first
    assert "0/30" in first
    with display.showing(tmp_path / "log.txt", "basic", epochs=3, steps=30):
        display.replan(epochs=2, steps=20)
        display.update(11, 2, 1234.4, 0.5, 87.65)
        display.line("[EPOCH 002]", detail=True)
    second = shown.getvalue().removeprefix(first)
    for text in ("epoch 2/2", "11/20", "1,234 images/s", "loss 0.500  acc 87.7 %"):
        assert text in second
    assert "[EPOCH 002]" not in second
    assert (tmp_path / "log.txt").read_text() == "epoch 1/3 is over\n[EPOCH 002]\n"
    assert not display.live
