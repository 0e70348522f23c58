"""The figure of accuracy against wall time."""

import io
import itertools
from pathlib import Path
from typing import Any

import pytest
from matplotlib.text import Annotation
from PIL import Image
from run_folders import MakeRun

from cifar_jax import report
from cifar_jax.report import plots, recipes, style, wall_time
from cifar_jax.report.recipes import BETTER, OTHERS, PAPERS, Peer, Point

CROWDED = [
    Point("basic", PAPERS, 1.1, 62.0, 0.7),
    Point("net-bn-gap", PAPERS, 35, 82.9, 0),
    Point("fast-net", BETTER, 30, 82.5, 0.1),
    Point("fast-net-bn-gap", BETTER, 24, 82.8, 0.2),
    Point("resnet10", PAPERS, 2500, 90.0, 0),
    Point("resnet10-plateau", PAPERS, 2500, 92.1, 0),
    Point("resnet18-adam-lr1e-4", PAPERS, 3900, 91.3, 0),
    Point("resnet18-sgd", PAPERS, 5000, 90.9, 0),
    Point("resnet18-adam", PAPERS, 5100, 89.7, 0),
    Point("speedrun-92", BETTER, 13, 92.2, 0.1),
    Point("a peer's code, in its own words", OTHERS, 14, 92.4, 0),
]


@pytest.mark.parametrize("points", [CROWDED, CROWDED[:1], [], CROWDED[-1:] * 3], ids=len)
def test_every_point_is_seen_and_named(points: list[Point], drawn: list[Any]) -> None:
    wall_time.svg(points, "")
    (axes,) = drawn[0].axes
    left, right = axes.get_xlim()
    low, high = axes.get_ylim()
    names = [text for text in axes.texts if text.get_text() in {point.name for point in points}]
    assert [text.xy for text in names] == [(point.minutes, point.accuracy) for point in points]
    for point in points:
        assert left < point.minutes < right
        assert low < point.accuracy < high
    (legend,) = drawn[0].legends
    kinds = [text.get_text() for text in legend.get_texts()][:-1]
    assert kinds == [kind for kind in wall_time._LOOKS if kind in {point.kind for point in points}]
    for text, point in zip(names, points, strict=True):
        assert text.get_color() == wall_time._LOOKS[point.kind][1]
    for one, other in itertools.combinations(axes.texts, 2):
        assert not _box(one).overlaps(_box(other)), (one.get_text(), other.get_text())
    for text in names:
        assert axes.get_window_extent().containsx(_box(text).x0)
        assert axes.get_window_extent().containsx(_box(text).x1)


def test_the_papers_accuracy_with_each_network_is_a_line(drawn: list[Any]) -> None:
    wall_time.svg([], "")
    (axes,) = drawn[0].axes
    lines = [line.get_ydata()[0] for line in axes.lines]
    assert sorted(lines) == [62.06, 77.91, 81.77, 82.14, 90.68, 91.27, 92.09]
    named = [text.get_text() for text in axes.texts]
    assert {"resnet10 92.09", "basic 62.06", "net-attention 81.77"} <= set(named)


def test_a_point_is_the_mean_of_its_seeds(make_run: MakeRun) -> None:
    runs = [
        make_run("basic", 0, test=61.0, wall_seconds=60.0),
        make_run("basic", 1, test=63.0, wall_seconds=120.0),
        make_run("fast-basic", test=68.0, wall_seconds=150.0),
        make_run("net", test=None, done=3),
        make_run("basic", overrides={"epochs": 1}, folder="short"),
    ]
    peer = Peer("theirs", 92.5, 27.8, "a Xeon", "their script", "./run")
    assert recipes.points(report.collect(report.read_runs(runs)), [peer]) == [
        ("basic", PAPERS, 1.5, 62.0, pytest.approx(2**0.5), False),
        ("fast-basic", BETTER, 2.5, 68.0, 0.0, False),
        ("theirs", OTHERS, 27.8, 92.5, 0.0, False),
    ]


def test_what_ran_on_an_accelerator_is_told_from_what_ran_on_cpus(
    make_run: MakeRun, drawn: list[Any]
) -> None:
    gpu = {"device": {"platform": "gpu", "kind": "NVIDIA L4", "count": 1}}
    runs = [make_run("basic", starts=[{}]), make_run("fast-basic", starts=[gpu])]
    points = recipes.points(report.collect(report.read_runs(runs)))
    assert [point.accelerated for point in points] == [False, True]
    wall_time.svg(points, "")
    (axes,) = drawn[0].axes
    marks = [container.lines[0] for container in axes.containers]
    assert [mark.get_markerfacecolor() == "white" for mark in marks] == [False, True]
    (legend,) = drawn[0].legends
    assert "on a GPU or TPU" in [text.get_text() for text in legend.get_texts()]


def test_the_longest_key_is_inside_the_figure(drawn: list[Any]) -> None:
    wall_time.svg([*CROWDED, CROWDED[0]._replace(accelerated=True)], "")
    (legend,) = drawn[0].legends
    assert legend.get_window_extent().x1 < drawn[0].bbox.x1


def test_a_report_has_it_where_there_is_something_to_compare(make_run: MakeRun) -> None:
    one = make_run("fast-basic", test=68.0)
    assert "wall-time.png" not in [figure.name for figure in _figures(one)]
    (figure,) = (f for f in _figures(one, make_run("basic")) if f.name == "wall-time.png")
    with Image.open(io.BytesIO(figure.png)) as image:
        colors = {color for _, color in image.convert("RGB").getcolors(maxcolors=1 << 24)}
    for color in (style.TRAIN, style.VALIDATION):
        assert tuple(bytes.fromhex(color[1:])) in colors


def _figures(*runs: Path) -> list[style.Figure]:
    return plots.draw(report.collect(report.read_runs(list(runs))))


def _box(text: Any) -> Any:
    """Of the words alone, without an arrow from them."""
    assert isinstance(text, Annotation)
    text.update_positions(text.axes.figure.canvas.get_renderer())
    return super(Annotation, text).get_window_extent()
