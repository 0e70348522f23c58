"""Whatever it is given, and whatever its files hold: it does it, or says why not in one line."""

import atexit
import contextlib
import functools
import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from PIL import Image
from properties import holds
from short_runs import train

from cifar_jax import cli
from cifar_jax.config import Config, Data, Model, Optimizer, Schedule, Train
from cifar_jax.data.images import read_image
from cifar_jax.errors import UserError
from cifar_jax.inference.load import load

MADE = Path(__file__).parent / "fixtures" / "runs_97d1dfc.tar.xz"

OPTIONS = [
    *("--workdir", "--seed", "--seeds", "--set", "--fresh", "--paper", "--device", "--split"),
    *("--best", "--format", "--record", "--readme", "--json", "--top", "--output", "--help", "-h"),
    *("-o", "--", "-", "--all", "--version", "--markdown", "--model"),
]
WORDS = [
    # None that would be at work for long.
    *("no-such-experiment", "epochs=5", "optimizer.lr=nan", "model.name=", "runs", "."),
    *("0", "-1", "1e9", "a[b]", "*", "cpu", "test", "onnx", "x.png", "x.json", "digits"),
]
# Neither `train`, which would, nor `data`, which would download.
VERBS = ["evaluate", "predict", "export", "import-torch", "experiments", "settings", "report", ""]

# As the system has them: bytes without a zero, of which some are no UTF-8.
words_of_anything = st.text(st.characters(codec="utf-8", exclude_characters="\0")) | (
    st.binary(max_size=9).filter(lambda word: 0 not in word).map(os.fsdecode)
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def code_of(words: list[str]) -> int:
    """The exit code, where what goes with it was said."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.run(words)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
    if code:
        assert code == 2, (code, err.getvalue())
        assert err.getvalue().startswith(("cifar-jax: ", "Usage: "))
        assert err.getvalue().startswith("Usage: ") or len(err.getvalue().splitlines()) == 1
    return code


@contextlib.contextmanager
def a_folder() -> Iterator[Path]:
    """To work in: what is written goes there."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)


@holds(
    verb=st.sampled_from(VERBS),
    words=st.lists(
        st.sampled_from(OPTIONS) | st.sampled_from(WORDS) | words_of_anything, max_size=4
    ),
)
def test_words_are_understood_or_refused_in_one_line(verb: str, words: list[str]) -> None:
    with a_folder():
        code_of([verb, *words] if verb else words)


# `--paper --workdir` would take the name for a folder, and train the ten experiments into it.
NOT_THE_PAPER = [option for option in OPTIONS if option != "--paper"]


@holds(words=st.lists(st.sampled_from(NOT_THE_PAPER) | words_of_anything, max_size=3))
def test_train_refuses_what_it_does_not_know(words: list[str]) -> None:
    with a_folder() as folder:
        code_of(["train", *words, "no-such-experiment"])
        assert not (folder / "runs").exists()


def within(value: Any) -> list[tuple[Any, Any]]:
    """Every object or list in `value`, with each of its keys."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if value else ()
    found = [(value, key) for key in keys]
    for key in keys:
        if isinstance(value[key], (dict, list)):
            found += within(value[key])
    return found


@functools.cache
def runs() -> dict[str, Path]:
    """A finished run of 97d1dfc, which has no model.json, and one of today."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    with tarfile.open(MADE) as archive:
        archive.extractall(folder, filter="data")
    config = Config(
        model=Model(name="basic"),
        epochs=1,
        batch_size=32,
        optimizer=Optimizer(name="sgd", lr=0.05, momentum=0.9),
        schedule=Schedule(name="constant"),
        data=Data(dataset="digits", train_images=64, validation=16),
        train=Train(devices=1),
    )
    train(config, folder / "today")
    return {"old": folder / "runs/finished", "today": folder / "today"}


FILES = ["result", "config", "env", "metrics"]
CHOSEN = [("old", name) for name in FILES] + [("today", name) for name in [*FILES, "model"]]


@holds(data=st.data(), chosen=st.sampled_from(CHOSEN))
def test_a_run_with_anything_in_its_files_is_reported_or_refused_in_one_line(
    data: st.DataObject, chosen: tuple[str, str]
) -> None:
    kind, name = chosen
    with a_folder() as folder:
        run = shutil.copytree(runs()[kind], folder / "run")
        file = run / ("metrics.jsonl" if name == "metrics" else f"{name}.json")
        first, *rest = file.read_text().splitlines() if name == "metrics" else [file.read_text()]
        value = [json.loads(first)]
        place, key = data.draw(st.sampled_from(within(value)))
        if data.draw(st.booleans()):
            del place[key]
        else:
            place[key] = data.draw(anything)
        file.write_text("\n".join([*(json.dumps(part) for part in value), *rest, ""]))
        code_of(["report", str(run)])
        if name != "metrics":  # which a model is used without
            refusal = ""
            try:
                load(run)
            except UserError as error:
                refusal = str(error)
            assert len(refusal.splitlines()) <= 1


@st.composite
def image_files(draw: st.DrawFn) -> bytes:
    """Images of several formats with a few bytes changed, cut off, or of no format at all."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=200))
    mode = draw(st.sampled_from(["RGB", "L", "RGBA", "P", "1"]))
    kind = draw(st.sampled_from(["PNG", "GIF", "BMP", "TIFF", "WEBP"]))
    file = io.BytesIO()
    Image.new(mode, (draw(st.integers(1, 40)), draw(st.integers(1, 40)))).save(file, kind)
    content = bytearray(file.getvalue())
    for _ in range(draw(st.integers(0, 4))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.none() | st.integers(0, len(content)))])


@holds(content=image_files())
def test_an_image_is_read_or_refused_in_one_line(content: bytes) -> None:
    read, refusal = None, "it.png"
    try:
        read = read_image(content, "it.png")
    except UserError as error:
        refusal = str(error)
    assert read is None or (read.shape, read.dtype) == ((32, 32, 3), "uint8")
    assert refusal.startswith("it.png")
    assert len(refusal.splitlines()) == 1
