"""The command line of `make torture`, and its table."""

import argparse
import multiprocessing
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cifar_jax.runs import environment
from cifar_jax.runs.schemas import Machine
from tools.torture import SCRATCH
from tools.torture.faults import damage_files, fill_disk, kill_one_of_two, send_signals
from tools.torture.harness import Harness, Outcome, say
from tools.torture.runs import (
    ADAM,
    BACKGROUND,
    BASIC,
    NET,
    PHASES,
    TWO_PROCESSES,
    Failure,
    mark_phases,
)

BEGIN, END = "<!-- torture -->", "<!-- /torture -->"


def main() -> int:
    """Disturb runs, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="make torture",
        description="Disturb training runs and compare them with undisturbed ones.",
    )
    parser.add_argument("--minutes", type=float, default=60, help="start nothing new after these")
    parser.add_argument("--kills", type=int, default=50, help="number of SIGKILLs")
    parser.add_argument("--signals", type=int, default=30, help="number of SIGTERMs and SIGINTs")
    parser.add_argument("--damages", type=int, default=2, help="number of damages of each kind")
    parser.add_argument("--pairs", type=int, default=4, help="kills of one of two processes")
    parser.add_argument(
        "--disks", type=int, default=len(PHASES), help="number of phases with a full disk"
    )
    parser.add_argument("--one-kind", action="store_true", help="send signals to `basic` only")
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at the same time")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument(
        "--record", type=Path, help=f"also write the table to this file, between {BEGIN} and {END}"
    )
    options = parser.parse_args()
    began = time.monotonic()
    commit, _ = environment.git_commit("tools")  # before anything is written
    harness = Harness(options.seed, began + 60 * options.minutes)
    mark_phases()
    warnings.filterwarnings("ignore", message=".*fork")  # The forked code uses no other threads.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unmounts the disk on the way out
    say(f"in {SCRATCH}, seed {options.seed}")
    kinds = [BASIC] if options.one_kind else [BASIC, ADAM, NET]
    stops = (signal.SIGTERM, signal.SIGINT)
    parts = {
        "kills": (kinds, send_signals, (signal.SIGKILL,), kinds, options.kills),
        "signals": (kinds, send_signals, stops, kinds, options.signals),
        "damages": ([ADAM], damage_files, options.damages),
        "disks": ([ADAM, TWO_PROCESSES], fill_disk, options.disks),
        "pairs": ([TWO_PROCESSES], kill_one_of_two, options.pairs),
    }
    parts = {name: part for name, part in parts.items() if part[-1]}
    needed = dict.fromkeys(kind for part in parts.values() for kind in part[0])
    try:
        # The workers are forked at the first call, before this process has threads.
        with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("fork")) as pool:
            for calls in (
                {f"undisturbed{n}-": (Harness.make_reference, k) for n, k in enumerate(needed)},
                {name: call for name, (_, *call) in parts.items()},
            ):
                futures = [
                    pool.submit(_call, replace(harness, part=name, outcomes=[], skipped=[]), *call)
                    for name, call in calls.items()
                ]
                for future in futures:
                    harness.merge(future.result())
    finally:
        text = table(harness, time.monotonic() - began, commit)
        print(text, flush=True)
    if options.record:
        record(options.record, text)
    wrong = sum(bool(outcome.wrong) for outcome in harness.outcomes)
    if wrong:
        say(f"{wrong} of {len(harness.outcomes)} are wrong; see the folders in {SCRATCH}")
    else:
        shutil.rmtree(SCRATCH)
    return bool(wrong)


def _call(part: Harness, function: Callable[..., None], *arguments: Any) -> Harness:
    """Call `function` in a worker process and return what it collected."""
    try:
        function(part, *arguments)
    except (Failure, KeyError) as error:  # KeyError: an undisturbed run is missing
        part.add(Outcome(part.part, "prepared", "", "", wrong=str(error)))
    return part


def table(harness: Harness, seconds: float, commit: str | None) -> str:
    """Return the outcomes as a table in Markdown."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in sorted(harness.outcomes, key=lambda o: (_order(o.fault), _order(o.phase))):
        groups.setdefault((outcome.fault, outcome.phase), []).append(outcome)
    lines = [
        "| fault | while | times | as undisturbed | gone after, s |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for (fault, phase), outcomes in groups.items():
        equal = sum(not outcome.wrong for outcome in outcomes)
        times = [outcome.seconds for outcome in outcomes if outcome.seconds is not None]
        longest = f"{max(times):.1f}" if times else "–"
        lines.append(f"| {fault} | {phase} | {len(outcomes)} | {equal} | {longest} |")
    equal = sum(not outcome.wrong for outcome in harness.outcomes)
    lines.append(f"| **all** | | **{len(harness.outcomes)}** | **{equal}** | |")
    machine: Machine = environment.machine()
    runs = len({(outcome.seed, outcome.kind) for outcome in harness.outcomes})
    times = "; ".join(f"{name} ({time:.0f} s)" for name, time in harness.seconds.items())
    lines += [
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, commit `{commit}`, {machine.cpu}, {machine.cores} cores, "
        f"jax {environment.versions()['jax']}; seed {harness.seed}, {seconds:,.0f} s in all. "
        f"{runs} disturbed runs, of: {times}.",
        *(f"\nNot tried, because the time was over: {text}." for text in harness.skipped),
        *(
            f"\nWrong: {o.fault} while {o.phase} ({o.kind}, `{o.seed}`): "
            f"{o.wrong.strip().splitlines()[-1][:300]}"
            for o in harness.outcomes
            if o.wrong
        ),
    ]
    return "\n".join(lines)


def _order(text: str) -> tuple[int, str]:
    names = ("SIGKILL", "SIGTERM", "SIGINT", *PHASES, BACKGROUND)
    return (names.index(text) if text in names else len(names), text)


def record(path: Path, text: str) -> None:
    """Put a text between the marks of a file."""
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    path.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
