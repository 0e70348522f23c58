import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from run_folders import README, MakeRun, write_run

from cifar_jax import catalog
from cifar_jax.report import plots, style, wall_time
from cifar_jax.runs.run import experiments


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    def make(experiment: str, seed: int = 0, **options: Any) -> Path:
        return write_run(tmp_path / "runs", experiment, seed, **options)

    return make


@pytest.fixture
def more_experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`timed`, the paper's `basic` to be fitted into its minutes, and `speedrun-92`, of a network
    that the paper does not have."""
    folder = tmp_path / "experiments"
    shutil.copytree(catalog.experiments_folder(), folder)
    text = (folder / "basic.py").read_text()
    timed = "schedule=Schedule(name='linear'), train=Train(max_minutes=3.0),"
    without = re.sub("paper=.*", timed, text).replace("Paper", "Schedule, Train")
    (folder / "fast" / "timed.py").write_text(without)
    (folder / "fast" / "speedrun_92.py").write_text(without.replace('name="basic"', 'name="own"'))
    monkeypatch.setattr(catalog, "_FOLDERS", (folder,))
    experiments.cache_clear()
    yield
    experiments.cache_clear()


@pytest.fixture
def readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A README with places for the tables; its figures take seconds, and are not drawn."""
    monkeypatch.setattr(plots, "panels_svg", lambda groups, description: description.encode())
    monkeypatch.setattr(wall_time, "svg", lambda points, description: description.encode())
    path = tmp_path / "README.md"
    path.write_text(README)
    return path


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn, in place of their files."""
    figures: list[Any] = []
    for module in (plots, style):
        for kind in ("png", "svg"):
            monkeypatch.setattr(module, kind, lambda figure, *_: figures.append(figure) or b"")
    return figures
