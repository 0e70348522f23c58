"""Put small faults into the code, one at a time, and count the faults that tests notice.

    make mutants ARGS="cifar_jax/runs/folder.py --sample 40"

Cosmic Ray makes the faults in a copy of the repository, in `build/mutants`. This process imports
all libraries, but not the package. The tests of each fault run in a fork of this process, so the
fork need not import the libraries again. See docs/testing.md.
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
    "callbacks/base.py": "training/test_callbacks.py",
    "callbacks/checkpoint.py": "training/test_callbacks.py training/test_train.py "
    "training/test_resume.py",
    "callbacks/metrics_file.py": "training/test_callbacks.py training/test_resume.py",
    "callbacks/progress.py": "training/test_callbacks.py training/test_resume.py",
    "callbacks/signals.py": "training/test_signals.py training/test_resume.py",
    "callbacks/tensorboard.py": "training/test_callbacks.py",
    "files.py": "runs/test_files.py runs/test_folder.py",
    "report/__init__.py": "report/test_report_written.py report/test_report_readme.py",
    "report/groups.py": "report/test_report_table.py report/test_report_written.py",
    "report/markdown.py": "report/test_report_written.py report/test_report_readme.py",
    "report/plots.py": "report/test_report_plots.py",
    "report/readme.py": "report/test_report_readme.py",
    "report/recipes.py": "report/test_report_readme.py",
    "report/table.py": "report/test_report_table.py report/test_report_written.py",
    "report/terminal.py": "report/test_report_written.py",
    "runs/checkpoints.py": "runs/test_checkpoints.py training/test_resume.py",
    "runs/digests.py": "runs/test_checkpoints.py",
    "runs/environment.py": "runs/test_environment.py",
    "runs/folder.py": "runs/test_folder.py training/test_resume.py",
    "runs/reading.py": "report/test_report_reading.py report/test_report_table.py",
    "runs/records.py": "report/test_report_records.py",
    "runs/run.py": "report/test_report_reading.py report/test_report_table.py",
    "runs/schemas.py": "runs/test_folder.py runs/test_documentation.py "
    "report/test_report_reading.py",
    "training/averaging.py": "training/test_averaging.py training/test_recipe_parts.py",
    "training/batches.py": "training/test_settings_reach_training.py training/test_recipe_parts.py",
    "training/compilation.py": "training/test_compilation.py "
    "training/test_settings_reach_training.py",
    "training/evaluation.py": "training/test_evaluation.py training/test_compilation.py",
    "training/losses.py": "training/test_losses.py training/test_settings_reach_training.py",
    "training/model_card.py": "training/test_start.py training/test_train.py",
    "training/muon.py": "training/test_muon.py",
    "training/optimizers.py": "training/test_muon.py training/test_recipe_errors.py "
    "training/test_settings_reach_training.py",
    "training/plan.py": "training/test_recipe_parts.py training/test_settings_reach_training.py",
    "training/result.py": "training/test_train.py training/test_whole_runs.py",
    "training/rng.py": "training/test_settings_reach_training.py",
    "training/schedules.py": "training/test_schedules.py training/test_plateau.py "
    "training/test_settings_reach_training.py",
    "training/setup.py": "training/test_compilation.py training/test_recipe_errors.py "
    "training/test_recipe_parts.py training/test_settings_reach_training.py",
    "training/start.py": "training/test_start.py training/test_train.py training/test_resume.py",
    "training/step.py": "training/test_step.py training/test_settings_reach_training.py",
    "training/train.py": "training/test_train.py training/test_whole_runs.py "
    "training/test_resume.py training/test_signals.py",
}
"""Test files of each module. Fast test files come first."""

LIBRARIES = (
    *("jax", "flax.linen", "optax", "orbax.checkpoint", "pydantic", "PIL.Image", "rich.console"),
    *("matplotlib.figure", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg"),
    *("tensorboardX", "filelock", "click", "tensorflow_datasets"),
)
"""Libraries to import once, before this process forks."""

_LAYOUT = re.compile(
    r"\b(\w*size|x|y|lw|ms|\w*pad|zorder|alpha|\w*width\w*|\w*anchor|rect|left|top|xytext)="
)
_NUMBERS = re.compile("NumberReplacer|BinaryOperator|UnaryOperator")


class Fault(NamedTuple):
    """A fault: a Cosmic Ray operator, and the place in the code to apply it."""

    operator: Any
    occurrence: int
    line: int

    def apply(self, code: str) -> str:
        """Return `code` with this fault."""
        from cosmic_ray.mutating import mutate_code  # pyright: ignore[reportMissingImports]

        return mutate_code(code, self.operator, self.occurrence) or code


def main() -> None:
    """Try faults in the modules that the command line names."""
    parser = argparse.ArgumentParser(
        prog="make mutants", description="Count the small faults that the tests notice."
    )
    parser.add_argument("modules", nargs="*", help="files to change [default: all known modules]")
    parser.add_argument("--sample", type=int, help="random faults per module [default: all faults]")
    parser.add_argument("--seed", type=int, default=0, help="random seed of --sample")
    parser.add_argument("--tests", help="test files to run instead of the module's test files")
    parser.add_argument("--timeout", type=float, default=300, help="seconds per fault")
    options = parser.parse_args()
    modules = [name.removeprefix("cifar_jax/") for name in options.modules] or list(TESTS)
    for module in modules:
        if not (ROOT / "cifar_jax" / module).is_file():
            parser.error(f"cifar_jax/{module} does not exist")
        if module not in TESTS and not options.tests:
            parser.error(f"no tests are known for {module}. Name some with --tests.")
    _copy_tree()
    _import_libraries()
    for module in modules:
        tests = [f"tests/{name}" for name in (options.tests or TESTS[module]).split()]
        tests.insert(0, f"cifar_jax/{module}")  # Run the doctests of the module.
        path = TREE / "cifar_jax" / module
        try_faults(path, tests, options.sample, options.seed, options.timeout)


def try_faults(
    module: Path, tests: list[str], sample: int | None, seed: int, timeout: float
) -> None:
    """Run the tests with each fault of a module.

    Print the faults that no test notices, and the number of faults that tests notice.
    """
    code = module.read_text()
    chosen = possible = faults(code)
    if sample and sample < len(possible):
        chosen = random.Random(seed).sample(possible, sample)
    name = module.relative_to(TREE)
    if not passes(tests, timeout, keep_bytecode=True):
        output = (TREE.parent / "output.txt").read_text(errors="replace")
        sys.exit(f"{' '.join(tests)} fail without a fault\n{output[-4000:]}")
    began, unnoticed = time.monotonic(), 0
    for number, fault in enumerate(sorted(chosen, key=lambda fault: fault.line)):
        print(f"{name}: {number} of {len(chosen)}", end="\r", file=sys.stderr, flush=True)
        faulty = fault.apply(code)
        try:
            module.write_text(faulty)
            if passes(tests, timeout):
                unnoticed += 1
                print(f"  {name}:{fault.line}", *_first_change(code, faulty), sep="\n    ")
        finally:
            module.write_text(code)
    print(
        f"{name}: {len(chosen) - unnoticed} of {len(chosen)} faults noticed, "
        f"{len(possible)} faults possible, {time.monotonic() - began:.0f} s",
        flush=True,
    )


def faults(code: str) -> list[Fault]:
    """Return the faults that Cosmic Ray can put into `code`.

    Three kinds of faults are left out: faults in `X | Y`, because most are in type annotations;
    faults in exceptions `a.b`, because Cosmic Ray cannot handle them; and faults in the sizes and
    positions of figures.
    """
    # The import is here, because only `make mutants` installs Cosmic Ray.
    from cosmic_ray.ast import ast_nodes, get_ast  # pyright: ignore[reportMissingImports]
    from cosmic_ray.plugins import (  # pyright: ignore[reportMissingImports]
        get_operator,
        operator_names,
    )

    possible, lines, is_drawing = [], code.splitlines(), "matplotlib" in code
    for name in operator_names():
        kind = get_operator(name)
        if kind.arguments() or "ReplaceBinaryOperator_BitOr" in name:
            continue
        operator = kind()
        places = [p for node in ast_nodes(get_ast(code)) for p in operator.mutation_positions(node)]
        for occurrence, ((line, _), _) in enumerate(places):
            text = lines[line - 1]
            is_dotted = "ExceptionReplacer" in name and "." in text.partition("except ")[2]
            is_layout = is_drawing and _LAYOUT.search(text) and _NUMBERS.search(name)
            if not is_dotted and not is_layout:
                possible.append(Fault(operator, occurrence, line))
    return possible


def _first_change(code: str, faulty: str) -> list[str]:
    pairs = zip(code.splitlines(), faulty.splitlines(), strict=False)
    old, new = next((pair for pair in pairs if pair[0] != pair[1]), ("", ""))
    return [f"- {old.strip()}", f"+ {new.strip()}"]


def passes(tests: list[str], timeout: float, *, keep_bytecode: bool = False) -> bool:
    """Return whether `tests` pass with the current code, within `timeout` seconds."""
    sys.stdout.flush()
    child = os.fork()
    if not child:
        os.setsid()
        log = os.open(TREE.parent / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        # Python reuses the bytecode of a source file if size and time are the same. The next faulty
        # file may have the same size and time.
        sys.dont_write_bytecode = not keep_bytecode
        import pytest  # pyright: ignore[reportMissingImports]

        code = 1
        try:
            code = pytest.main(["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", *tests])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(int(code))
    end = time.monotonic() + timeout
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < end:
        time.sleep(0.02)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # Also end the processes that the tests started.
    if ended == (0, 0):
        os.waitpid(child, 0)
        return False
    return os.waitstatus_to_exitcode(ended[1]) == 0


def _copy_tree() -> None:
    shutil.rmtree(TREE, ignore_errors=True)
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    for name in subprocess.check_output(command, cwd=ROOT, text=True).splitlines():
        if (ROOT / name).is_file():
            (TREE / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, TREE / name)


def _import_libraries() -> None:
    """Import all libraries, but not the package. The tests must import the faulty package."""
    # All faults share a cache of compiled programs. The keys of the cache are hashes of the
    # programs.
    os.environ["CIFAR_JAX_TESTS_SCRATCH"] = str(TREE.parent / "scratch")
    os.environ["PYTHONPATH"] = str(TREE)
    os.chdir(TREE)
    sys.path[:0] = [str(TREE), str(TREE / "tests")]
    for name in ("surroundings", "pytest", *LIBRARIES):
        __import__(name)
    loaded = [name for name in sys.modules if name.partition(".")[0] == "cifar_jax"]
    assert not loaded, loaded


if __name__ == "__main__":
    main()
