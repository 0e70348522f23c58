import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from run_folders import MakeRun, outputs

from cifar_jax import catalog, report
from cifar_jax.errors import UserError
from cifar_jax.report import plots, predictions
from cifar_jax.runs import records
from cifar_jax.runs.reading import read_run


def printed(groups: list[report.Group], width: int | None = None) -> str:
    """What appears on a terminal of that width, or in a file."""
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=bool(width), color_system=None)
    report.show(groups, console)
    return file.getvalue()


def table_cells(markdown: str) -> list[list[list[str]]]:
    """The tables in `markdown`, as rows of cells."""
    blocks = re.findall(r"(?:^\|.*\|\n)+", markdown, re.MULTILINE)
    return [
        [re.split(r" (?<!\\)\| ", line[2:-2]) for line in block.splitlines()] for block in blocks
    ]


def test_a_report_is_printed_and_written(make_run: MakeRun, tmp_path: Path) -> None:
    for seed in range(2):
        make_run("basic", seed, test=62.0 + seed)
    make_run("resnet10-plateau", test=None, done=12)
    make_run("basic", overrides={"epochs": 1}, folder="short|one")
    file = io.StringIO()
    page = report.report([tmp_path / "runs"], console=Console(file=file))
    assert page == tmp_path / "runs" / "report.md"
    text = page.read_text(encoding="utf-8")

    main, part, other = table_cells(text)
    assert all(len(cells) == len(main[0]) for cells in main)
    assert all(len(cells) == len(other[0]) for cells in other)
    assert len(main) == 2 + 10
    assert main[2][:5] == ["basic", "62,006", "62.06", "**62.50 ± 0.71**<br>(2 seeds)", "+0.44"]
    assert part[2][:2] == ["resnet10-plateau", "0"]
    assert part[2][2].startswith("epoch 12 of 135: validation ")
    assert other[2][:2] == ["basic", "`epochs=1`"]
    assert "62.50 ± 0.71" in file.getvalue()

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


def test_without_a_run_the_report_says_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = io.StringIO()
    assert report.report(console=Console(file=file)) is None
    assert file.getvalue().count("not run") == 10
    assert "make exp-basic" in file.getvalue()
    assert list(tmp_path.iterdir()) == []


def test_runs_given_one_by_one_replace_no_report_of_all(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, other = make_run("basic", test=None), make_run("net", test=None)
    before = sorted(tmp_path.rglob("*"))
    for paths in ([path], [path, other], [path, tmp_path / "runs" / "net"]):
        assert report.report(paths, console=Console(file=io.StringIO())) is None
    assert sorted(tmp_path.rglob("*")) == before
    assert report.report([path], folder=tmp_path / "out", console=Console(file=io.StringIO()))
    assert (tmp_path / "out" / "report.md").is_file()
    assert report.report(console=Console(file=io.StringIO())) == Path("runs/report.md")


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


@pytest.mark.parametrize("width", [80, 100, None])
def test_the_terminals_table_fits_and_loses_nothing(
    make_run: MakeRun, tmp_path: Path, width: int | None
) -> None:
    for seed in range(10):
        make_run("resnet18-adam-lr1e-4", seed, test=91.0 + seed / 100, wall_seconds=86_400.0)
    make_run("resnet10", test=None, done=134)
    gpu = {"platform": "gpu", "kind": "NVIDIA A100-SXM4-40GB", "count": 8}
    make_run("net", overrides={"optimizer.lr": 3e-4, "batch_size": 128}, folder="other", device=gpu)
    text = printed(report.collect(report.read_runs([tmp_path])), width)
    assert max(map(len, text.splitlines())) <= (width or 100)
    for whole in ("resnet18-adam-lr1e-4", "11,173,962", "91.05 ± 0.03", "(10 seeds)", "24.0 h"):
        assert whole in text
    for whole in ("epoch 134/135", "optimizer.lr=0.0003", "batch_size=128", "A100-SXM4-40GB"):
        assert whole in text
    assert "\x1b" not in text


def test_a_folder_that_cannot_be_written_is_the_users_error(
    make_run: MakeRun, tmp_path: Path
) -> None:
    groups = report.collect(report.read_runs([make_run("basic", test=None)]))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        report.write(groups, tmp_path / "file")


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


def test_a_confusion_matrix_counts_what_was_taken_for_what() -> None:
    logits = np.eye(3, dtype=np.float16)[[0, 1, 1, 2, 2, 2]]
    counts = predictions.confusion(records.Outputs(logits, np.array([0, 0, 1, 2, 2, 0], np.uint8)))
    assert counts.tolist() == [[1, 1, 1], [0, 1, 0], [0, 0, 2]]


def test_calibration_is_confidence_against_accuracy_in_bins() -> None:
    """Two bins: 0.55 of whom half are right, and 0.9 of whom three of four are."""
    confidence = np.array([0.55, 0.55, 0.9, 0.9, 0.9, 0.9])
    logits = np.log(np.stack([confidence, 1 - confidence], 1))
    found = predictions.calibration(records.Outputs(logits, np.array([0, 1, 0, 0, 0, 1], np.uint8)))
    assert found.confidence == pytest.approx([0.55, 0.9])
    assert found.accuracy == pytest.approx([0.5, 0.75])
    assert found.images.tolist() == [2, 4]
    assert found.error == pytest.approx((2 * 0.05 + 4 * 0.15) / 6)


def test_certainty_falls_into_the_last_bin() -> None:
    sure = records.Outputs(np.array([[100, -100], [0, 0]], np.float16), np.zeros(2, np.uint8))
    found = predictions.calibration(sure)
    assert found.confidence == pytest.approx([0.5, 1])
    assert found.error == pytest.approx(0.25)
