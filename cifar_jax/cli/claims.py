"""The command `cifar-jax claims`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cifar_jax import runtime
from cifar_jax.cli.output import AS_JSON, DEVICE, LocalPath, WholeNumber
from cifar_jax.errors import UserError
from cifar_jax.runs.reading import RUNS

if TYPE_CHECKING:
    from cifar_jax.report.claims import Judgment
    from cifar_jax.report.groups import SeedGroup

_RECORDS = Path("results")
"""Folder of records that is read by default, next to `RUNS`."""
_SEEDS = 3
"""Number of seeds that `--train` trains by default."""


@click.command(short_help="Test the conclusions of the paper.")
@click.argument("folders", metavar="[FOLDER]...", nargs=-1, type=LocalPath(exists=True))
@click.option(
    "--claim", "numbers", multiple=True, type=WholeNumber(1), help="Only the claim with number N."
)
@click.option(
    "--train", "training", is_flag=True, help="First train the missing runs, in the folder runs/."
)
@click.option(
    "--seeds", type=WholeNumber(2), help=f"With --train: train seeds 0 to N-1.  [default: {_SEEDS}]"
)
@DEVICE
@AS_JSON
def claims(
    folders: Sequence[Path],
    numbers: Sequence[int],
    training: bool,
    seeds: int | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Test each conclusion of the paper on pairs of runs with the same seeds.

    FOLDER contains run folders or records. The default is runs/ and results/. The p-values are from
    a paired t-test, corrected for all claims with Holm's method.

    --train trains in runs/EXPERIMENT/seedN. An unfinished run in this folder is resumed. A run is
    not trained again if it is finished in a FOLDER or in runs/.
    """
    from cifar_jax.report.claims import CLAIMS, judge

    for option, given in (("--seeds", seeds), ("--device", device)):
        if given and not training:
            raise UserError(
                f"{option} has no effect without --train: add --train, or leave out {option}"
            )
    if training and as_json:
        raise UserError("--json cannot be used with --train: train first, then print the verdicts")
    if unknown := [number for number in numbers if number > len(CLAIMS)]:
        raise UserError(
            f"there is no claim {unknown[0]}: the claims have numbers 1 to {len(CLAIMS)}"
        )
    numbers = numbers or range(1, len(CLAIMS) + 1)
    if training:
        _train(_read(folders, training), numbers, seeds or _SEEDS, device)
    groups = _read(folders, training)
    if not any(group.runs for group in groups):
        click.echo(f"There are no runs in {RUNS}/ or {_RECORDS}/.", err=True)
    judgments = [judgment for judgment in judge(groups) if judgment.number in numbers]
    if as_json:
        import json

        click.echo(json.dumps([_content(judgment, folders) for judgment in judgments], indent=2))
    else:
        _print(judgments, folders)
    refused = [
        f"claim {j.number}: {' '.join(j.notes)}" for j in judgments if j.verdict == "refused"
    ]
    if refused:
        raise UserError(f"refused {'; '.join(refused)}")


def _read(folders: Sequence[Path], training: bool) -> list[SeedGroup]:
    """Return the runs in the folders. The default folders, runs/ and results/, may be missing.

    With `training`, the runs in runs/ are included, because new runs are trained there.
    """
    from cifar_jax import report
    from cifar_jax.runs.records import read_records

    runs = report.read_runs(folders) if folders else []
    if not folders and _RECORDS.is_dir():
        runs += read_records(_RECORDS)
    if training or not folders:
        runs += report.read_runs()
    return report.collect({run.path.resolve(): run for run in runs}.values())


def _train(
    groups: Sequence[SeedGroup], numbers: Sequence[int], seeds: int, device: str | None
) -> None:
    """Train the missing runs of the claims, one claim after another."""
    from cifar_jax import catalog
    from cifar_jax.cli.train import Folders, make_request, train_all
    from cifar_jax.report.claims import CLAIMS, finished_seeds

    chosen = [CLAIMS[number - 1] for number in numbers]
    requests = []
    for name in dict.fromkeys(n for claim in chosen for n in (claim.baseline, claim.variant)):
        experiment, finished = catalog.load(name), finished_seeds(groups, name)
        requests += [
            make_request(experiment, experiment.config, seed, Folders(None, True, True))
            for seed in range(seeds)
            if seed not in finished
        ]
    if not requests:
        click.echo("All runs of the claims are finished.")
        return
    runtime.set_up()
    runtime.require(device)
    train_all(requests)


def _content(judgment: Judgment, folders: Sequence[Path]) -> dict[str, Any]:
    from cifar_jax.report import claims as report

    claim = judgment.claim
    return {
        "number": judgment.number,
        "claim": claim.sentence,
        "baseline": claim.baseline,
        "variant": claim.variant,
        "differs": claim.differs,
        "effect": claim.effect,
        "margin": claim.margin,
        "paper": claim.paper,
        "paper_difference": claim.paper_difference,
        **{k: v for k, v in judgment._asdict().items() if k not in ("number", "claim")},
        "command": report.command([judgment.number], judgment.more_seeds, folders)
        if judgment.needs_runs
        else None,
    }


def _print(judgments: Sequence[Judgment], folders: Sequence[Path]) -> None:
    from cifar_jax.cli.output import print_table
    from cifar_jax.report import claims as report
    from cifar_jax.report.paper import claim_cells

    columns = ("", "claim", "paper", "seeds", "measured", "95 % interval", "p", "verdict")
    rows = [(str(j.number), j.claim.sentence, *claim_cells(j), j.verdict) for j in judgments]
    print_table(columns, rows, right=(0, 2, 3, 4, 6))
    click.echo(
        "Paper and measured: accuracy with the change minus accuracy without it, in points. p: "
        f"paired t-test, corrected for {len(report.CLAIMS)} claims. SE: standard error from the "
        "choice of the test images. The intervals are not corrected."
    )
    for judgment in judgments:
        for note in judgment.notes if judgment.verdict != "refused" else ():
            click.echo(f"Claim {judgment.number}: {note}")
    for seeds in {judgment.more_seeds: None for judgment in judgments if judgment.needs_runs}:
        missing = [j.number for j in judgments if j.needs_runs and j.more_seeds == seeds]
        click.echo(f"To train the missing runs: {report.command(missing, seeds, folders)}")
