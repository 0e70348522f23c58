"""`cifar-jax train`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from cifar_jax import process
from cifar_jax.errors import UserError

RUNS = Path("runs")


@click.command(short_help="Train an experiment, or go on with it.")
@click.argument("experiment")
@click.option(
    "--workdir",
    type=click.Path(path_type=Path),
    help="The run's folder; with --seeds, that of the seeds' folders.  [runs/EXPERIMENT/seedN]",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Of all that is random.  [0]")
@click.option("--seeds", type=click.IntRange(1), help="Train seeds 0 to N-1, one after the other.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a setting.")
@click.option("--fresh", is_flag=True, help="Delete the run that is in the folder, and train anew.")
@click.option(
    "--distributed",
    is_flag=True,
    help="Be one of several processes, as JAX_COORDINATOR_ADDRESS, SLURM or a TPU slice say.",
)
def train(
    experiment: str,
    workdir: Path | None,
    seed: int | None,
    seeds: int | None,
    settings: Sequence[str],
    fresh: bool,
    distributed: bool,
) -> None:
    """Train EXPERIMENT, a name or a config file; go on where an earlier start stopped.

    --set reaches every setting by its dotted name, such as --set optimizer.lr=3e-4
    --set data.dataset=digits --set epochs=2; `cifar-jax settings` lists them.
    """
    from cifar_jax import catalog, config

    if seed is not None and seeds is not None:
        raise UserError("--seed and --seeds exclude each other")
    found = catalog.load(experiment)
    overridden = config.override(found.config, settings)
    changes = config.differences(config.flatten(found.config), config.flatten(overridden))

    from cifar_jax import processes
    from cifar_jax.training.display import Display
    from cifar_jax.training.fit import Run, fit

    process.set_up()
    if distributed or "JAX_COORDINATOR_ADDRESS" in os.environ:
        processes.initialize_distributed()
    display = Display(quiet=not processes.is_first())
    for number in range(seeds) if seeds else [seed or 0]:
        folder = workdir or RUNS / found.name
        run = Run(
            experiment=found.name,
            config=overridden,
            seed=number,
            workdir=folder if workdir and not seeds else folder / f"seed{number}",
            overrides={name: value for name, (_, value) in changes.items()},
            fresh=fresh,
        )
        display.note(_result_line(fit(run, display)))


def _result_line(result: dict[str, Any]) -> str:
    paper = result["paper_accuracy"]
    beside = f" (the paper: {paper:.2f} %)" if paper and not result["overrides"] else ""
    best = result["best_validation_epoch"]
    also = (
        f"; {result['best_validation_test_accuracy']:.2f} % at the best validation, epoch {best}"
        if best not in (None, result["epochs"])
        else ""
    )
    return (
        f"{result['experiment']} seed {result['seed']}: test accuracy "
        f"{result['test_accuracy']:.2f} %{beside}{also}"
    )
