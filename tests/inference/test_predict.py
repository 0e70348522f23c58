"""Test the commands `cifar-jax predict` and `cifar-jax export`."""

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import cifar_jax
from cifar_jax.training.evaluation import TTA

Call = Callable[..., tuple[int, str, str]]
PIXELS = np.random.default_rng(0).integers(0, 256, (300, 40, 50, 3), np.uint8)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Folder with three images, and with files that are not images."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for name, pixels in zip(("b.png", "a.PNG", "more/c.bmp"), PIXELS, strict=False):
        Image.fromarray(pixels).save(folder / name)
    for name in ("notes.txt", "._b.png", "__MACOSX/._b.png", ".ipynb_checkpoints/b.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("not an image")
    (folder / "folder.png").mkdir()
    return folder


@pytest.mark.parametrize("tta", [None, TTA(flip=True, shift=1)])
def test_all_images_of_a_folder_are_predicted(
    make_run: Callable[..., Path], pictures: Path, call: Call, tta: TTA | None
) -> None:
    # By default, only the least confident images are augmented. `--views` augments all images.
    card = {"tta": tta._asdict() | {"least_confident": 0.25}} if tta else {}
    run = make_run(Path("run"), "basic", **card)
    options = ["--json", "--top", "10", *(["--views"] if tta else [])]
    code, out, _ = call("predict", run, pictures, *options)
    assert code == 0
    rows = json.loads(out)
    files = [pictures / name for name in ("a.PNG", "b.png", "more/c.bmp")]
    assert [row["image"] for row in rows] == list(map(str, files))
    model = cifar_jax.load(run)
    for row, expected in zip(rows, model.predict(files, tta), strict=True):
        probabilities = {answer["class"]: answer["probability"] for answer in row["top"]}
        assert list(probabilities.values()) == sorted(probabilities.values(), reverse=True)
        values = [probabilities[name] for name in model.classes]
        np.testing.assert_allclose(values, expected, atol=1e-6)


def test_a_bad_file_sets_the_exit_code_and_does_not_stop_the_others(
    basic: Path, pictures: Path, call: Call
) -> None:
    broken = pictures / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff but no more")
    words = [broken, pictures / "*.png", pictures / "nowhere.png", "http://x/y.png"]
    code, out, err = call("predict", basic, *words, "--csv", "--top", "1")
    assert code == 2
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["image"] for row in rows] == [str(broken), str(pictures / "b.png"), "", ""]
    assert [bool(row["class"]) for row in rows] == [False, True, False, False]
    assert [bool(row["error"]) for row in rows] == [True, False, True, True]
    lines = [line for line in err.splitlines() if line.startswith("cifar-jax: ")]
    texts = ("broken.jpg", "nowhere.png does not exist", "is a web address", "3 of 4 inputs")
    assert all(text in line for text, line in zip(texts, lines, strict=True))


def test_a_16_bit_image_is_scaled_by_the_card(
    make_run: Callable[..., Path], basic: Path, call: Call, tmp_path: Path
) -> None:
    gray = PIXELS[0, :32, :32, 0].astype(np.uint16)
    Image.fromarray(gray * 16).save(tmp_path / "scan.png")
    run = make_run(Path("run"), "basic", white=255 * 16)
    same = np.repeat(gray[None, ..., None], 3, axis=-1).astype(np.uint8)
    expected = cifar_jax.load(run).predict(same)
    code, out, _ = call("predict", run, "scan.png", "--json", "--top", "10")
    assert code == 0
    answers = {answer["class"]: answer["probability"] for answer in json.loads(out)[0]["top"]}
    values = [answers[name] for name in cifar_jax.load(run).classes]
    np.testing.assert_allclose(values, expected[0], atol=1e-6)
    code, _, err = call("predict", basic, "scan.png")
    assert code == 2
    assert "scan.png has 16-bit values of at most" in err


def test_standard_input_and_the_table(
    basic: Path, pictures: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (pictures / "b.png").read_bytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    code, out, _ = call("predict", basic, "-", pictures / "b.png", "--top", "2")
    assert code == 0
    lines = [line.split() for line in out.splitlines() if "%" in line]
    assert [line[0] for line in lines[::2]] == ["-", str(pictures / "b.png")]
    assert lines[0][1:] == lines[2][1:]
    assert len(lines) == 4


def test_many_images_are_answered_in_order(basic: Path, tmp_path: Path, call: Call) -> None:
    files = [tmp_path / f"{i:03}.png" for i in range(300)]
    for file, pixels in zip(files, PIXELS, strict=True):
        Image.fromarray(pixels).save(file)
    (tmp_path / "100a.png").write_bytes(b"")
    code, out, err = call("predict", basic, tmp_path, "--json", "--top", "1")
    assert code == 2
    rows = json.loads(out)
    assert rows.pop(101)["error"]
    best = cifar_jax.load(basic).predict(files).max(-1)
    np.testing.assert_allclose([row["top"][0]["probability"] for row in rows], best, atol=1e-6)
    assert "1 of 301" in err


def test_predict_accepts_exports(basic: Path, pictures: Path, call: Call) -> None:
    expected = call("predict", basic, pictures / "b.png", "--csv")
    for kind in ("safetensors", "stablehlo"):
        code, out, _ = call("export", basic, "--to", kind)
        assert (code, f"basic-seed0.{kind}" in out) == (0, True)
        assert call("predict", f"basic-seed0.{kind}", pictures / "b.png", "--csv") == expected


@pytest.mark.parametrize(
    "command",
    [
        "predict nowhere a.png",
        "predict . a.png",
        "predict .",
        "predict basic a.png --views",
        "predict . a.png --json --csv",
        "export . --to stablehlo",
        "export . --to keras",
        "export .",
        "import-torch nowhere.pth --model resnet18",
        "import-torch nowhere.pth --model vgg",
    ],
)
def test_a_mistake_gives_one_line_and_leaves_no_file(command: str, call: Call) -> None:
    code, out, err = call(*command.split())
    assert (code, out) == (2, "")
    assert err.startswith("cifar-jax: ")
    assert err.count("\n") == 1
    assert not list(Path().iterdir())
