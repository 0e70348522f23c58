from pathlib import Path
from typing import Any

import pytest
from run_folders import MakeRun, write_run


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    def make(experiment: str, seed: int = 0, **options: Any) -> Path:
        return write_run(tmp_path / "runs", experiment, seed, **options)

    return make
