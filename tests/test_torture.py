"""Test that a short `make torture` finds no errors and writes its table to a file."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_killed_and_stopped_runs_equal_undisturbed_ones(tmp_path: Path) -> None:
    record = tmp_path / "reliability.md"
    record.write_text("# Record\n\n<!-- torture -->\nold\n<!-- /torture -->\n\nafter\n")
    command = [sys.executable, "-m", "tools.torture", "--kills", "1", "--signals", "1"]
    command += ["--damages", "0", "--disks", "0", "--pairs", "0", "--record", str(record)]
    # XLA's optimizations are off, because compilation takes most of the time.
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    text = record.read_text()
    assert text.startswith("# Record\n\n<!-- torture -->\n\n| fault |")
    assert text.endswith("<!-- /torture -->\n\nafter\n")
    assert "| **all** | | **2** | **2** | |" in text
    assert "old" not in text
