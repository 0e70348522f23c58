"""Records: results of finished runs at the paper's very settings, committed as results/*.json."""

from __future__ import annotations

import re
from pathlib import Path

from cifar_jax.errors import UserError
from cifar_jax.report import markdown
from cifar_jax.report.table import collect, settings_text
from cifar_jax.runs.folder import write_json
from cifar_jax.runs.reading import experiments, read_records, read_runs

_BEGIN, _END = "<!-- results -->", "<!-- /results -->"


def record(run_folder: Path, results: Path) -> Path:
    """Copy a finished run's result.json to `results/EXPERIMENT-seedN.json`; returns that.

    A record stands for what anybody gets who checks out its commit and trains that experiment. So
    the run must be of an experiment as it is in this package, and the commit must tell the whole
    code: one without a commit, or with changes that were not committed, is no record. A former
    record of the same seed is replaced: the repository's history keeps it.

    Raises:
      UserError: the run is unfinished, has other settings than its experiment, or does not name
        its code; or there is not exactly one run in the folder.
    """
    runs = read_runs([run_folder])
    if len(runs) != 1:
        raise UserError(f"{run_folder} holds {len(runs)} runs: name the folder of one")
    run = runs[0]
    if run.result is None:
        raise UserError(f"{run.path} is not finished: train it to its end before it is recorded")
    if run.experiment not in experiments():
        raise UserError(f"{run.path} is of {run.experiment!r}, which is not in experiments/")
    if run.changes:
        changes = ", ".join(settings_text(run.changes))
        raise UserError(
            f"{run.path} ran with {changes}: only an experiment's own settings are recorded"
        )
    commit = run.result["git_commit"]
    if commit is None or commit.endswith("-dirty"):
        state = "without a git commit" if commit is None else "with changes that were not committed"
        raise UserError(f"{run.path} ran {state}: commit, and train it from a clean checkout")
    path = results / f"{run.experiment.replace('/', '-')}-seed{run.seed}.json"
    results.mkdir(parents=True, exist_ok=True)
    write_json(path, run.result)
    return path


def update_readme(readme: Path, records: Path) -> bool:
    """Bring the table between `<!-- results -->` and `<!-- /results -->` up to date.

    Returns:
      Whether anything changed.

    Raises:
      UserError: the README has no such place, or a record cannot be read.
    """
    text, updated = _read(readme), _updated(readme, records)
    if updated == text:
        return False
    beside = readme.with_name(f".{readme.name}")
    beside.write_text(updated, encoding="utf-8")
    beside.replace(readme)
    return True


def readme_is_current(readme: Path, records: Path) -> bool:
    """Whether `update_readme` would change nothing.

    Raises:
      UserError: as `update_readme`.
    """
    return _updated(readme, records) == _read(readme)


def _read(readme: Path) -> str:
    try:
        return readme.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{readme} cannot be read: {error.strerror}") from None


def _updated(readme: Path, records: Path) -> str:
    text = _read(readme)
    runs = read_records(records)
    for run in runs:
        if run.changes or run.experiment not in experiments():
            raise UserError(f"{run.path} is no record: not of an experiment at its own settings")
    place = re.compile(f"{_BEGIN}.*?{_END}", re.DOTALL)
    if len(place.findall(text)) != 1:
        raise UserError(f"{readme} has no one place between {_BEGIN} and {_END} for the table")
    table = markdown.readme_table(collect(runs))
    return place.sub(lambda _: f"{_BEGIN}\n\n{table}\n\n{_END}", text)
