"""The figures of a report, drawn."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
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
        colours = {colour for _, colour in image.convert("RGB").getcolors(maxcolors=1 << 24)}
    assert tuple(bytes.fromhex(plots.TRAIN[1:])) in colours


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
    for name, measured in (("basic", 62.25), ("net", 75.0)):
        paper = catalog.load(name).config.paper
        assert paper is not None
        label = f"{name}   {paper.test_accuracy:.2f} → {measured:.2f}"
        (row,) = (y for y, text in named.items() if text == label)
        marks = [float(line.get_xdata()[0]) for line in axes.lines if line.get_ydata()[0] == row]
        assert measured - paper.test_accuracy in [pytest.approx(mark) for mark in marks]
        assert left < measured - paper.test_accuracy < right


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
