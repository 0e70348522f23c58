"""A short `make torture` finds nothing wrong and updates the record."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = "# Record\n\n<!-- torture -->\nold\n<!-- /torture -->\n\nafter\n"


def test_killed_and_stopped_runs_equal_uninterrupted_ones(tmp_path: Path) -> None:
    page = tmp_path / "reliability.md"
    page.write_text(PAGE)
    counts = ("--kills", "1", "--signals", "1", "--damages", "0", "--disks", "0", "--pairs", "0")
    process = subprocess.run(
        [sys.executable, "-m", "tools.torture", *counts, "--record", str(page)],
        cwd=ROOT,
        # Compilation dominates the time of this test, so programs are not optimized.
        env=os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    text = page.read_text()
    assert text.startswith("# Record\n\n<!-- torture -->\n\n| fault |")
    assert text.endswith("<!-- /torture -->\n\nafter\n")
    assert "| **all** | | **2** | **2** | |" in text
    assert "old" not in text
