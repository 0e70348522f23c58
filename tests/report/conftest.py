from pathlib import Path
from typing import Any

import pytest
from run_folders import README, MakeRun, write_run

from cifar_jax.report import plots


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    def make(experiment: str, seed: int = 0, **options: Any) -> Path:
        return write_run(tmp_path / "runs", experiment, seed, **options)

    return make


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace each figure by its description, because drawing takes seconds."""
    monkeypatch.setattr(plots, "render", lambda draw, description: description.encode())


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    path = tmp_path / "README.md"
    path.write_text(README)
    return path
