"""`cifar-jax train`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import click

from cifar_jax import runtime
from cifar_jax.cli.code import own_model
from cifar_jax.cli.output import DEVICE
from cifar_jax.errors import UserError


@click.command(short_help="Train experiments, or go on with them.")
@click.argument("experiments", metavar="EXPERIMENT...", nargs=-1)
@click.option("--paper", is_flag=True, help="All experiments of the paper, in its order.")
@click.option(
    "--workdir",
    type=click.Path(path_type=Path),
    help="The run's folder; with --seeds, that of the seeds' folders; with several experiments, "
    "what stands for runs.  [runs/EXPERIMENT[@SETTINGS]/seedN]",
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
@DEVICE
def train(
    experiments: Sequence[str],
    paper: bool,
    workdir: Path | None,
    seed: int | None,
    seeds: int | None,
    settings: Sequence[str],
    fresh: bool,
    distributed: bool,
    device: str | None,
) -> None:
    """Train each EXPERIMENT, a name or a config file; go on where an earlier start stopped.

    One that fails does not keep the others from their turn; a signal stops them all.

    --set reaches every setting by its dotted name, such as --set optimizer.lr=3e-4
    --set data.dataset=digits --set epochs=2; `cifar-jax settings` lists them.
    """
    from cifar_jax import catalog, config

    if seed is not None and seeds is not None:
        raise UserError("--seed and --seeds exclude each other")
    if paper == bool(experiments):
        raise UserError("name one EXPERIMENT or several, or give --paper")
    found = [catalog.load(name) for name in experiments or catalog.names()]
    if paper:
        found = [experiment for experiment in found if experiment.config.paper]
    asked = [(experiment, config.override(experiment.config, settings)) for experiment in found]

    runtime.set_up()

    from cifar_jax import distributed as processes
    from cifar_jax.cli.run_many import train_each
    from cifar_jax.inference.load import weights
    from cifar_jax.runs.folder import folder_name
    from cifar_jax.runs.reading import RUNS
    from cifar_jax.training.display import Display
    from cifar_jax.training.fit import Run, fit

    if distributed or "JAX_COORDINATOR_ADDRESS" in os.environ:
        processes.initialize_distributed()
    runtime.require(device)
    display = Display(quiet=not processes.is_main_process())
    runs = []
    for experiment, overridden in asked:
        # How a run is carried out makes it no other.
        own, asked_for = config.identity(experiment.config), config.identity(overridden)
        changes = {name: v for name, (_, v) in config.differences(own, asked_for).items()}
        for number in range(seeds) if seeds else [seed or 0]:
            name = folder_name(experiment.name, changes)
            folder = (workdir or RUNS) / name / f"seed{number}"
            if workdir and len(asked) == 1:
                folder = workdir / f"seed{number}" if seeds else workdir
            run = Run(
                experiment=experiment.name,
                config=overridden,
                seed=number,
                workdir=folder,
                overrides=changes,
                fresh=fresh,
                extend=workdir is not None,
                # Unless --set model.name asks for another.
                own=own_model(experiment) if "model.name" not in changes else None,
            )
            runs.append(run)

    def train_one(run: Run) -> str:
        if (source := run.config.train.init_from) is not None:
            run = run._replace(initial=cache(partial(weights, source)))
        return _result_line(fit(run, display))

    try:
        if len(runs) == 1:
            display.note(train_one(runs[0]))
        else:
            train_each(runs, train_one, say=display.note)
    except BaseException:
        if fresh and any((run.workdir / "checkpoints").is_dir() for run in runs):
            display.note("to go on, leave --fresh out: it would begin anew what is saved")
        raise


def _result_line(result: dict[str, Any]) -> str:
    paper = result["paper_accuracy"]
    beside = f" (the paper: {paper:.2f} %)" if paper and _is_the_papers(result) else ""
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


def _is_the_papers(result: dict[str, Any]) -> bool:
    """Whether it is of the paper's own settings and images, and so to be compared with it."""
    return not result["overrides"] and result["data_official"] and not result.get("halvings")
