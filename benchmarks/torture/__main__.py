"""The command line of `make torture`, and its table. The table goes to standard output, and with
`--record FILE` also between the marks `<!-- torture -->` and `<!-- /torture -->` of that file.
"""

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

from benchmarks.torture import SCRATCH
from benchmarks.torture.bench import Bench, Event, say
from benchmarks.torture.faults import (
    damage,
    fill_disk,
    kill_one_of_two,
    send_signals,
)
from benchmarks.torture.runs import PHASES, SUBJECTS, TOGETHER, WRITING, Fault, mark_phases
from cifar_jax.runs import environment

BEGIN, END = "<!-- torture -->", "<!-- /torture -->"


def table(bench: Bench, took: float, where: dict[str, Any]) -> str:
    """What happened, in Markdown."""
    groups: dict[tuple[str, str], list[Event]] = {}
    for event in sorted(bench.events, key=lambda e: (_order(e.fault), _order(e.at))):
        groups.setdefault((event.fault, event.at), []).append(event)
    lines = [
        "| fault | while | times | as undisturbed | gone after, s |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for (fault, at), events in groups.items():
        good = sum(not event.wrong for event in events)
        times = [event.ended for event in events if event.ended is not None]
        longest = f"{max(times):.1f}" if times else "–"
        lines.append(f"| {fault} | {at} | {len(events)} | {good} | {longest} |")
    good = sum(not event.wrong for event in bench.events)
    lines.append(f"| **all** | | **{len(bench.events)}** | **{good}** | |")
    runs = {(event.seed, event.subject) for event in bench.events}
    machine, versions = where["machine"], where["versions"]
    lines += [
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, commit `{where['git_commit']}`, "
        f"{machine['cpu']}, {machine['cores']} cores, jax {versions['jax']}; seed {bench.seed}, "
        f"{took:,.0f} s in all. {len(runs)} disturbed runs, of: "
        + "; ".join(f"{name} ({seconds:.0f} s)" for name, seconds in bench.seconds.items())
        + ".",
        *(f"\nNot tried: {text}." for text in bench.skipped),
        *(
            f"\nWrong: {e.fault} while {e.at} ({e.subject}, `{e.seed}`): "
            f"{e.wrong.strip().splitlines()[-1][:300]}"
            for e in bench.events
            if e.wrong
        ),
    ]
    return "\n".join(lines)


def _order(text: str) -> tuple[int, str]:
    first = ("SIGKILL", "SIGTERM", "SIGINT", *PHASES[:6], WRITING, *PHASES[6:])
    return (first.index(text) if text in first else len(first), text)


def record(path: Path, text: str) -> None:
    """Put it between the marks of a file."""
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    path.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def _part(bench: Bench, name: str, do: Callable[..., None], *arguments: Any) -> Bench:
    """Part of the work, in a process of its own, which forks runs and so must not compute."""
    bench = replace(bench, part=name, events=[], skipped=[])
    try:
        do(bench, *arguments)
    except (Fault, KeyError) as error:
        bench.add(Event(name, "prepared", "", "", wrong=str(error)))
    return bench


def main() -> int:
    parser = argparse.ArgumentParser(description="Disturb runs, and hold them to undisturbed ones.")
    parser.add_argument("--minutes", type=float, default=60, help="begin nothing new after these")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--signals", type=int, default=30)
    parser.add_argument("--damages", type=int, default=2, help="of each kind")
    parser.add_argument("--pairs", type=int, default=4, help="kills of one of two processes")
    parser.add_argument("--disks", type=int, default=len(PHASES), help="full, in so many phases")
    parser.add_argument("--one-subject", action="store_true", help="signals to the first alone")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--record", type=Path, help="a file with marks for the table")
    asked = parser.parse_args()
    began = time.monotonic()
    subjects = SUBJECTS[:1] if asked.one_subject else SUBJECTS
    bench = Bench(asked.seed, began + 60 * asked.minutes, subjects)
    # The commit, before anything is written.
    where = {
        "git_commit": environment.git_commit("benchmarks")[0],
        "versions": environment.versions(),
        "machine": environment.machine().model_dump(),
    }
    mark_phases()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the disk is unmounted
    say(f"in {SCRATCH}, seed {asked.seed}")
    parts: dict[str, tuple[Any, ...]] = {
        "kills": (send_signals, (signal.SIGKILL,), asked.kills),
        "signals": (send_signals, (signal.SIGTERM, signal.SIGINT), asked.signals),
        "damages": (damage, asked.damages),
        "disks": (fill_disk, asked.disks),
        "pairs": (kill_one_of_two, asked.pairs),
    }
    asked_for = {name: part for name, part in parts.items() if part[-1]}
    needed = [TOGETHER] if {"disks", "pairs"} & asked_for.keys() else []
    if {"kills", "signals"} & asked_for.keys():
        needed += bench.subjects
    if {"damages", "disks"} & asked_for.keys() and SUBJECTS[1] not in needed:
        needed.append(SUBJECTS[1])
    try:
        # Workers are forked at the first call, before this process has threads.
        fork = multiprocessing.get_context("fork")
        with warnings.catch_warnings(), ProcessPoolExecutor(asked.jobs, fork) as pool:
            warnings.simplefilter("ignore")
            undisturbed: dict[str, tuple[Any, ...]]
            undisturbed = {f"undisturbed{n}-": (Bench.prepare, s) for n, s in enumerate(needed)}
            for calls in (undisturbed, asked_for):
                futures = [pool.submit(_part, bench, name, *call) for name, call in calls.items()]
                for future in futures:
                    bench.take(future.result())
    finally:
        text = table(bench, time.monotonic() - began, where)
        print(text, flush=True)
    if asked.record:
        record(asked.record, text)
    wrong = sum(bool(event.wrong) for event in bench.events)
    if wrong:
        say(f"{wrong} of {len(bench.events)} went wrong; what they left is in {SCRATCH}")
    else:
        shutil.rmtree(SCRATCH)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
