"""`make torture` in short: it finds nothing wrong, and renews the record."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
MARKS = "# Record\n\n<!-- torture -->\nold\n<!-- /torture -->\n\nafter\n"


def torture(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.torture", *words]
    # Compiling is most of the cost, and the programs' speed does not matter.
    surroundings = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    return subprocess.run(
        command, cwd=ROOT, env=surroundings, capture_output=True, text=True, check=False
    )


def test_runs_that_are_killed_and_stopped_come_to_the_same(tmp_path: Path) -> None:
    record = tmp_path / "reliability.md"
    record.write_text(MARKS)
    few = ("--kills", "1", "--signals", "1", "--damages", "0", "--disks", "0", "--pairs", "0")
    done = torture(*few, "--one-subject", "--record", str(record))
    assert done.returncode == 0, done.stdout + done.stderr
    text = record.read_text()
    assert text.startswith("# Record\n\n<!-- torture -->\n\n| fault |")
    assert text.endswith("<!-- /torture -->\n\nafter\n")
    assert "| **all** | | **2** | **2** | |" in text
    assert "old" not in text
