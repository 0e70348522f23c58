import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from run_folders import MakeRun, record, write_rows

from cifar_jax import report
from cifar_jax.report import minutes, plots
from cifar_jax.runs.reading import read_runs
from cifar_jax.runs.schemas import dump


def curves(axes: Axes, color: str, width: float) -> list[list[list[float]]]:
    """Return the points of each plotted line that has this color and line width."""
    return [
        np.array(line.get_xydata()).tolist()
        for line in axes.lines
        if (line.get_color(), line.get_linewidth()) == (color, pytest.approx(width))
    ]


def test_every_group_has_a_panel(make_run: MakeRun) -> None:
    overrides = {"epochs": 3, "schedule.name": "cosine", "data.crop_padding": 4}
    runs = [make_run("basic", seed, test=61.0 + seed) for seed in range(2)]
    runs += [make_run("net", test=None, done=12), make_run("basic", 2, overrides=overrides)]
    figure = plots.draw(report.collect(read_runs(runs)))
    panels = figure.axes
    assert [axes.get_visible() for axes in panels] == [True] * 11 + [False] * 4
    assert [axes.get_title(loc="left") for axes in panels[:3]] == ["basic", "net", "net-bn-gap"]
    captions = [axes.texts[0].get_text() for axes in panels[:11]]
    assert captions[:3] == [
        "61.50 ± 0.71 (paper 62.06)",
        "epoch 12 of 100 (paper 77.91)",
        "no record yet (paper 82.14)",
    ]
    assert captions[10] == "epochs=3 schedule.name=cosine…"
    assert [axes.get_xlim() for axes in panels[:3]] == [(0, 20), (0, 100), (0, 50)]
    for axes, paper in zip(panels, (62.06, 77.91), strict=False):
        (line,) = (line for line in axes.lines if line.get_linestyle() == "--")
        assert set(line.get_ydata()) == {paper}
    assert not [line for line in panels[10].lines if line.get_linestyle() == "--"]
    # Curves of few epochs have markers.
    assert panels[10].lines[0].get_marker() == "o"
    (mark,) = (line for line in panels[0].lines if line.get_marker() == "D")
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (20, 61.5)
    bottom, top = panels[0].get_ylim()
    assert 0 <= bottom < 20 < 98 < top <= 100.8
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["train", "validation", "test, paper", "test, measured"]


def test_curves_show_each_seed_and_the_mean(make_run: MakeRun) -> None:
    runs = [make_run("resnet10-plateau", seed) for seed in (0, 2)]
    runs = read_runs([*runs, make_run("resnet10-plateau", 3, test=None, done=5)])
    (group,) = (group for group in report.collect(runs) if group.runs)
    axes = plots.draw([group]).axes[0]
    for split, color in (("train", plots.TRAIN), ("validation", plots.VALIDATION)):
        name = f"{split}_accuracy"
        seeds = [[[row.epoch, getattr(row, name)] for row in run.rows] for run in runs]
        assert curves(axes, color, 0.54) == seeds
        (mean,) = curves(axes, color, 1.2)
        # The mean curve leaves out the unfinished run, which has fewer epochs.
        np.testing.assert_allclose(mean, np.mean(seeds[:2], axis=0))


def test_names_in_the_figure_of_minutes_do_not_overlap(make_run: MakeRun) -> None:
    experiments = ("basic", "net", "net-bn-gap", "fast-basic")
    runs = read_runs([make_run(name, test=80 + i / 50) for i, name in enumerate(experiments)])
    groups = [group for group in report.collect(runs) if group.runs]
    measured = minutes.points(groups, [])
    measured[0] = measured[0]._replace(machine="another CPU")
    figure = minutes.draw(measured)
    left = figure.axes[0]
    assert [line.get_fillstyle() for line in left.lines] == ["none", "full", "full", "full"]
    assert sorted(text.get_text() for text in left.texts) == sorted(experiments)
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in left.texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_the_readme_figure_is_drawn_again_if_the_records_change(
    make_run: MakeRun, tmp_path: Path, readme: Path
) -> None:
    results = tmp_path / "results"
    record(make_run("basic"), results)
    report.update_readme(readme, results)
    figure = results / "curves.svg"
    first = figure.read_bytes()
    assert 20_000 < len(first) < 200_000
    assert b"<!-- two CPU cores -->" in (results / "minutes.svg").read_bytes()
    assert b" \n" not in first
    figure.unlink()
    assert not report.readme_is_current(readme, results)
    report.update_readme(readme, results)
    assert figure.read_bytes() == first

    rows = [dump(row) for row in read_runs([results])[0].rows]
    rows[3]["validation_accuracy"] += 5
    write_rows(results / "basic-seed0.metrics.jsonl", rows)
    assert not report.readme_is_current(readme, results)
    assert report.update_readme(readme, results)[0]
    assert figure.read_bytes() != first
    assert report.readme_is_current(readme, results)


def test_a_machine_without_a_writable_folder_is_explained() -> None:
    code = """
import tempfile
from cifar_jax.errors import UserError
def fail(*args, **kwargs):
    raise FileNotFoundError(2, "No usable temporary directory found")
tempfile.mkdtemp = fail
try:
    import cifar_jax.report.plots
except UserError as error:
    print(error)
"""
    env = os.environ | {"MPLCONFIGDIR": "/proc/none"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout.startswith("matplotlib finds no folder that it can write to: set MPLCONFIGD")
