import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from run_folders import MakeRun

from cifar_jax import report
from cifar_jax.report import terminal


def printed(groups: list[report.SeedGroup], width: int | None = None) -> str:
    """Return the report as printed on a terminal of `width` columns. None means no terminal."""
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=bool(width), color_system=None)
    terminal.show(groups, console)
    return "".join(f"{line.rstrip()}\n" for line in file.getvalue().splitlines())


def table_cells(markdown: str) -> list[list[list[str]]]:
    """Return the cells of each Markdown table as `[table][row][column]`."""
    blocks = re.findall(r"(?:^\|.*\|\n)+", markdown, re.MULTILINE)
    return [
        [re.split(r" (?<!\\)\| ", line[2:-2]) for line in block.splitlines()] for block in blocks
    ]


@pytest.mark.usefixtures("no_figures")
def test_a_report_is_printed_and_written(make_run: MakeRun, tmp_path: Path) -> None:
    for seed in range(2):
        make_run("basic", seed, test=62.0 + seed)
    make_run("resnet10-plateau", test=None, done=12)
    make_run("basic", overrides={"epochs": 1, "model.name": "a|b\nc"}, folder="changed")
    make_run("fast-basic", test=68.0, parameters=62_006)
    file = io.StringIO()
    written = report.report([tmp_path / "runs"], console=Console(file=file))
    assert written == [tmp_path / "runs" / "report.html", tmp_path / "runs" / "report.md"]
    assert "Confusion matrix" in written[0].read_text(encoding="utf-8")
    page = written[1]
    text = page.read_text(encoding="utf-8")

    paper, better, changed = table_cells(text)
    assert paper[1] == ["---", *["---:"] * 7, "---"]
    assert [len(cells) for cells in paper] == [9] * 12
    assert paper[2][:5] == ["basic", "62,006", "62.06", "**62.50 ± 0.71**<br>(2 seeds)", "+0.44"]
    assert paper[10][3].startswith("epoch 12 of 135: validation ")
    assert better[2][:5] == ["fast-basic", "62,006", "62.06", "**68.00**", "+5.94"]
    assert changed[2][:2] == ["basic", "`model.name=a\\|b c` `epochs=1`"]
    assert "62.50 ± 0.71" in file.getvalue()
    assert text.endswith("\n\n![Accuracy by epoch](report.svg)\n")
    assert (page.parent / "report.svg").read_text() == "accuracy by epoch"


def test_without_runs_the_report_says_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = io.StringIO()
    assert report.report(console=Console(file=file)) == []
    assert file.getvalue().count("not run") == 10
    assert "make exp-basic" in file.getvalue()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_figures")
def test_the_report_is_written_to_the_folder_of_all_runs(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    silent = Console(file=io.StringIO())
    path, other = make_run("basic", test=None), make_run("net", test=None)
    for paths, folder in (
        ([path], path),
        ([path, other], tmp_path / "runs"),
        ([path, tmp_path / "runs" / "net"], tmp_path / "runs"),
    ):
        page, text = report.report(paths, console=silent)
        assert page.resolve() == folder / "report.html"
        assert text.resolve() == folder / "report.md"
        assert page.exists()
    _, text = report.report([path], folder=tmp_path / "out", console=silent)
    assert text == tmp_path / "out" / "report.md"
    assert "![" not in text.read_text()  # Without a finished epoch, there is no figure.
    assert report.report(console=silent) == [Path("runs/report.html"), Path("runs/report.md")]


NARROW = """\
Paper and measured
                         para-                     differ-    at
experiment              meters paper      measured    ence  best epochs   time
──────────────────────────────────────────────────────────────────────────────
basic                   62,006 62.06  61.75 ± 1.06   −0.31 62.00     20 62 min
                                         (2 seeds)
net                  2,348,030 77.91  epoch 12/100                  100
                                        validation
                                            75.0 %
net-attention          521,646 81.77       not run                   50
resnet10             4,903,242 90.03         93.25   +3.22 93.50    135 62 min

With changed settings or images
                                     at
experiment               measured  best epochs   time
─────────────────────────────────────────────────────
basic                       50.00 50.25      3 62 min
epochs=3

Accuracy on the test images in percent, after the last epoch: mean ± standard
deviation over seeds. At best: at the best epoch by train.best_by, by default
the validation accuracy. Time: wall time of one run. Device: AMD EPYC, 2 cores;
NVIDIA L4
"""


def test_the_terminals_table(make_run: MakeRun, tmp_path: Path) -> None:
    gpu = {"device": {"platform": "gpu", "kind": "NVIDIA L4", "count": 1}}
    for seed, test in enumerate((61.0, 62.5)):
        make_run("basic", seed, test=test)
    make_run("net", test=None, done=12)
    make_run("resnet10", test=93.25, sessions=(gpu,))
    make_run("basic", overrides={"epochs": 3}, folder="short", test=50.0)
    groups = report.collect(report.read_runs([tmp_path]))
    shown = [group for group in groups if group.runs or group.experiment == "net-attention"]
    assert printed(shown, 80) == NARROW
    assert "  135 62 min NVIDIA L4\n" in printed(shown, 100)
    assert "Device: " not in printed(shown, 100)
    assert "device" not in printed(report.collect([]), 100)
    assert "Time: wall time of one run. Device: AMD EPYC, 2 cores\n" in printed(shown[:2], 250)
    colored = io.StringIO()
    terminal.show(shown, Console(file=colored, force_terminal=True, color_system="standard"))
    dim, yellow, green = "\x1b[2mnet\x1b[0m", "\x1b[33m−0.31\x1b[0m", "\x1b[32m+3.22\x1b[0m"
    assert all(text in colored.getvalue() for text in (dim, yellow, green))
    assert "\x1b[2mbasic" not in colored.getvalue()


@pytest.mark.parametrize("width", [20, 40, 60])
def test_a_narrow_terminal_cuts_no_number(make_run: MakeRun, tmp_path: Path, width: int) -> None:
    make_run("resnet18-adam", test=91.0)
    groups = report.collect(report.read_runs([tmp_path]))
    (line,) = (line for line in printed(groups, width).splitlines() if "11,173,962 89.66" in line)
    assert line.split()[0] == "resnet18-adam"
    assert "91.00" in line
    assert "…" not in printed(groups, width)


@pytest.mark.parametrize("width", [80, 100, None])
def test_the_terminals_table_fits_and_loses_nothing(
    make_run: MakeRun, tmp_path: Path, width: int | None
) -> None:
    for seed in range(10):
        make_run("resnet18-adam-lr1e-4", seed, test=91.0 + seed / 100, wall_seconds=86_400.0)
    make_run("resnet10", test=None, done=134)
    make_run("fast-basic", test=68.0)
    gpu = {"device": {"platform": "gpu", "kind": "NVIDIA A100-SXM4-40GB", "count": 8}}
    overrides = {"optimizer.lr": 3e-4, "batch_size": 128}
    make_run("net", overrides=overrides, folder="other", sessions=(gpu,))
    text = printed(report.collect(report.read_runs([tmp_path])), width)
    assert max(map(len, text.splitlines())) <= (width or 100)
    words = ["resnet18-adam-lr1e-4", "11,173,962", "91.05 ± 0.03", "(10 seeds)", "24.0 h"]
    words += ["epoch 134/135", "optimizer.lr=0.0003", "batch_size=128", "A100-SXM4-40GB"]
    assert all(word in text for word in words)
    assert text.index("Better recipes") < text.index("fast-basic") < text.index("With changed")
    assert "\x1b" not in text
