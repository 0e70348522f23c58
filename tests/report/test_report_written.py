"""The report as text: on a terminal, and as a page."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from run_folders import MakeRun

from cifar_jax import catalog, report
from cifar_jax.errors import UserError
from cifar_jax.report import plots
from cifar_jax.report.style import Figure


def printed(groups: list[report.SeedGroup], width: int | None = None) -> str:
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


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take seconds, and are not drawn: test_report_plots.py does."""
    figures = [Figure("a.png", "one", b"a"), Figure("b.png", "a | title\nof two", b"b")]
    monkeypatch.setattr(plots, "draw", lambda groups: figures)


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
    assert main[1] == ["---", *["---:"] * 7, "---"]
    assert all(len(cells) == len(main[0]) for cells in main)
    assert all(len(cells) == len(other[0]) for cells in other)
    assert len(main) == 2 + 10
    assert main[2][:5] == ["basic", "62,006", "62.06", "**62.50 ± 0.71**<br>(2 seeds)", "+0.44"]
    assert part[2][:2] == ["resnet10-plateau", "0"]
    assert part[2][2].startswith("epoch 12 of 135: validation ")
    assert other[2][:2] == ["basic", "`epochs=1`"]
    assert "62.50 ± 0.71" in file.getvalue()
    assert text.count("\n\n![") == 2
    assert text.endswith("\n\n![a \\| title of two](curves/b.png)\n")
    assert (tmp_path / "runs/curves/b.png").read_bytes() == b"b"


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


NARROW = """\
Paper against measured
                         para-                     differ-    at
experiment              meters paper      measured    ence  best epochs   time
──────────────────────────────────────────────────────────────────────────────
basic                   62,006 62.06  61.75 ± 1.06   −0.31 62.00     20 62 min
                                         (2 seeds)
net                  2,348,030 77.91  epoch 12/100                  100
                                        validation
                                            44.6 %
net-attention          521,646 81.77       not run                   50
resnet10             4,903,242 90.03         93.25   +3.22 93.50    135 62 min

With other settings or images
                                     at
experiment               measured  best epochs   time
─────────────────────────────────────────────────────
basic                       50.00 50.25      3 62 min
epochs=3

Accuracy on the test images in percent, after the last epoch: mean ± standard
deviation over seeds. “At best” is after the epoch with the best validation
accuracy. Time is a run's. Device: AMD EPYC 7B13, 2 cores; NVIDIA L4.
"""
WIDE = """\
basic                   62,006 62.06  61.75 ± 1.06   −0.31 62.00     20 62 min AMD EPYC 7B13, 2
                                         (2 seeds)                             cores
net                  2,348,030 77.91  epoch 12/100                  100
                                        validation
                                            44.6 %
net-attention          521,646 81.77       not run                   50
resnet10             4,903,242 90.03         93.25   +3.22 93.50    135 62 min NVIDIA L4
"""
ONE_DEVICE = """\
basic                    62,006  62.06       61.75 ± 1.06    −0.31  62.00      20  62 min
                                                (2 seeds)
net                   2,348,030  77.91       epoch 12/100                     100
                                        validation 44.6 %
"""


def test_the_terminals_table(make_run: MakeRun, tmp_path: Path) -> None:
    """As wide as the terminal is: with the device of each row where there are several, and room."""
    gpu = {"platform": "gpu", "kind": "NVIDIA L4", "count": 1}
    for seed, test in enumerate((61.0, 62.5)):
        make_run("basic", seed, test=test)
    make_run("net", test=None, done=12)
    make_run("resnet10", test=93.25, device=gpu)
    make_run("basic", overrides={"epochs": 3}, folder="short", test=50.0)
    shown = [
        group
        for group in report.collect(report.read_runs([tmp_path]))
        if group.runs or group.experiment == "net-attention"
    ]

    def lines(groups: list[report.SeedGroup], width: int) -> str:
        return "".join(f"{line.rstrip()}\n" for line in printed(groups, width).splitlines())

    assert lines(shown, 80).rstrip() + "\n" == NARROW
    assert WIDE in lines(shown, 100)
    assert "Device: " not in lines(shown, 100)
    assert "device" not in lines(report.collect([]), 100)
    assert ONE_DEVICE in lines(shown[:2], 100)
    assert "Time is a run's. Device: AMD EPYC 7B13, 2 cores.\n" in lines(shown[:2], 250)
    colored = io.StringIO()
    report.show(shown, Console(file=colored, force_terminal=True, color_system="standard"))
    assert "\x1b[2mnet\x1b[0m" in colored.getvalue()  # dim, where nothing is measured
    assert "\x1b[2mbasic" not in colored.getvalue()
    assert "\x1b[33m−0.31\x1b[0m" in colored.getvalue()  # yellow
    assert "\x1b[32m+3.22\x1b[0m" in colored.getvalue()  # green


def test_better_recipes_have_a_table_of_their_own(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("basic", test=62.0)
    make_run("fast-basic", test=68.0, parameters=62_006, best_validation_test_accuracy=None)
    groups = report.collect(report.read_runs([tmp_path]))
    paper, better = printed(groups, 80).split("Better recipes, and the paper's best with the same")
    assert "fast-basic" not in paper
    line = next(line for line in better.splitlines() if line.startswith("fast-basic"))
    epochs = str(catalog.load("fast-basic").config.epochs)
    cells = ["fast-basic", "62,006", "62.06", "68.00", "+5.94", epochs, "62", "min"]
    assert line.split() == cells
    page = report.write(groups, tmp_path / "out").read_text()
    tables = table_cells(page)
    assert len(tables) == 2
    assert tables[1][2][:5] == ["fast-basic", "62,006", "62.06", "**68.00**", "+5.94"]
    assert "## Better recipes" in page

    make_run("fast-basic", 1, test=None, done=3)
    groups = report.collect(report.read_runs([tmp_path]))
    page = report.write(groups, tmp_path / "out").read_text()
    assert table_cells(page)[2][2][:2] == ["fast-basic", "1"]
    assert "Better recipes" not in printed(report.collect([]), 80)


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
