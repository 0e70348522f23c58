"""The command `cifar-jax tune`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cifar_jax import runtime
from cifar_jax.cli.output import DEVICE, LocalPath, WholeNumber
from cifar_jax.cli.train import Folders, make_request
from cifar_jax.errors import UserError, counted
from cifar_jax.report.study import read_study

if TYPE_CHECKING:
    from cifar_jax.catalog import Experiment
    from cifar_jax.config import Config, Range
    from cifar_jax.report.study import Study
    from cifar_jax.settings.search import Space

_FIXED = ("data.dataset", "data.validation")
"""Settings that cannot be searched, because trials with different images cannot be compared."""
_VALIDATION = 0.1
"""Fraction of the training images held out for validation if the experiment holds out none."""
_ROWS = 5
"""Number of trials in the printed table, which lists the best trials."""


@click.command(short_help="Search for better settings of an experiment.")
@click.argument("name", metavar="EXPERIMENT")
@click.option(
    "--trials",
    type=WholeNumber(1),
    default=20,
    show_default=True,
    help="Number of trials of the study, including the trials of earlier sessions.",
)
@click.option(
    "--search",
    "searches",
    multiple=True,
    metavar="KEY=VALUES",
    help="Setting to search, and its values. SEARCH in the experiment file is then ignored.",
)
@click.option(
    "--workdir",
    type=LocalPath(),
    help="Folder of the study.  [default: runs/EXPERIMENT[@SETTINGS]-study]",
)
@click.option(
    "--seed",
    type=WholeNumber(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Random seed of the training runs and of the search.",
)
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a setting of all trials."
)
@DEVICE
def tune(
    name: str,
    trials: int,
    searches: Sequence[str],
    workdir: Path | None,
    seed: int,
    settings: Sequence[str],
    device: str | None,
) -> None:
    """Search for the settings of EXPERIMENT with the best validation accuracy.

    The settings to search and their values come from SEARCH in the experiment file, or from options
    such as --search optimizer.lr=0.001..0.1:log and --search batch_size=64,128. The test images are
    not used.

    The same command continues an interrupted study. Several processes with the same command share
    a study. The best settings are written as an experiment file.
    """
    from cifar_jax import catalog, config

    experiment = catalog.load(name)
    shared = config.override(experiment.config, settings)
    workdir = workdir or Path("runs") / f"{_default_name(experiment, shared)}-study"
    is_set = any(text.partition("=")[0].strip() == "data.validation" for text in settings)
    notes = []
    if shared.data.validation == 0 and not is_set:
        shared = config.override(shared, [f"data.validation={_VALIDATION}"])
        notes = [f"data.validation is {_VALIDATION} in this study instead of 0"]
    space = _space(experiment, shared, searches)

    runtime.set_up()
    try:
        from cifar_jax.tuning.files import StudySpec, best_file, check_folder
        from cifar_jax.tuning.tuner import Tuner
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise UserError("cifar-jax tune needs Optuna: pip install 'cifar-jax[tune]'") from None
    from cifar_jax.callbacks.progress import Progress
    from cifar_jax.catalog import CustomParts
    from cifar_jax.training.setup import build_setup

    runtime.require(device)
    spec = StudySpec(
        folder=workdir,
        experiment=experiment,
        source=str(experiment.path.resolve()) if name.endswith(".py") else name,
        overrides=settings,
        config=shared,
        space=space,
        seed=seed,
        make_request=lambda config, path: make_request(
            experiment, config, seed, Folders(path, single=True, seeds=False)
        ),
    )
    check_folder(spec)
    # Check settings and data before the study is created, so that an error creates no study.
    setup = build_setup(shared, experiment.custom or CustomParts())
    if not len(setup.validation.labels):
        raise UserError(
            "--set data.validation=0 holds out no images, but a study needs validation images: "
            "leave out this setting, or set it to a fraction such as 0.1"
        )
    if setup.dataset.validation_images is not None:  # The data set has its own.
        notes = []
    say = Progress().note
    tuner = Tuner(spec, say)
    images = counted(len(setup.validation.labels), "validation image")
    done = counted(len(read_study(workdir).trials), "trial")
    say(f"study of {experiment.name} in {workdir}: {done} of {trials}, compared on {images}")
    del setup
    for note in notes:
        say(note)
    for key, values in space.items():
        say(f"  {key}: {_as_text(values)}")
    tuner.run(trials)
    _print(read_study(workdir), best_file(spec))


def _default_name(experiment: Experiment, config: Config) -> str:
    from cifar_jax.config import changes
    from cifar_jax.runs.folder import default_name

    return default_name(experiment.name, changes(experiment.config, config))


def _space(experiment: Experiment, config: Config, searches: Sequence[str]) -> Space:
    """Return the search space from the command line or the experiment file, after validation."""
    from cifar_jax.settings import search

    if experiment.search is None and not searches:
        raise UserError(
            f"{experiment.path} defines no SEARCH, so there are no settings to search: name one, "
            "such as --search optimizer.lr=0.001..0.1:log"
        )
    source = "--search" if searches else f"{experiment.path}: SEARCH"
    try:
        space = dict(map(search.parse, searches)) if searches else experiment.search
        return search.check(config, space, _FIXED)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def _as_text(values: Range | Sequence[Any]) -> str:
    from cifar_jax.config import Range, as_text

    if isinstance(values, Range):
        return f"{values.low:g} to {values.high:g}{' (log scale)' if values.log else ''}"
    return ", ".join(map(as_text, values))


def _print(study: Study, best: Path) -> None:
    """Print the best trials, the importance of each setting, and a command to train the best."""
    from cifar_jax.cli.output import print_table
    from cifar_jax.config import as_text
    from cifar_jax.report.study import TrialState

    click.echo()
    names = list(study.search)
    rows = [
        (
            str(trial.number),
            f"{trial.validation_accuracy:.2f}",
            *(as_text(trial.values[name]) for name in names),
        )
        for trial in study.ranking[:_ROWS]
    ]
    if rows:
        print_table(("trial", "validation, %", *names), rows, right=range(2))
    states = [trial.state for trial in study.trials]
    numbers = ", ".join(f"{states.count(state)} {state}" for state in TrialState if state in states)
    click.echo(f"{counted(len(states), 'trial')}: {numbers}")
    if study.importances:
        shares = ", ".join(
            f"{name} {100 * share:.0f} %" for name, share in study.importances.items()
        )
        click.echo(f"Importance: {shares}")
    if rows:
        click.echo(f"Train the best settings with: {shlex.join(['cifar-jax', 'train', str(best)])}")
