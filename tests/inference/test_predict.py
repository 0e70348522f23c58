"""`cifar-jax predict` and `cifar-jax export`."""

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import cifar_jax
from cifar_jax import cli
from cifar_jax.training.evaluation import TTA


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of three images, one of them 40x50, among files that are not images."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, shape in {"b.png": (32, 32), "a.PNG": (40, 50), "more/c.bmp": (32, 32)}.items():
        Image.fromarray(random.integers(0, 256, (*shape, 3), np.uint8)).save(folder / name)
    for name in ("notes.txt", "._b.png", "__MACOSX/._b.png", ".ipynb_checkpoints/b.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("not an image")
    (folder / "folder.png").mkdir()
    return folder


def assert_answers(rows: list[dict[str, Any]], files: list[Path], probabilities: Any) -> None:
    assert [row["image"] for row in rows] == list(map(str, files))
    for row, expected in zip(rows, probabilities, strict=True):
        values = [answer["probability"] for answer in row["top"]]
        np.testing.assert_allclose(values, sorted(expected, reverse=True), atol=1e-6)


def test_a_folder_stands_for_its_images(
    basic: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["predict", str(basic), str(pictures), "--json", "--top", "10"]) == 0
    rows = json.loads(capsys.readouterr().out)
    files = [pictures / name for name in ("a.PNG", "b.png", "more/c.bmp")]
    model = cifar_jax.load(basic)
    probabilities = model.predict(files)
    assert_answers(rows, files, probabilities)
    for row, values in zip(rows, probabilities, strict=True):
        assert row["top"][0]["class"] == model.classes[values.argmax()]


def test_views_applies_the_runs_test_time_augmentation_to_every_image(
    make_run: Callable[..., Path],
    basic: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.run(["predict", str(basic), str(pictures), "--views"]) == 2
    assert "has no test-time augmentation: leave --views out" in capsys.readouterr().err
    tta = {"flip": True, "shift": 1, "least_confident": 0.25}
    run = make_run(tmp_path / "run", "basic", tta=tta)
    assert cli.run(["predict", str(run), str(pictures), "--views", "--json", "--top", "10"]) == 0
    rows = json.loads(capsys.readouterr().out)
    files = [pictures / name for name in ("a.PNG", "b.png", "more/c.bmp")]
    assert_answers(rows, files, cifar_jax.load(run).predict(files, TTA(flip=True, shift=1)))


def test_a_bad_file_sets_the_exit_code_and_stops_no_other(
    basic: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = pictures / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff but no more")
    words = [str(broken), str(pictures / "*.png"), str(pictures / "nowhere.png"), "http://x/y.png"]
    assert cli.run(["predict", str(basic), *words, "--csv", "--top", "1"]) == 2
    out, err = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["image"] for row in rows] == [str(broken), str(pictures / "b.png"), "", ""]
    assert [bool(row["class"]) for row in rows] == [False, True, False, False]
    assert [bool(row["error"]) for row in rows] == [True, False, True, True]
    lines = [line for line in err.splitlines() if line.startswith("cifar-jax: ")]
    for line, text in zip(
        lines,
        ("broken.jpg", "nowhere.png does not exist", "is an address", "3 of 4 images could not"),
        strict=True,
    ):
        assert text in line


def test_standard_input_and_the_table(
    basic: Path,
    pictures: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = (pictures / "b.png").read_bytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    assert cli.run(["predict", str(basic), "-", str(pictures / "b.png"), "--top", "2"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "%" in line]
    assert [line[0] for line in lines[::2]] == ["-", str(pictures / "b.png")]
    assert lines[0][1:] == lines[2][1:]
    assert len(lines) == 4


def test_many_images_are_answered_in_order(
    basic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 32, 32, 3), np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{i:03}.png")
    (tmp_path / "100a.png").write_bytes(b"")
    assert cli.run(["predict", str(basic), str(tmp_path), "--json", "--top", "1"]) == 2
    out, err = capsys.readouterr()
    rows = json.loads(out)
    assert rows.pop(101)["error"]
    best = cifar_jax.load(basic).predict(pixels).max(-1)
    np.testing.assert_allclose([row["top"][0]["probability"] for row in rows], best, atol=1e-6)
    assert "1 of 301" in err


def test_exports_answer_predict(
    basic: Path, pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures.parent)
    answers = []
    for kind in ("safetensors", "stablehlo"):
        assert cli.run(["export", str(basic), "--to", kind]) == 0
        assert f"basic-seed0.{kind}" in capsys.readouterr().out
        assert cli.run(["predict", f"basic-seed0.{kind}", "pictures/b.png", "--csv"]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "nowhere", "a.png"],
        ["predict", ".", "a.png"],
        ["predict", "."],
        ["predict", ".", "a.png", "--json", "--csv"],
        ["predict", ".", "a.png", "--top", "0"],
        ["export", ".", "--to", "stablehlo"],
        ["export", ".", "--to", "keras"],
        ["export", "."],
        ["import-torch", "nowhere.pth", "--model", "resnet18"],
        ["import-torch", "nowhere.pth", "--model", "vgg"],
        ["import-torch", "nowhere.pth"],
    ],
)
def test_a_mistake_gives_one_line_and_leaves_no_file(
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("cifar-jax: ")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
