"""Build the report page: one HTML file that needs no other files and no network."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from cifar_jax.config import as_text
from cifar_jax.errors import UserError, counted
from cifar_jax.report import charts
from cifar_jax.report.answers import group_answers
from cifar_jax.report.charts import Chart
from cifar_jax.report.compare import Comparison, compare
from cifar_jax.report.curves import curves, longest, mean_curve
from cifar_jax.report.groups import SeedGroup
from cifar_jax.report.study import Study
from cifar_jax.report.table import Row, device, duration, mean_std, row, signed
from cifar_jax.report.views import MAX_PICTURES, AnswersView, view
from cifar_jax.runs.run import RunRecord
from cifar_jax.runs.schemas import LayerRow

METRICS = {
    "validation_accuracy": "Validation accuracy, %",
    "train_accuracy": "Training accuracy, %",
    "validation_loss": "Validation loss, nats",
    "train_loss": "Training loss, nats",
}
_TABLE_ROWS = 20
"""Approximate number of epochs in the table of metrics."""
_OPEN_GROUPS = 2
"""If a page has at most this number of groups, their sections are open at the start."""


@dataclass(frozen=True)
class GroupView:
    """A group of runs, with the texts and charts that the page shows."""

    number: int
    group: SeedGroup
    answers: list[AnswersView]

    @property
    def id(self) -> str:
        """HTML anchor of the group's section."""
        return f"run-{self.number + 1}"

    @property
    def size(self) -> int:
        """Number of runs."""
        return len(self.group.distinct)

    @property
    def seeds(self) -> int:
        """Number of different seeds."""
        return len({run.seed for run in self.group.runs})

    @property
    def drawn(self) -> tuple[int, int]:
        """Number of runs whose mean the charts show, and number of runs with fewer epochs."""
        measured = curves(self.group, "train_accuracy")
        averaged = len(longest(measured))
        return averaged, len(measured) - averaged

    @property
    def network(self) -> str:
        """Name of the network."""
        return str(self.group.runs[0].settings.get("model.name", self.row.model))

    @property
    def batch_size(self) -> str:
        """Batch size as text. Empty if it is unknown."""
        size = self.group.runs[0].settings.get("batch_size")
        return f"batch size {size:,}" if isinstance(size, int) else ""

    @property
    def style(self) -> tuple[int, int]:
        """Color and dash pattern of the group's lines."""
        return charts.style(self.number)

    @cached_property
    def row(self) -> Row:
        """The group's table row, as in report.md."""
        return row(self.group)

    @property
    def title(self) -> str:
        """Experiment and changed settings."""
        return " ".join([self.group.experiment, *self.row.changes])

    @property
    def state(self) -> str:
        """State of the runs as text, such as `2 finished, epoch 3 of 10`."""
        unfinished = [progress(run) for run in self.group.unfinished]
        finished = len(self.group.finished)
        done = [f"{finished} finished" if unfinished or finished > 1 else "finished"]
        return ", ".join((done if finished else []) + unfinished)

    @property
    def validation(self) -> list[float]:
        """Validation accuracies of the finished runs in percent.

        If no run is finished, the last accuracies of the unfinished runs.
        """
        if self.group.finished:
            return self.group.measured("validation_accuracy")
        last = [run.rows[-1].validation_accuracy for run in self.group.unfinished if run.rows]
        return [value for value in last if value is not None]

    @property
    def test(self) -> list[float]:
        """Test accuracies of the finished runs in percent."""
        return self.group.measured()

    @property
    def parameters(self) -> int | None:
        """Number of parameters; None if it is unknown."""
        if self.group.results:
            return self.group.results[0].parameters
        return sum(layer.parameters for layer in self.layers) or None

    @property
    def seconds(self) -> float | None:
        """Mean wall time of the finished runs on the first machine, in seconds.

        If no run is finished, the mean wall time of the unfinished runs so far. None if no epoch is
        complete.
        """
        if self.row.seconds is not None:
            return self.row.seconds
        times = [run.rows[-1].wall_seconds for run in self.group.runs if run.rows]
        return statistics.fmean(times) if times else None

    @property
    def layers(self) -> Sequence[LayerRow]:
        """Layers of the network. Empty if no run has a model card."""
        return next((run.card.layers for run in self.group.runs if run.card), [])

    @property
    def settings(self) -> list[tuple[str, str]]:
        """Name and value of every setting of the first run, as text."""
        return [(name, as_text(value)) for name, value in self.group.runs[0].settings.items()]

    @cached_property
    def charts(self) -> list[Chart]:
        """Curves of accuracy, loss and learning rate."""
        found = [
            charts.chart(title, [(name, i, curves(self.group, key)) for i, (key, name) in parts])
            for title, parts in (
                ("Accuracy, %", list(enumerate(_splits("accuracy")))),
                ("Loss, nats", list(enumerate(_splits("loss")))),
                ("Learning rate", [(2, ("learning_rate", "last step of the epoch"))]),
            )
        ]
        return [chart for chart in found if chart]

    @property
    def numbers(self) -> list[tuple[int, list[str]]]:
        """Rows of the table of metrics: an epoch, and the means over the seeds as text."""
        names = [*METRICS, "learning_rate"]
        found = {name: curves(self.group, name) for name in names}
        means = {name: mean_curve(kept) if kept else {} for name, kept in found.items()}
        epochs = sorted(means["train_loss"])
        every = -(-len(epochs) // _TABLE_ROWS) or 1
        shown = [epoch for epoch in epochs if epoch % every == 0 or epoch in (1, epochs[-1])]
        return [
            (
                epoch,
                [
                    charts.number(means[name][epoch]) if epoch in means[name] else ""
                    for name in names
                ],
            )
            for epoch in shown
        ]


@dataclass(frozen=True)
class Pair:
    """Two groups of runs, and the differences between their accuracies."""

    a: GroupView
    b: GroupView
    validation: Comparison | None
    """Difference of the validation accuracies. None if it was not measured."""
    test: Comparison
    """Difference of the test accuracies."""


def page(
    groups: Sequence[SeedGroup], studies: Sequence[Study] = (), *, pictures: bool = True
) -> str:
    """Return the report page as HTML.

    Args:
      groups: the groups of runs. An experiment of the paper that was not run is an empty group.
      studies: studies of `cifar-jax tune`, which search for better settings.
      pictures: whether to show wrongly classified images, if they are on this machine.
    """
    views = [
        GroupView(number, group, _answers(group, MAX_PICTURES if pictures else 0))
        for number, group in enumerate(group for group in groups if group.runs)
    ]
    overlay = [
        charts.chart(title, [(v.title, v.number, curves(v.group, key)) for v in views])
        for key, title in METRICS.items()
    ]
    pairs = _pairs(views)
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            views=views,
            overlay=[chart for chart in overlay if chart],
            pairs=pairs,
            scale=_scale(pairs),
            studies=studies,
            paper=[row(group) for group in groups if group.paper],
            open_groups=_OPEN_GROUPS,
            version=version("cifar-jax"),
        )
    )


def progress(run: RunRecord) -> str:
    """Return the progress of an unfinished run, such as `epoch 3 of 10`."""
    return f"epoch {run.rows[-1].epoch if run.rows else 0} of {run.epochs}"


def _splits(metric: str) -> list[tuple[str, str]]:
    return [(f"train_{metric}", "training"), (f"validation_{metric}", "validation")]


def _answers(group: SeedGroup, max_pictures: int) -> list[AnswersView]:
    found = group_answers(group)
    return [view(answers, max_pictures // len(found)) for answers in found]


def _pairs(views: Sequence[GroupView]) -> list[Pair]:
    """Return the pairs of groups that can be compared."""
    pairs = []
    for a, b in itertools.combinations(views, 2):
        if test := _compare(a, b, "test_accuracy"):
            pairs.append(Pair(a, b, _compare(a, b, "validation_accuracy"), test))
    return pairs


def _compare(a: GroupView, b: GroupView, metric: str) -> Comparison | None:
    try:
        return compare(a.group, b.group, metric)
    except UserError:  # For example, no seed is finished in both groups.
        return None


def _scale(pairs: Sequence[Pair]) -> float:
    """Return the largest value on the axis of accuracy differences, in percentage points."""
    values = [
        abs(value)
        for pair in pairs
        for value in (pair.test.difference, pair.test.low, pair.test.high)
        if value is not None
    ]
    return max(values, default=1.0) or 1.0


def _surely(probability: float) -> str:
    """Return a probability as text. Only a probability of 1 becomes 100 %.

    >>> [_surely(p) for p in (0.5, 0.9996, 1.0)]
    ['50.0 %', '>99.9 %', '100 %']
    """
    if probability == 1:
        return "100 %"
    return ">99.9 %" if probability > 0.9995 else f"{100 * probability:.1f} %"


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("cifar_jax.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {
        "as_text": as_text,
        "counted": counted,
        "device": device,
        "dots": charts.dots,
        "duration": duration,
        "mean": statistics.fmean,
        "mean_std": mean_std,
        "place": lambda value, scale: round(50 + 50 * value / scale, 2),
        "progress": progress,
        "short": lambda count: f"{count / 1000:.0f}k" if count >= 10_000 else f"{count:,}",
        "signed": signed,
        "surely": _surely,
    }
    environment.filters |= filters
    return environment
