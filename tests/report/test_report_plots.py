"""The figures of a report, drawn."""

import io
import json
import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image
from rich.console import Console
from run_folders import MakeRun, outputs

from cifar_jax import catalog, report
from cifar_jax.report import plots
from cifar_jax.runs import records
from cifar_jax.runs.reading import read_run


def test_the_pictures_of_a_report_are_those_that_it_names(
    make_run: MakeRun, tmp_path: Path
) -> None:
    for seed in range(2):
        make_run("basic", seed, test=62.0 + seed)
    make_run("resnet10-plateau", test=None, done=12)
    make_run("basic", overrides={"epochs": 1}, folder="short|one")
    page = report.report([tmp_path / "runs"], console=Console(file=io.StringIO()))
    assert page == tmp_path / "runs" / "report.md"
    text = page.read_text(encoding="utf-8")
    pictures = re.findall(r"^!\[.+\]\((curves/.+\.png)\)$", text, re.MULTILINE)
    assert len(pictures) == len(set(pictures)) == 4  # overview, two experiments, the short run
    for name in pictures:
        with Image.open(page.parent / name) as image:
            image.load()
            assert image.format == "PNG"
            assert 600 <= image.width <= 2000
            assert 300 <= image.height <= 1200
    found = {p.relative_to(page.parent).as_posix() for p in (page.parent / "curves").iterdir()}
    assert found == set(pictures)


def test_a_folder_of_records_is_reported_with_its_outputs(
    make_run: MakeRun, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    records.record(read_run(make_run("basic", test=62.0)), results, outputs(62.0))
    records.record(read_run(make_run("net", test=None, done=2)), results, None)
    page = report.report([results], console=Console(file=io.StringIO()))
    assert page == results / "report.md"
    found = {p.name for p in (results / "curves").iterdir()}
    assert found == {
        *("overview.png", "basic.png", "net.png"),
        "basic-seed0-outputs.png",
    }
    assert all(name in page.read_text() for name in found)


@pytest.mark.parametrize(
    ("experiment", "options"),
    [
        ("resnet10-plateau", {"overrides": {"data.validation": 0.0}}),
        ("net", {"overrides": {"epochs": 1}}),
        ("net", {"test": None, "done": 1}),
    ],
)
def test_scanty_runs_are_drawn(make_run: MakeRun, experiment: str, options: dict) -> None:
    groups = report.collect(report.read_runs([make_run(experiment, **options)]))
    (figure,) = plots.draw(groups)
    with Image.open(io.BytesIO(figure.png)) as image:
        colors = {color for _, color in image.convert("RGB").getcolors(maxcolors=1 << 24)}
    assert tuple(bytes.fromhex(plots.TRAIN[1:])) in colors


def test_the_paper_is_drawn_against_what_was_measured(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row an experiment, named; its mark is the mean of its seeds less the paper's accuracy."""
    runs = [make_run("basic", test=63.0), make_run("basic", 1, test=61.5), make_run("net", test=75)]
    drawn: list[Any] = []
    monkeypatch.setattr(plots, "png", lambda figure: drawn.append(figure) or b"")
    figures = plots.draw(report.collect(report.read_runs(runs)))
    assert figures[0].name == "paper-and-measured.png"
    (axes,) = drawn[0].axes
    named = {
        int(y): text.get_text()
        for y, text in zip(axes.get_yticks(), axes.get_yticklabels(), strict=False)
    }
    left, right = axes.get_xlim()
    assert left == -right
    for name, measured in (("basic", 62.25), ("net", 75.0)):
        paper = catalog.load(name).config.paper
        assert paper is not None
        label = f"{name}   {paper.test_accuracy:.2f} → {measured:.2f}"
        (row,) = (y for y, text in named.items() if text == label)
        marks = [float(line.get_xdata()[0]) for line in axes.lines if line.get_ydata()[0] == row]
        assert measured - paper.test_accuracy in [pytest.approx(mark) for mark in marks]
        assert left < measured - paper.test_accuracy < right
    (bar,) = (line for line in axes.collections if len(line.get_segments()) == 1)
    ((low, _), (high, _)) = bar.get_segments()[0]
    assert (high - low) / 2 == pytest.approx(statistics.stdev([63.0, 61.5]))


def curves(axes: Axes, color: str, width: float) -> list[list[list[float]]]:
    """The points of the lines of that look."""
    return [
        np.array(line.get_xydata()).tolist()
        for line in axes.lines
        if (line.get_color(), line.get_linewidth()) == (color, pytest.approx(width))
    ]


def told(figure: Any) -> list[str]:
    """What its legend says."""
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def test_the_curves_of_seeds_and_their_mean(make_run: MakeRun, drawn: list[Any]) -> None:
    runs = [make_run("resnet10-plateau", seed, test=91.0 + seed) for seed in (0, 2)]
    read = report.read_runs(runs)
    (figure,) = plots.draw(report.collect(read))
    assert (figure.name, len(drawn)) == ("resnet10-plateau.png", 1)
    loss, accuracy = drawn[0].axes
    for axes, metric in ((loss, "loss"), (accuracy, "accuracy")):
        for split, color in (("train", plots.TRAIN), ("validation", plots.VALIDATION)):
            name = f"{split}_{metric}"
            each = [[[row["epoch"], row[name]] for row in run.rows] for run in read]
            assert curves(axes, color, 0.81) == each
            (mean,) = curves(axes, color, 1.8)
            np.testing.assert_allclose(mean, np.mean(each, axis=0))
        assert axes.get_xlabel() == "epoch"
        left, right = axes.get_xlim()
        assert left < 1 < 135 < right < 140
        # Where either seed's learning rate was reduced.
        lines = [line for line in axes.lines if line.get_linestyle() == ":"]
        reduced = [epoch for run in read for epoch in plots.reductions(run)]
        assert [line.get_xdata()[0] for line in lines] == reduced
        assert {line.get_alpha() for line in lines} == {0.45}
    assert loss.get_ylim()[0] == 0
    bottom, top = accuracy.get_ylim()
    assert 0 <= bottom < 20
    assert 99 < top <= 100.8
    assert told(drawn[0]) == [
        *("train", "validation", "each seed; thick: mean", "learning rate reduced"),
    ]
    assert [text.get_text() for text in drawn[0].texts] == ["resnet10-plateau", "seeds 0, 2"]
    # The paper's accuracy in a line, the measured at the end, both named in the margin.
    (line,) = (line for line in accuracy.lines if line.get_linestyle() == "--")
    assert set(line.get_ydata()) == {92.09}
    (mark,) = (line for line in accuracy.lines if line.get_marker() == "D")
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (135, 92.0)
    named = {text.get_text(): text for text in accuracy.texts}
    assert {name: text.xy[1] for name, text in named.items()} == {
        **{"paper 92.09": 92.09, "test 92.00": 92.0},
    }
    # The higher is above its line, the lower below, so that neither is on the other.
    assert named["paper 92.09"].get_verticalalignment() == "bottom"
    assert named["test 92.00"].get_verticalalignment() == "top"


def test_a_run_of_a_few_epochs_is_points(make_run: MakeRun, drawn: list[Any]) -> None:
    overrides = {"epochs": 12, "data.validation": 0.0, "schedule.name": "constant"}
    path = make_run("resnet10-plateau", 5, test=None, done=10, overrides=overrides)
    plots.draw(report.collect(report.read_runs([path])))
    loss, accuracy = drawn[0].axes
    (line,) = loss.lines
    assert (line.get_marker(), line.get_linewidth()) == ("o", 1.8)
    assert told(drawn[0]) == ["train"]
    title, details = (text.get_text() for text in drawn[0].texts)
    assert title == "resnet10-plateau"
    assert details.startswith("epochs=12  ")
    assert details.endswith("  seed 5")
    assert not accuracy.texts  # of other settings the paper says nothing
    left, right = accuracy.get_xlim()
    assert left < 1 < 12 < right < 13


def test_a_run_of_one_epoch_is_in_the_middle(make_run: MakeRun, drawn: list[Any]) -> None:
    plots.draw(report.collect(report.read_runs([make_run("net", overrides={"epochs": 1})])))
    assert [axes.get_xlim() for axes in drawn[0].axes] == [(0.5, 1.5)] * 2


def test_the_mean_is_of_the_runs_that_got_furthest() -> None:
    there = [([1, 2, 3], [1.0, 2.0, 3.0]), ([1, 2], [100.0, 100.0]), ([1, 3], [5.0, 7.0])]
    assert plots._mean_curve(there) == ([1, 3], [3.0, 5.0])


def test_every_experiment_has_a_panel(make_run: MakeRun, drawn: list[Any]) -> None:
    read = report.read_runs(
        [
            *(make_run("basic", seed, test=61.0 + seed) for seed in range(2)),
            make_run("net", test=None, done=12),
        ]
    )
    groups = [*report.collect(read), *report.collect([])[:1]]  # eleven
    plots.panels_svg(groups, "")
    panels = drawn[0].axes
    assert [axes.get_visible() for axes in panels] == [True] * 11 + [False] * 4
    assert [axes.get_title(loc="left") for axes in panels[:3]] == ["basic", "net", "net-bn-gap"]
    below = [axes.texts[0].get_text() for axes in panels[:3]]
    assert below == [
        *("paper 62.06 → 61.50 ± 0.71", "paper 77.91, epoch 12 of 100"),
        "paper 82.14, no record yet",
    ]
    assert [axes.get_xlim() for axes in panels[:3]] == [(0, 20), (0, 100), (0, 50)]
    for axes, paper in zip(panels, (62.06, 77.91), strict=False):
        (line,) = (line for line in axes.lines if line.get_linestyle() == "--")
        assert set(line.get_ydata()) == {paper}
    (mark,) = (line for line in panels[0].lines if line.get_marker() == "D")
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (20, 61.5)
    rows = [[row["epoch"], row["validation_accuracy"]] for row in read[2].rows]
    assert curves(panels[1], plots.VALIDATION, 1.2) == [rows]
    assert not curves(panels[2], plots.VALIDATION, 1.2)
    bottom, top = panels[0].get_ylim()
    assert 0 <= bottom < 20
    assert 98 < top <= 100.8
    assert told(drawn[0]) == ["train", "validation", "test, the paper", "test, measured"]


def test_only_what_can_be_compared_is_drawn_together(make_run: MakeRun, drawn: list[Any]) -> None:
    """One experiment alone is no overview; one of other settings is nobody's peer."""
    runs = [make_run("basic"), make_run("net", overrides={"epochs": 5}, folder="other")]
    named = [figure.name for figure in plots.draw(report.collect(report.read_runs(runs)))]
    assert named[0] == "basic.png"
    assert re.fullmatch(r"net-[0-9a-f]{8}\.png", named[1])
    runs.append(make_run("resnet10", test=None, done=3))
    named = [figure.name for figure in plots.draw(report.collect(report.read_runs(runs)))]
    assert named[:3] == ["overview.png", "basic.png", "resnet10.png"]
    runs.append(make_run("net-bn-gap"))
    named = [figure.name for figure in plots.draw(report.collect(report.read_runs(runs)))]
    assert named[:2] == ["paper-and-measured.png", "overview.png"]


@pytest.mark.filterwarnings("error")
def test_what_is_not_finite_leaves_a_gap(make_run: MakeRun) -> None:
    path = make_run("basic", test=None, done=4)
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    rows[1]["train_loss"] = float("nan")
    rows[3] |= {"train_loss": float("inf"), "validation_loss": float("nan")}
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (figure,) = plots.draw(report.collect(report.read_runs([path])))
    assert figure.png.startswith(b"\x89PNG")


def test_learning_rate_reductions_are_those_of_the_plateau(make_run: MakeRun) -> None:
    plateau = make_run("net-attention")
    constant = make_run("basic")
    (run,) = report.read_runs([plateau])
    rates = [row["learning_rate"] for row in run.rows]
    epochs = plots.reductions(run)
    assert len(epochs) == 3
    for epoch in epochs:
        assert rates[epoch] == rates[epoch - 1] / 2
    assert plots.reductions(*report.read_runs([constant])) == []
