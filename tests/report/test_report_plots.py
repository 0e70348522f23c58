import numpy as np
import pytest
from matplotlib.axes import Axes
from run_folders import MakeRun

from cifar_jax import report
from cifar_jax.report import plots
from cifar_jax.runs.reading import read_runs


def curves(axes: Axes, color: str, width: float) -> list[list[list[float]]]:
    """Return the points of each line with that color and width."""
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
        "paper 62.06, measured 61.50 ± 0.71",
        "paper 77.91, epoch 12 of 100",
        "paper 82.14, no record yet",
    ]
    assert captions[10] == "epochs=3 schedule.name=cosine data.…"
    assert [axes.get_xlim() for axes in panels[:3]] == [(0, 20), (0, 100), (0, 50)]
    for axes, paper in zip(panels, (62.06, 77.91), strict=False):
        (line,) = (line for line in axes.lines if line.get_linestyle() == "--")
        assert set(line.get_ydata()) == {paper}
    assert not [line for line in panels[10].lines if line.get_linestyle() == "--"]
    (mark,) = (line for line in panels[0].lines if line.get_marker() == "D")
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (20, 61.5)
    bottom, top = panels[0].get_ylim()
    assert 0 <= bottom < 20
    assert 98 < top <= 100.8
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["train", "validation", "test, paper", "test, measured"]


def test_curves_show_each_seed_and_the_mean(make_run: MakeRun) -> None:
    runs = read_runs([make_run("resnet10-plateau", seed) for seed in (0, 2)])
    (group,) = (group for group in report.collect(runs) if group.runs)
    axes = plots.draw([group]).axes[0]
    for split, color in (("train", plots.TRAIN), ("validation", plots.VALIDATION)):
        name = f"{split}_accuracy"
        seeds = [[[row.epoch, getattr(row, name)] for row in run.rows] for run in runs]
        assert curves(axes, color, 0.54) == seeds
        (mean,) = curves(axes, color, 1.2)
        np.testing.assert_allclose(mean, np.mean(seeds, axis=0))


def test_one_short_run_without_validation_is_one_line_of_points(make_run: MakeRun) -> None:
    overrides = {"epochs": 12, "data.validation": 0.0}
    runs = read_runs([make_run("resnet10-plateau", test=None, done=10, overrides=overrides)])
    (line,) = plots.draw(report.collect(runs)[-1:]).axes[0].lines
    assert (line.get_marker(), line.get_color()) == ("o", plots.TRAIN)


def test_the_mean_is_of_the_longest_curves() -> None:
    curves = [{1: 1.0, 2: 2.0, 3: 3.0}, {1: 100.0, 2: 100.0}, {1: 5.0, 3: 7.0}]
    assert plots._mean_curve(curves) == {1: 3.0, 3: 5.0}


def test_the_same_figure_is_the_same_file(make_run: MakeRun) -> None:
    groups = report.collect(read_runs([make_run("basic")]))[:1]
    first = plots.svg(groups, "a description")
    assert first == plots.svg(groups, "a description")
    assert b"a description" in first
    assert b" \n" not in first
