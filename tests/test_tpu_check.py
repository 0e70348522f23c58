"""Test the error messages of `make tpu-check`, and one compiled step if libtpu is installed."""

import json
import math
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest

from tools import tpu_check


def test_missing_libtpu_and_wrong_arguments_are_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tpu_check.util, "find_spec", lambda name: None)
    assert tpu_check.main([]) == 2
    assert "EXTRA=tpu" in capsys.readouterr().err
    for arguments in (["--targets", "v9"], ["--precisions", "int8"], ["--experiments", "basik"]):
        with pytest.raises(SystemExit) as stopped:
            tpu_check.main(arguments)
        assert stopped.value.code == 2


@pytest.mark.skipif(util.find_spec("libtpu") is None, reason="needs libtpu, the extra `tpu`")
def test_basic_compiles_for_four_chips(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "tools.tpu_check", "--experiments", "basic"]
    command += ["--targets", "v5e-4", "--precisions", "bfloat16", "--json", str(figures)]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(figures.read_text())["rows"]
    assert row["problem"] == ""
    # Each chip trains on two images. Training on an image takes about three times the 0.65 million
    # multiply-adds of a forward pass.
    assert 2 * 3 * 0.65e6 * 2 * 0.5 < row["gflop"] * 1e9 < 100e6
    # The program does not copy the training images.
    assert row["temporaries_mb"] < 10
    # Traffic of HBM (the chip's main memory) exceeds the size of two images. The upper bound is the
    # traffic of the padded weights and momentum.
    assert 2 * 3072 < row["hbm_mb"] * 1e6 < 4 * (4 * 4 * 62_006) < row["moved_mb"] * 1e6
    assert math.isclose(row["memory_mb"], 45_000 * 3072 / 1e6, rel_tol=0.1)
    # The gradients, the loss and the number of correct predictions each need one all-reduce.
    assert row["collectives"] == {"all-reduce": 3}
