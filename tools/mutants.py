"""`make mutants`: small faults in the code, one at a time, and how many the tests notice.

    make mutants ARGS="cifar_jax/runs/folder.py --sample 40"

Cosmic Ray makes the faults, in a copy of the tree in `build/mutants`. The tests run in a fork of a
process that has imported what the code needs, and nothing of the code. See docs/testing.md.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
TREE = ROOT / "build/mutants/tree"
TESTS = {
    "report/markdown.py": "report/test_report_written.py report/test_report_records.py",
    "report/groups.py": "report/test_report_table.py report/test_report_records.py",
    "report/plots.py": "report/test_report_plots.py report/test_report_records.py",
    "report/predictions.py": "report/test_report_predictions.py report/test_report_plots.py",
    "report/readme.py": "report/test_report_records.py",
    "report/recipes.py": "report/test_report_records.py report/test_report_wall_time.py",
    "report/table.py": "report/test_report_table.py report/test_report_written.py "
    "report/test_report_records.py",
    "report/terminal.py": "report/test_report_written.py",
    "report/wall_time.py": "report/test_report_wall_time.py",
    "runs/checkpoints.py": "runs/test_checkpoints.py training/test_resume.py",
    "runs/environment.py": "runs/test_environment.py",
    "runs/files.py": "runs/test_files.py runs/test_folder.py report/test_report_records.py",
    "runs/folder.py": "runs/test_folder.py training/test_resume.py",
    "runs/digests.py": "runs/test_checkpoints.py",
    "runs/reading.py": "report/test_report_reading.py report/test_report_looked_for.py "
    "report/test_report_table.py report/test_report_records.py",
    "runs/records.py": "report/test_report_records.py report/test_report_recorded.py "
    "report/test_report_looked_for.py report/test_report_reading.py",
    "runs/run.py": "report/test_report_table.py report/test_report_records.py "
    "report/test_report_recorded.py",
    "runs/schema.py": "report/test_report_reading.py report/test_report_records.py",
    "training/averaging.py": "training/test_averaging.py training/test_recipes.py",
    "training/batches.py": "training/test_step.py training/test_recipes.py training/test_wiring.py",
    "training/display.py": "training/test_display.py training/test_fit.py",
    "training/fit.py": "training/test_starts.py training/test_results.py training/test_fit.py "
    "training/test_whole_runs.py training/test_resume.py training/test_interrupted.py",
    "training/loop.py": "training/test_stops.py training/test_rows.py training/test_going_back.py "
    "training/test_whole_runs.py training/test_time_budget.py training/test_divergence.py "
    "training/test_interrupted.py training/test_resume.py training/test_fit.py",
    "training/losses.py": "training/test_losses.py training/test_wiring.py",
    "training/muon.py": "training/test_muon.py",
    "training/optimizers.py": "training/test_plateau.py training/test_muon.py "
    "training/test_wiring.py "
    "training/test_recipe_refusals.py",
    "training/plan.py": "training/test_time_budget.py training/test_recipes.py "
    "training/test_wiring.py",
    "training/setup.py": "training/test_programs.py training/test_wiring.py "
    "training/test_recipes.py training/test_recipe_refusals.py",
    "training/compiled.py": "training/test_programs.py training/test_wiring.py",
    "training/result.py": "training/test_results.py training/test_fit.py "
    "training/test_whole_runs.py training/test_resume.py",
    "training/schedules.py": "training/test_schedules.py training/test_wiring.py",
    "training/signals.py": "training/test_signals.py training/test_interrupted.py",
    "training/step.py": "training/test_step.py training/test_wiring.py training/test_recipes.py",
}
"""Of each module, the files of tests that are to notice: those that do at once first."""
_LOOKS = re.compile(
    r"\b(\w*size|x|y|lw|ms|\w*pad|zorder|alpha|\w*width\w*|\w*anchor|rect|left|top|xytext)="
)
_NUMBERS = re.compile("NumberReplacer|BinaryOperator|UnaryOperator")
IMPORTED = (
    *("jax", "flax.linen", "optax", "orbax.checkpoint", "pydantic", "PIL.Image", "rich.console"),
    *("matplotlib.figure", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg"),
    *("tensorboardX", "filelock", "click", "tensorflow_datasets"),
)
"""Before the forks: no test is to import it again."""


class Fault(NamedTuple):
    """One of Cosmic Ray's operators, at one of the places where it can be put to work."""

    operator: Any
    occurrence: int
    line: int

    def put_into(self, code: str) -> str:
        """`code` with this fault."""
        from cosmic_ray.mutating import mutate_code

        return mutate_code(code, self.operator, self.occurrence) or code


def main() -> None:
    parser = argparse.ArgumentParser(description="Small faults, and whether the tests notice.")
    parser.add_argument("modules", nargs="*", help="files; all that there are tests for")
    parser.add_argument("--sample", type=int, help="so many faults of each at random, not all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--tests", help="instead of those in this file")
    parser.add_argument("--timeout", type=float, default=300, help="seconds a fault")
    asked = parser.parse_args()
    modules = [name.removeprefix("cifar_jax/") for name in asked.modules] or list(TESTS)
    for module in modules:
        if not (asked.tests or module in TESTS) or not (ROOT / "cifar_jax" / module).is_file():
            parser.error(f"{module}: there are tests for {', '.join(TESTS)}")
    _copy_tree()
    _import_ahead()
    for module in modules:
        tests = [f"tests/{name}" for name in (asked.tests or TESTS[module]).split()]
        tests.insert(0, f"cifar_jax/{module}")  # its doctests
        mutate(TREE / "cifar_jax" / module, tests, asked.sample, asked.seed, asked.timeout)


def mutate(module: Path, tests: list[str], sample: int | None, seed: int, timeout: float) -> None:
    """Put faults into `module`, and tell how many were noticed and which were not."""
    code = module.read_text()
    found = faults(code)
    chosen = random.Random(seed).sample(found, sample) if sample and sample < len(found) else found
    name = module.relative_to(TREE)
    if not passes(tests, timeout, keep_bytecode=True):
        sys.exit(f"{' '.join(tests)}: must pass where there is no fault\n{_output()[-4000:]}")
    began, lived = time.monotonic(), 0
    for number, fault in enumerate(sorted(chosen, key=lambda fault: fault.line)):
        print(f"{name}: {number} of {len(chosen)}", end="\r", file=sys.stderr, flush=True)
        try:
            module.write_text(fault.put_into(code))
            if passes(tests, timeout):
                lived += 1
                print(f"  {name}:{fault.line}", *_differing(code, module.read_text()), sep="\n    ")
        finally:
            module.write_text(code)
    seconds = time.monotonic() - began
    print(
        f"{name}: {len(chosen) - lived} of {len(chosen)} noticed, of {len(found)} in all, "
        f"{seconds:.0f} s",
        flush=True,
    )


def faults(code: str) -> list[Fault]:
    """Every fault that Cosmic Ray puts into `code`, but for those in `X | Y`, most of which are
    in annotations, for an exception `a.b`, over which it stumbles, and for the sizes and places of
    what matplotlib draws, which are looked at."""
    # Here, since only `make mutants` installs it, and pytest looks into every file for doctests.
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    found, lines, is_drawing = [], code.splitlines(), "matplotlib" in code
    for name in operator_names():
        kind = get_operator(name)
        if kind.arguments() or "ReplaceBinaryOperator_BitOr" in name:
            continue
        operator = kind()
        places = [p for node in ast_nodes(get_ast(code)) for p in operator.mutation_positions(node)]
        for occurrence, ((line, _), _) in enumerate(places):
            text = lines[line - 1]
            dotted = "ExceptionReplacer" in name and "." in text.partition("except ")[2]
            if not dotted and not (is_drawing and _LOOKS.search(text) and _NUMBERS.search(name)):
                found.append(Fault(operator, occurrence, line))
    return found


def _differing(code: str, changed: str) -> list[str]:
    pairs = zip(code.splitlines(), changed.splitlines(), strict=False)
    before, after = next((pair for pair in pairs if pair[0] != pair[1]), ("", ""))
    return [f"- {before.strip()}", f"+ {after.strip()}"]


def passes(tests: list[str], timeout: float, *, keep_bytecode: bool = False) -> bool:
    """Whether `tests` pass with the code as it is now, within `timeout` seconds."""
    sys.stdout.flush()
    child = os.fork()
    if not child:
        os.setsid()
        log = os.open(TREE.parent / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        # A fault may be as long as the code, and made in the same second: its bytecode would be
        # taken for that of the next.
        sys.dont_write_bytecode = not keep_bytecode
        import pytest

        code = 1
        try:
            code = pytest.main(["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", *tests])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(int(code))
    until = time.monotonic() + timeout
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < until:
        time.sleep(0.02)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it has left running, too
    if ended == (0, 0):
        os.waitpid(child, 0)
        return False
    return os.waitstatus_to_exitcode(ended[1]) == 0


def _copy_tree() -> None:
    shutil.rmtree(TREE, ignore_errors=True)
    listed = ["git", "ls-files", "-co", "--exclude-standard"]
    for name in subprocess.check_output(listed, cwd=ROOT, text=True).splitlines():
        if (ROOT / name).is_file():
            (TREE / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, TREE / name)


def _import_ahead() -> None:
    """Everything but the code: what JAX has compiled of it would hide the fault."""
    # Compiled programs on disk serve every fault: another program has another name there.
    os.environ["CIFAR_JAX_TESTS_SCRATCH"] = str(TREE.parent / "scratch")
    os.environ["PYTHONPATH"] = str(TREE)
    os.chdir(TREE)
    sys.path[:0] = [str(TREE), str(TREE / "tests")]
    for name in ("surroundings", "pytest", *IMPORTED):
        __import__(name)
    loaded = [name for name in sys.modules if name.partition(".")[0] == "cifar_jax"]
    assert not loaded, loaded


def _output() -> str:
    return (TREE.parent / "output.txt").read_text(errors="replace")


if __name__ == "__main__":
    main()
