"""Test the content of report.html. The tests in tests/web/ open the page in a browser."""

import base64
import io
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from run_folders import MakeRun, change, write_outputs

from cifar_jax import data, report
from cifar_jax.errors import UserError
from cifar_jax.report import html, pictures
from cifar_jax.report.charts import chart
from cifar_jax.report.groups import collect
from cifar_jax.report.study import read_study
from cifar_jax.runs.reading import read_runs

Page = Callable[..., str]
NAMES = ["<script>alert(1)</script>", "a & b", "quote \" '", *"cdefghi"]
DIGITS = {"data.dataset": "digits"}


@pytest.fixture
def page(tmp_path: Path) -> Page:
    pictures._load.cache_clear()

    def make(**options: bool) -> str:
        return html.page(collect(read_runs([tmp_path / "runs"])), **options)

    return make


class _Reader(HTMLParser):
    """HTML parser that collects sections, pictures, tags, and the URLs that a browser loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sections: dict[str, str] = {"": ""}
        self.pictures: list[str] = []
        self.loaded: list[str] = []
        self.tags: set[str] = set()
        self._heading = ""
        self._in: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._in.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "data", "action", "poster", "srcset"):
                self.loaded.append(value or "")
            if tag == "img" and name == "src":
                self.pictures.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        while self._in and self._in.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" in self._in or "script" in self._in:
            return
        if "h2" in self._in:
            self._heading = data
            self.sections[data] = ""
        self.sections[self._heading] += data + " "


def outputs(run: Path, file: str, split: str, names: list[str], **more: Any) -> None:
    """Write logits of 20 images per class. One in five images has a wrong answer."""
    labels = np.arange(20 * len(names)) % len(names)
    answers = np.where(np.arange(len(labels)) % 5 == 4, (labels + 1) % len(names), labels)
    logits = 3 * np.eye(len(names), dtype=np.float32)[answers]
    arrays = {f"{split}_logits": logits, f"{split}_labels": labels.astype(np.int32)}
    np.savez(run / file, **arrays, **more)
    network = {"name": "net", "num_classes": len(names)}
    change(run / "model.json", model=network, classes=names)


def test_the_page_loads_nothing_and_compares_runs(make_run: MakeRun, page: Page) -> None:
    for seed in range(3):
        make_run("basic", seed, test=61.0 + seed)
        make_run("net", seed, test=76.0 + seed)
    make_run("fast-basic", test=68.0)
    text = page()
    read = _Reader(text)
    assert all(re.match(r"#|data:", link) for link in read.loaded)
    assert not read.tags & {"link", "iframe", "object", "embed"} - {"link"}
    assert not re.search(r"@import|url\(|https?:", text)
    assert not re.search(r"\b(?:nan|inf|None|Undefined)\b", re.sub(r"(?s)<script>.*", "", text))

    table = read.sections["Runs"]
    assert table.index("validation") < table.index("not for tuning")
    assert "62.00 ± 1.00" in table
    assert "net-attention" not in table
    assert "net-attention" in read.sections["The paper"]
    assert "fast-basic" not in read.sections["The paper"]
    differences = read.sections["Differences"]
    assert differences.count("+15.00") == 3  # The mean difference and both ends of its interval.
    assert "3 paired seeds cannot reach" in differences
    assert "Bands: lowest to highest run." in text
    assert "3 runs, counted together; 10,000 images" in " ".join(text.split())


def test_an_unfinished_run_shows_its_validation_images(make_run: MakeRun, page: Page) -> None:
    run = make_run("net", test=None, done=7)
    outputs(run, "validation.npz", "validation", NAMES, epoch=7)
    text = page()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    read = _Reader(text)
    body = " ".join(" ".join(read.sections.values()).split())
    assert "Answers for the validation images" in body
    assert "200 images; after epoch 7." in body
    assert "Answers for the test images" not in body
    assert "Test accuracy, %" not in body
    assert "epoch 7 of 100" in body


def test_runs_without_outputs_or_epochs_have_a_page(make_run: MakeRun, page: Page) -> None:
    make_run("net", test=None)
    (make_run("basic", test=60.0) / "outputs.npz").unlink()
    make_run("basic", test=50.0, overrides={"epochs": 1}, folder="one-epoch")
    text = page()
    assert "No epoch is complete yet." in text
    assert "There are no stored answers" in text
    # A curve with a single epoch is a dot in the middle.
    assert re.search(r'class="dots c0" d="M1,-[\d.]+h0"', text)
    assert re.search(r'class="x" style="left:50.0%">1<', text)


def test_many_classes_are_a_picture_with_a_table(make_run: MakeRun, page: Page) -> None:
    run = make_run("net", overrides={"data.dataset": "folder:birds"})
    names = [f"bird & {number}" for number in range(200)]
    outputs(run, "outputs.npz", "test", names)
    text = page()
    (picture,) = _Reader(text).pictures
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))))
    assert pixels.shape == (200, 200, 4)
    assert (pixels[..., 3] > 0).sum() == 200  # One answer for each of 200 classes.
    assert "bird &amp; 4</td><td>bird &amp; 5" in text
    assert len(text) < 300_000


def test_pictures_come_from_the_data_set_of_the_run(make_run: MakeRun, page: Page) -> None:
    digits = data.load("digits")
    run = make_run("basic", overrides=DIGITS, data_sha256=digits.fingerprint)
    labels = digits.test.labels
    wrong = np.arange(len(labels)) == 7
    logits = 9 * np.eye(10, dtype=np.float32)[(labels + wrong) % 10]
    np.savez(run / "outputs.npz", test_logits=logits, test_labels=labels)
    (picture,) = _Reader(page()).pictures
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))))
    np.testing.assert_array_equal(pixels, digits.test.images[7])
    assert not _Reader(page(pictures=False)).pictures

    change(run / "result.json", data_sha256="0")
    text = page()
    assert not _Reader(text).pictures
    assert "has other images" in text


def test_pictures_are_never_downloaded(
    make_run: MakeRun, page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nothing"))
    make_run("basic")
    assert "run `cifar-jax data prepare cifar10`, then this report again" in page()
    assert not (tmp_path / "nothing").exists()


def test_ten_runs_with_pictures_are_small(
    make_run: MakeRun, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (10_000, 32, 32, 3), np.uint8)
    labels = np.arange(10_000) % 10
    digits = data.load("digits")
    dataset = digits._replace(test=data.Split(noise, labels), fingerprint="0ff1c1a1")
    monkeypatch.setattr(html, "_OPEN_GROUPS", 10)
    monkeypatch.setattr(data, "is_local", lambda name: True)
    monkeypatch.setattr(data, "load", lambda name, **options: dataset)
    for number in range(10):
        make_run("resnet10", folder=f"{number}", overrides={"optimizer.lr": 1e-3 + number})
    text = page()
    assert len(_Reader(text).pictures) == 240
    assert len(text.encode()) < 3_000_000


def test_damaged_outputs_are_refused(make_run: MakeRun, page: Page) -> None:
    run = make_run("basic")
    shutil.copy(run / "config.json", run / "outputs.npz")
    with pytest.raises(UserError, match=r"outputs\.npz is damaged"):
        page()
    write_outputs(run / "outputs.npz", 60.0)
    assert page()


def test_the_trials_of_a_study_are_a_section_and_no_runs(make_run: MakeRun) -> None:
    folder = make_run("basic").parents[1] / "basic-study"
    trials = [
        {"number": 0, "state": "finished", "accuracies": {1: 40, 2: 61.25}},
        {"number": 1, "state": "pruned", "accuracies": {1: 30.5}},
        {"number": 2, "state": "finished", "accuracies": {1: 35, 2: 55.5}},
        {"number": 3, "state": "running", "accuracies": {}},
    ]
    for trial in trials:
        accuracy = trial["accuracies"].get(2)  # pyright: ignore
        trial |= {"values": {"optimizer.lr": 0.125}, "validation_accuracy": accuracy}
    study = {
        **{"experiment": "basic", "seed": 0, "settings": {}, "code_sha256": "", "trials": trials},
        **{"search": {"optimizer.lr": [0.125]}, "importances": {"optimizer.lr": 1.0}},
    }
    make_run("net", folder="basic-study/trial0", test=None, done=2)
    (folder / "study.json").write_text(json.dumps(study))
    written, _ = report.report([folder.parent])
    reader = _Reader(written.read_text())
    section = reader.sections["Study of basic"]
    assert "4 trials of" in section
    for text in ("61.25", "30.50", "55.50", "100 %"):
        assert text in section
    assert not reader.loaded[1:]
    best = read_study(folder).history
    assert best
    assert best.lines[0].path == "M0,-61.25L2,-61.25"
    assert not any("net" in heading for heading in reader.sections)


def test_a_study_without_other_runs_has_a_page(tmp_path: Path, make_run: MakeRun) -> None:
    trial = make_run("net", folder="runs/net-study/trial0", test=None, done=2)
    study = {
        **{"experiment": "net", "seed": 0, "settings": {}, "code_sha256": "", "importances": {}},
        **{"search": {"optimizer.lr": [0.125]}, "trials": []},
    }
    (trial.parent / "study.json").write_text(json.dumps(study))
    for folder in (trial.parent, trial.parents[1]):
        written, _ = report.report([folder])
        assert list(_Reader(written.read_text()).sections) == ["", "Study of net"]
    written, _ = report.report([trial], folder=tmp_path / "trial")
    assert "Study" not in written.read_text()


def test_close_values_are_inside_of_the_chart() -> None:
    """The chart has one epoch, and the values differ in the fourth digit."""
    values = (2.30449, 2.30591)
    drawn = chart("Loss", [(str(v), i, [{1: v}]) for i, v in enumerate(values)])
    assert drawn
    _, top, _, height = map(float, drawn.view_box.split())
    for line in drawn.lines:
        y = float(line.path.partition(",")[2].removesuffix("h0"))
        assert top < y < top + height
    assert {len(tick.text) for tick in drawn.y_ticks} == {len("2.3050")}
