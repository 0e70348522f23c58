"""`make mutants`: small faults in the code, one at a time, and how many the tests notice.

    make mutants ARGS="cifar_jax/runs/folder.py --sample 40"

Cosmic Ray makes the faults, in a copy of the tree in `build/mutants`. See docs/testing.md.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TREE = ROOT / "build/mutants/tree"
ROOMS = {
    "cifar_jax/training": "tests/training",
    "cifar_jax/runs": "tests/runs tests/training/test_whole_runs.py tests/training/test_resume.py",
    "cifar_jax/report": "tests/report",
}
NO_FAULTS = ("ReplaceBinaryOperator_BitOr",)
"""Operators whose faults are in type annotations, where an import stumbles over them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("modules", nargs="*", default=list(ROOMS), help="files or folders")
    parser.add_argument("--sample", type=int, help="so many at random, instead of all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--tests", help="instead of those of the module's room")
    parser.add_argument("--timeout", type=float, default=900, help="seconds a mutant")
    asked = parser.parse_args()
    for module in asked.modules:
        room = "/".join(Path(module).parts[:2])
        tests = asked.tests or ROOMS.get(room)
        if not tests or not (ROOT / module).exists():
            parser.error(f"{module} is none of {', '.join(ROOMS)}, or in one of them")
        print(mutate(module, tests, asked.sample, asked.seed, asked.timeout), flush=True)


def mutate(module: str, tests: str, sample: int | None, seed: int, timeout: float) -> str:
    """Put faults into `module`, and tell how many were noticed and which were not."""
    # Here, since only `make mutants` installs it, and pytest looks into every file for doctests.
    from cosmic_ray.work_db import use_db
    from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult

    shutil.rmtree(TREE, ignore_errors=True)
    listed = ["git", "ls-files", "-co", "--exclude-standard"]
    for name in subprocess.check_output(listed, cwd=ROOT, text=True).splitlines():
        if (ROOT / name).is_file():
            (TREE / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, TREE / name)
    command = f"{sys.executable} -m pytest -x -q -m 'not slow' -p no:cacheprovider {tests}"
    config, session = TREE.parent / "cosmic-ray.toml", TREE.parent / "session.sqlite"
    config.write_text(
        f'[cosmic-ray]\nmodule-path = "{module}"\ntimeout = {timeout}\nexcluded-modules = []\n'
        f'test-command = "{command}"\n[cosmic-ray.distributor]\nname = "local"\n'
    )
    session.unlink(missing_ok=True)
    # Compiled programs and decoded digits serve every mutant: neither depends on these rooms.
    environment = os.environ | {"CIFAR_JAX_TESTS_SCRATCH": str(TREE.parent / "scratch")}
    tool = Path(sys.executable).parent / "cosmic-ray"
    tool = tool if tool.exists() else Path(str(shutil.which("cosmic-ray")))

    def run(*words: str | Path) -> None:
        subprocess.run([tool, *words], cwd=TREE, env=environment, check=True)

    run("init", config, session)
    with use_db(str(session)) as db:
        items = sorted(
            db.pending_work_items,
            key=lambda item: (str(item.mutations[0].module_path), item.mutations[0].start_pos),
        )
        items = [
            item
            for item in items
            if not any(name in item.mutations[0].operator_name for name in NO_FAULTS)
        ]
        chosen = {item.job_id for item in items}
        if sample and sample < len(items):
            chosen = {item.job_id for item in random.Random(seed).sample(items, sample)}
        for item in list(db.pending_work_items):
            if item.job_id not in chosen:
                db.set_result(item.job_id, WorkResult(worker_outcome=WorkerOutcome.SKIPPED))
    run("baseline", config)  # the tests must pass where there is no fault
    run("exec", config, session)
    with use_db(str(session)) as db:
        done = list(db.completed_work_items)
    done = [(item, result) for item, result in done if item.job_id in chosen]
    lived = [item for item, result in done if result.test_outcome == TestOutcome.SURVIVED]
    lines = [f"{module}: {len(done) - len(lived)} of {len(done)} noticed, of {len(items)} in all"]
    for item in lived:
        fault = item.mutations[0]
        line = (TREE / fault.module_path).read_text().splitlines()[fault.start_pos[0] - 1]
        name = fault.operator_name.removeprefix("core/")
        lines.append(f"  {fault.module_path}:{fault.start_pos[0]} {name}: {line.strip()}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
