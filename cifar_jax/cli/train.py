"""The command `cifar-jax train`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cifar_jax import runtime
from cifar_jax.cli.output import DEVICE, LocalPath, WholeNumber
from cifar_jax.errors import UserError

if TYPE_CHECKING:
    from cifar_jax.catalog import Experiment
    from cifar_jax.config import Config
    from cifar_jax.runs.schemas import Result
    from cifar_jax.training.request import RunRequest


@click.command(short_help="Train experiments, or resume them.")
@click.argument("experiments", metavar="EXPERIMENT...", nargs=-1)
@click.option(
    "--paper", is_flag=True, help="Train all experiments of the paper, in the paper's order."
)
@click.option(
    "--workdir",
    type=LocalPath(),
    help="Run folder. With --seeds: folder for the folders of the seeds. With several experiments: "
    "folder to use instead of runs/.  [default: runs/EXPERIMENT[@SETTINGS]/seedN]",
)
@click.option("--seed", type=WholeNumber(0, 2**32 - 1), help="Random seed.  [default: 0]")
@click.option("--seeds", type=WholeNumber(1), help="Train seeds 0 to N-1, one after another.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a setting.")
@click.option(
    "--profile",
    type=LocalPath(file_okay=False),
    metavar="DIR",
    help="Write a profiler trace of a few steps, for TensorBoard or Perfetto.",
)
@click.option("--fresh", is_flag=True, help="Delete the run in the folder and start over.")
@click.option(
    "--distributed",
    "multi_process",
    is_flag=True,
    help="Join a multi-process run (configured by JAX_COORDINATOR_ADDRESS, SLURM, or a TPU slice).",
)
@DEVICE
def train(
    experiments: Sequence[str],
    paper: bool,
    workdir: Path | None,
    seed: int | None,
    seeds: int | None,
    settings: Sequence[str],
    profile: Path | None,
    fresh: bool,
    multi_process: bool,
    device: str | None,
) -> None:
    """Train each EXPERIMENT. An unfinished run is resumed.

    An EXPERIMENT is a name or a config file (FILE.py). If one experiment fails, the next
    experiments are still trained. A signal, such as Ctrl-C, stops all experiments.

    --set changes any setting by its dotted name, such as --set optimizer.lr=3e-4
    --set data.validation=0.1 --set epochs=2. `cifar-jax settings` lists all settings.
    """
    from cifar_jax import catalog, config

    if seed is not None and seeds is not None:
        raise UserError(
            "--seed and --seeds cannot be combined: --seed N trains seed N, and --seeds N trains "
            "seeds 0 to N-1"
        )
    if paper and experiments:
        raise UserError(
            "--paper trains all experiments of the paper: leave out the names, or leave out --paper"
        )
    if not paper and not experiments:
        raise UserError(
            "no experiment is given: name one or more, or use --paper; `cifar-jax experiments` "
            "lists the names"
        )
    loaded = [catalog.load(name) for name in experiments or catalog.names()]
    if paper:
        loaded = [experiment for experiment in loaded if experiment.config.paper]
    if profile and len(loaded) * (seeds or 1) > 1:
        raise UserError(
            "--profile can trace only one run: name one experiment, and leave out --seeds"
        )
    configs = [config.override(experiment.config, settings) for experiment in loaded]

    runtime.set_up()

    from cifar_jax import distributed

    if multi_process or "JAX_COORDINATOR_ADDRESS" in os.environ:
        distributed.initialize()
    runtime.require(device)
    numbers = range(seeds) if seeds else [seed or 0]
    requests = [
        make_request(experiment, changed, number, Folders(workdir, len(loaded) == 1, bool(seeds)))
        for experiment, changed in zip(loaded, configs, strict=True)
        for number in numbers
    ]
    train_all([request._replace(fresh=fresh) for request in requests], profile)


def train_all(requests: Sequence[RunRequest], profile: Path | None = None) -> None:
    """Train one or several runs, one after another.

    Args:
      requests: the runs, in order.
      profile: folder for a profiler trace. None: no trace.
    """
    from cifar_jax import distributed
    from cifar_jax.callbacks.profile import Profile
    from cifar_jax.callbacks.progress import Progress
    from cifar_jax.cli.run_many import train_each
    from cifar_jax.training import train as training

    names = [f"{request.experiment} seed {request.seed}" for request in requests]
    distributed.require_equal({"runs": names}, "arguments")
    progress = Progress()
    callbacks = [Profile(profile, progress.line)] if profile else []

    def train_one(request: RunRequest) -> Result:
        result = training.train(request, callbacks, progress)
        assert result, "the request evaluates the test images"
        return result

    try:
        if len(requests) == 1:
            train_one(requests[0])
        else:
            train_each(requests, train_one, progress.note)
    except BaseException:
        if len(requests) > 1 and requests[0].fresh:
            progress.note("--fresh deletes saved runs: give it only for runs that did not start")
        elif any(r.fresh and (r.workdir / "checkpoints").is_dir() for r in requests):
            progress.note("to resume, leave out --fresh: it would delete the saved run")
        raise


class Folders:
    """Chooses the run folder for each experiment and seed."""

    def __init__(self, workdir: Path | None, single: bool, seeds: bool) -> None:
        self.workdir, self.single, self.seeds = workdir, single, seeds

    def folder(self, name: str, seed: int) -> Path:
        """Return the run folder for an experiment and a seed."""
        if self.workdir and self.single:
            return self.workdir / f"seed{seed}" if self.seeds else self.workdir
        return (self.workdir or Path("runs")) / name / f"seed{seed}"


def make_request(experiment: Experiment, config: Config, seed: int, folders: Folders) -> RunRequest:
    """Return the request for a run of an experiment with the settings `config`."""
    from cifar_jax.catalog import CustomParts
    from cifar_jax.config import changes
    from cifar_jax.inference.load import weights_loader
    from cifar_jax.models import check_custom_name
    from cifar_jax.runs.folder import default_name
    from cifar_jax.training.request import RunRequest

    custom = experiment.custom or CustomParts()
    if custom.model is not None:
        check_custom_name(experiment.config.model.name, experiment.path)
    # The name of the run folder lists changed settings only if they affect the result.
    overrides = changes(experiment.config, config)
    load_weights = weights_loader(config)
    return RunRequest(
        experiment=experiment.name,
        config=config,
        seed=seed,
        workdir=folders.folder(default_name(experiment.name, overrides), seed),
        custom=custom,
        overrides=overrides,
        load_weights=load_weights and cache(partial(load_weights)),
        extend=folders.workdir is not None,
    )
