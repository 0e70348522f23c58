"""Test that arbitrary arguments and damaged files give a result or a one-line error."""

import atexit
import contextlib
import functools
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from PIL import Image
from properties import property_test
from short_runs import train

from cifar_jax import cli
from cifar_jax.config import Config, Data, Model, Optimizer, Schedule, Train
from cifar_jax.data.images import read_image
from cifar_jax.errors import UserError
from cifar_jax.inference.load import load

OPTIONS = [
    *("--workdir", "--seed", "--seeds", "--set", "--fresh", "--paper", "--device", "--split"),
    *("--best", "--format", "--record", "--readme", "--json", "--top", "--output", "--help", "-h"),
    *("-o", "--", "-", "--all", "--version", "--markdown", "--model"),
]
WORDS = [
    # Words that would start a long computation are left out.
    *("no-such-experiment", "epochs=5", "optimizer.lr=nan", "model.name=", "runs", "."),
    *("0", "-1", "1e9", "a[b]", "*", "cpu", "test", "onnx", "x.png", "x.json", "digits"),
]
# `train` is left out because it has its own test. `data` is left out because it downloads files.
VERBS = ["evaluate", "predict", "export", "import-torch", "experiments", "settings", "report", ""]

# Command-line arguments contain no zero byte. They need not be valid UTF-8.
arbitrary_words = st.text(st.characters(codec="utf-8", exclude_characters="\0")) | (
    st.binary(max_size=9).filter(lambda word: 0 not in word).map(os.fsdecode)
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
json_values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def exit_code(words: list[str]) -> int:
    """Run a command and return its exit code. A failing command must print one line or the help
    text."""
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
def temporary_folder() -> Iterator[Path]:
    """Make a temporary folder the current folder during the context."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)


@property_test(
    verb=st.sampled_from(VERBS),
    words=st.lists(st.sampled_from(OPTIONS) | st.sampled_from(WORDS) | arbitrary_words, max_size=4),
)
def test_arbitrary_arguments_succeed_or_give_one_line_errors(verb: str, words: list[str]) -> None:
    with temporary_folder():
        exit_code([verb, *words] if verb else words)


# `--paper` is left out, because `--paper --workdir FOLDER` would train all ten experiments.
TRAIN_OPTIONS = [option for option in OPTIONS if option != "--paper"]


@property_test(words=st.lists(st.sampled_from(TRAIN_OPTIONS) | arbitrary_words, max_size=3))
def test_train_refuses_an_unknown_experiment_with_any_options(words: list[str]) -> None:
    with temporary_folder() as folder:
        exit_code(["train", *words, "no-such-experiment"])
        assert not (folder / "runs").exists()


def positions(value: Any) -> list[tuple[Any, Any]]:
    """Return a pair (container, key) for each entry of each dictionary and list in `value`."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if value else ()
    found = [(value, key) for key in keys]
    for key in keys:
        if isinstance(value[key], (dict, list)):
            found += positions(value[key])
    return found


@functools.cache
def finished_run() -> Path:
    """Return the folder of a finished run. The run is trained at the first call."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    config = Config(
        model=Model(name="basic"),
        epochs=1,
        batch_size=32,
        optimizer=Optimizer(name="sgd", lr=0.05, momentum=0.9),
        schedule=Schedule(name="constant"),
        data=Data(dataset="digits", train_images=64, validation=16),
        train=Train(devices=1),
    )
    train(config, folder / "run")
    return folder / "run"


RUN_FILES = ["result", "config", "env", "metrics", "model"]


@property_test(data=st.data(), name=st.sampled_from(RUN_FILES))
def test_damaged_run_files_give_one_line_errors(data: st.DataObject, name: str) -> None:
    with temporary_folder() as folder:
        run = shutil.copytree(finished_run(), folder / "run")
        file = run / ("metrics.jsonl" if name == "metrics" else f"{name}.json")
        first, *rest = file.read_text().splitlines() if name == "metrics" else [file.read_text()]
        value = [json.loads(first)]
        place, key = data.draw(st.sampled_from(positions(value)))
        if data.draw(st.booleans()):
            del place[key]
        else:
            place[key] = data.draw(json_values)
        file.write_text("\n".join([*(json.dumps(part) for part in value), *rest, ""]))
        exit_code(["report", str(run)])
        if name != "metrics":  # `load` does not read metrics.jsonl.
            message = ""
            try:
                load(run)
            except UserError as error:
                message = str(error)
            assert len(message.splitlines()) <= 1


@st.composite
def image_files(draw: st.DrawFn) -> bytes:
    """Generate the bytes of an image file. Some files are damaged, cut short or entirely random."""
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


@property_test(content=image_files())
def test_damaged_images_give_one_line_errors(content: bytes) -> None:
    read, message = None, "it.png"
    try:
        read = read_image(content, "it.png")
    except UserError as error:
        message = str(error)
    assert read is None or (read.shape, read.dtype) == ((32, 32, 3), "uint8")
    assert message.startswith("it.png")
    assert len(message.splitlines()) == 1
