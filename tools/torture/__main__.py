"""The command line of `make torture`, and its table."""

import argparse
import multiprocessing
import random
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from cifar_jax.runs import environment
from tools.torture import SCRATCH
from tools.torture.faults import make_trials
from tools.torture.runs import BACKGROUND, PHASES, mark_phases
from tools.torture.trials import Outcome, Reference, Trial, make_reference, say

BEGIN, END = "<!-- torture -->", "<!-- /torture -->"


def main() -> int:
    """Disturb runs, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="make torture",
        description="Disturb training runs and compare them with undisturbed ones.",
    )
    for name, default, text in (
        ("kills", 50, "number of SIGKILLs"),
        ("signals", 30, "number of SIGTERMs and SIGINTs"),
        ("damages", 2, "number of damaged runs for each kind of damage"),
        ("disks", len(PHASES), "number of phases in which the disk is filled"),
        ("pairs", 4, "number of runs in which one of two processes is killed"),
        ("minutes", 60, "minutes after which no new trial starts"),
        ("jobs", 1, "number of trials at the same time"),
        ("seed", 0, "seed of all random choices"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} [{default}]")
    parser.add_argument(
        "--record", type=Path, help=f"file to write the table to, between {BEGIN} and {END}"
    )
    options = vars(parser.parse_args())
    record_file, seed, jobs = (options.pop(name) for name in ("record", "seed", "jobs"))
    began = time.monotonic()
    deadline = began + 60 * options.pop("minutes")
    # Read the commit first, because files in the checkout may change during the runs.
    commit, _ = environment.git_commit("tools")
    trials = make_trials(**options)
    # In random order, even a short run has faults of many kinds.
    random.Random(seed).shuffle(trials)
    kinds = list(dict.fromkeys(trial.kind for trial in trials))
    mark_phases()
    # Python warns about forks with several threads. No other thread is active at a fork.
    warnings.filterwarnings("ignore", message=".*fork")
    # `sys.exit` runs the `finally` blocks, which unmount disks.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    SCRATCH.mkdir()
    say(f"in {SCRATCH}, seed {seed}")
    references: dict[str, Reference] = {}
    done: list[Trial] = []
    try:
        # The workers are forked at the first call, before this process has threads.
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("fork")) as pool:
            for kind, reference in zip(kinds, pool.map(make_reference, kinds), strict=True):
                references[kind.name] = reference
            run = partial(Trial.run, references=references, seed=seed, deadline=deadline)
            for trial in pool.map(run, trials):
                done.append(trial)  # After an interrupt, the table has all finished trials.
    finally:
        about = f"with seed {seed} in {time.monotonic() - began:,.0f} s"
        text = table(done, references, f"commit `{commit}`", about)
        print(text, flush=True)
    if record_file:
        record(record_file, text)
    wrong = sum(bool(outcome.wrong) for trial in done for outcome in trial.outcomes)
    if wrong:
        say(f"{wrong} outcomes are wrong; see the folders in {SCRATCH}")
    else:
        shutil.rmtree(SCRATCH)
    return bool(wrong)


def table(
    trials: Sequence[Trial], references: Mapping[str, Reference], commit: str, about: str
) -> str:
    """Return the outcomes as a table in Markdown."""
    outcomes = [(outcome, trial.name) for trial in trials for outcome in trial.outcomes]
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome, _ in outcomes:
        groups.setdefault((outcome.fault, outcome.phase), []).append(outcome)
    lines = [
        "| fault | phase | faults | correct | longest end, s |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for fault, phase in sorted(groups, key=lambda group: tuple(map(_order, group))):
        group = groups[fault, phase]
        ends = [outcome.seconds for outcome in group if outcome.seconds is not None]
        longest = f"{max(ends):.1f}" if ends else "–"
        equal = sum(not outcome.wrong for outcome in group)
        lines.append(f"| {fault} | {phase} | {len(group)} | {equal} | {longest} |")
    equal = sum(not outcome.wrong for outcome, _ in outcomes)
    lines.append(f"| **all** | | **{len(outcomes)}** | **{equal}** | |")
    machine, jax = environment.machine(), environment.versions()["jax"]
    kinds = ", ".join(f"{run.seconds:.0f} s ({name})" for name, run in references.items())
    lines += [
        "",
        f"Measured on {datetime.now(UTC):%Y-%m-%d} {about}, at {commit}, with jax {jax}, on "
        f"{machine.cpu} with {machine.cores} cores. The undisturbed runs took {kinds}.",
    ]
    if skipped := [trial.name for trial in trials if not trial.outcomes]:
        lines += [
            "",
            "These trials did not run, because the time was over or a disk could not be mounted: "
            f"{', '.join(skipped)}.",
        ]
    for outcome, name in outcomes:
        if outcome.wrong:
            reason = " ".join(outcome.wrong.split())[:300]
            lines += [
                "",
                f"Wrong outcome of {outcome.fault} in phase {outcome.phase} ({name}): {reason}",
            ]
    return "\n".join(lines)


def _order(text: str) -> tuple[int, str]:
    names = ("SIGKILL", "SIGTERM", "SIGINT", *PHASES, BACKGROUND)
    return (names.index(text) if text in names else len(names), text)


def record(path: Path, text: str) -> None:
    """Replace the text between the marks `BEGIN` and `END` of a file."""
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    path.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
