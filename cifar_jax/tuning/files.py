"""The files of a study: study.json and the experiment file with the best settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from cifar_jax.catalog import CustomParts, Experiment, code_digest
from cifar_jax.config import Config, Range, as_text, differences, flatten, identity, override
from cifar_jax.errors import UserError
from cifar_jax.report.study import FILE, Study, read_study
from cifar_jax.settings import search
from cifar_jax.settings.search import Space
from cifar_jax.training.request import RunRequest


class StudySpec(NamedTuple):
    """The definition of a study: its experiment, the shared settings and the search space."""

    folder: Path
    experiment: Experiment
    source: str
    """Name or absolute path of the experiment file, for `cifar_jax.catalog.load`."""
    overrides: Sequence[str]
    """Changes of the experiment's settings for all trials, such as `epochs=4`."""
    config: Config
    """Settings that all trials share."""
    space: Space
    seed: int
    make_request: Callable[[Config, Path], RunRequest]
    """Function that returns the request for a run with the given settings in the given folder."""


def best_file(spec: StudySpec) -> Path:
    """Return the path of the experiment file with the best settings of a study."""
    return spec.folder / f"{spec.experiment.name.replace('-', '_')}_best.py"


def best_experiment(spec: StudySpec, study: Study, path: Path) -> str:
    """Return the text of an experiment file with the settings of the best trial."""
    best = study.ranking[0]
    settings = override(spec.config, search.changes(best.values))
    needs_validation = (
        spec.experiment.config.data.validation
        or settings.train.early_stopping
        or settings.train.best_by != "accuracy"
        or settings.schedule.name == "plateau"
    )
    # The validation images of the study become training images, unless they are needed.
    kept = [text for text in spec.overrides if text.partition("=")[0].strip() != "data.validation"]
    if needs_validation:
        kept.append(f"data.validation={as_text(settings.data.validation)}")
    changes = "".join(
        f"    {json.dumps(text)},\n" for text in [*kept, *search.changes(best.values)]
    )
    custom = spec.experiment.custom or CustomParts()
    parts = [p for p in ("model", "optimizer", "schedule", "augmentation") if getattr(custom, p)]
    return f'''"""Train `{study.experiment}` with the settings of trial {best.number} of a study.

    cifar-jax train {path}

Validation accuracy: {best.validation_accuracy:.2f} %, the best of {len(study.ranking)} \
finished trials.
"""

from cifar_jax import catalog, config

BASE = catalog.load({json.dumps(spec.source)})
CHANGES = [
{changes}]
CONFIG = config.override(BASE.config, CHANGES).model_copy(update={{"paper": None}})
''' + "".join(f"{part.upper()} = BASE.custom.{part}\n" for part in parts)


def empty_study(spec: StudySpec) -> Study:
    """Return a study without trials."""
    custom = spec.experiment.custom
    return Study(
        experiment=spec.experiment.name,
        seed=spec.seed,
        settings=flatten(spec.config),
        search={
            name: asdict(options) if isinstance(options, Range) else list(options)
            for name, options in spec.space.items()
        },
        code_sha256=_code_digest(custom) if custom else "",
        trials=[],
        importances={},
    )


def _code_digest(custom: CustomParts) -> str:
    """Return a digest of the experiment file and of the modules that it imports."""
    digest = code_digest(custom.source)
    if not custom.modules:
        return digest
    text = digest + json.dumps(dict(custom.modules), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def check_folder(spec: StudySpec) -> None:
    """Raise UserError if the folder of a study holds another study or other files."""
    folder, advice = spec.folder, "Choose another --workdir."
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, not a folder. {advice}")
    if not (folder / FILE).exists():
        if folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
            raise UserError(f"{folder} contains files but no {FILE}. {advice}")
        return
    studies = read_study(folder), empty_study(spec)
    there, here = (study.experiment for study in studies)
    if there != here:
        raise UserError(f"{folder} holds a study of {there}, not of {here}. {advice}")
    parts = []
    for study in studies:
        search = {f"SEARCH of {name}": value for name, value in study.search.items()}
        settings = {"seed": study.seed, **identity(study.settings)}
        parts.append({**settings, **search, "code": study.code_sha256})
    changes = differences(*parts)
    if changes:
        texts = (
            f"{name} is {as_text(there)} in the folder and {as_text(here)} in this command"
            for name, (there, here) in changes.items()
        )
        raise UserError(f"{folder} holds another study: {', '.join(texts)}. {advice}")
