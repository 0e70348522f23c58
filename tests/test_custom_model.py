"""Test models that experiment files define. The model code runs only on request."""

import json
import re
import runpy
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

import cifar_jax
from cifar_jax import cli, models
from cifar_jax.errors import UserError
from cifar_jax.models.basic import Basic
from cifar_jax.models.custom import CustomModel
from cifar_jax.models.summary import summarize

# XLA's optimizations are off, because compilation dominates the time of these tests.
quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
DOCS = Path(__file__).parents[1] / "docs" / "own-model.md"
QUICK = (
    *("--set", "data.dataset=digits", "--set", "data.train_images=128", "--set", "batch_size=32"),
    *("--set", "data.validation=0.1", "--set", "train.devices=1", "--set", "train.log_every=1"),
)

TINY = '''
"""A convolution with BatchNorm, and a dense layer."""
from __future__ import annotations
from flax import linen as nn
from cifar_jax.config import Config, Model, Optimizer

class Tiny(nn.Module):
    num_classes: int = 10
    width: int = 4

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.Conv(self.width, (4, 4), strides=4, name="conv")(x)
        x = nn.BatchNorm(use_running_average=not train, name="bn")(x)
        x = nn.relu(x).reshape(x.shape[0], -1)
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="head")(x)

MODEL = Tiny
CONFIG = Config(
    model=Model(name="tiny"), epochs=1, batch_size=32, optimizer=Optimizer(name="sgd", lr=0.1)
)
'''


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs a `cifar-jax` command in an empty folder without CIFAR-10."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))

    def call(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = cli.run(arguments)
        return Outcome(code, *capsys.readouterr())

    return call


def module(file: str | Path) -> Any:
    return runpy.run_path(str(file))["MODEL"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the experiment file `tiny.py` and a finished run folder named `run`."""
    folder = tmp_path_factory.mktemp("custom")
    (folder / "tiny.py").write_text(TINY)
    arguments = ["train", str(folder / "tiny.py"), *QUICK, "--workdir", str(folder / "run")]
    assert cli.run(arguments) == 0
    return folder


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """Temporary folder with a copy of the files in the fixture `trained`."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


class Small(nn.Module):
    num_classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = x.reshape(x.shape[0], -1)[:, :8]
        x = x + self.param("position", nn.initializers.constant(0.5), (8,))
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="head")(x)


def test_a_modules_own_initializers_are_used() -> None:
    model = models.create("small", CustomModel(Small), num_classes=3)
    params = quick_jit(partial(models.init_variables, model))(jax.random.key(0))["params"]
    assert (params["position"] == 0.5).all()
    assert (params["head"]["kernel"] == 0).all()
    assert params["head"]["bias"].shape == (3,)


def test_a_subclass_of_a_package_network_is_initialized_like_it() -> None:
    class WithGain(Basic):
        @nn.compact
        def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
            gain = self.param("gain", nn.initializers.constant(0.5), ())
            return gain * super().__call__(x, train=train)

    model = models.create("mine", CustomModel(WithGain))
    variables, expected = (
        quick_jit(partial(models.init_variables, network))(jax.random.key(3))
        for network in (model, models.create("basic"))
    )
    assert variables["params"].pop("gain") == 0.5
    chex.assert_trees_all_equal(variables, expected)


def test_options_set_fields_and_keep_those_of_an_instance() -> None:
    class Deep(Small):
        depth: int = 1
        width: int = 1

    model = models.create("deep", CustomModel(Deep(depth=3)), num_classes=7, width=2)
    assert model == Deep(num_classes=7, depth=3, width=2)


def test_a_module_that_fails_does_not_accept_the_size() -> None:
    class Fixed(Small):
        @nn.compact
        def __call__(self, x: jax.Array, train: bool) -> jax.Array:
            assert x.shape[1] == 32
            return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))

    model = models.create("fixed", CustomModel(Fixed))
    assert models.accepts_size(model, 32)
    assert not models.accepts_size(model, 16)


def test_summary_counts_everything_once() -> None:
    class Mixed(nn.Module):
        num_classes: int = 10

        @nn.compact
        def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
            x = nn.remat(nn.Conv)(6, (4, 4), strides=(4, 4), name="patches")(x).reshape(1, 64, 6)
            x = nn.Sequential([nn.Dense(6), nn.relu, nn.Dense(6)], name="mixer")(x)
            x = x @ self.param("mix", nn.initializers.ones, (6, 5))
            return nn.Dense(self.num_classes, name="head")(x.mean(1))

    rows = {row.name: row for row in summarize(Mixed())}
    assert rows["patches"].multiply_adds == 64 * 16 * 3 * 6
    assert [rows[f"Dense_{n}"].multiply_adds for n in (0, 1)] == [64 * 36, 64 * 36]
    assert (rows["Mixed"].parameters, rows["Mixed"].multiply_adds) == (30, 64 * 30)
    assert (rows["head"].configuration, rows["head"].parameters) == ("10 Neurons", 60)
    variables = models.variable_shapes(Mixed())
    total = sum(row.parameters for row in rows.values())
    assert total == models.count_parameters(variables["params"])


def test_summary_of_a_layer_that_takes_several_arrays() -> None:
    class Recurrent(nn.Module):
        num_classes: int = 10

        @nn.compact
        def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
            x = nn.RNN(nn.SimpleCell(3))(x.reshape(1, 32, 96))
            return nn.Dense(self.num_classes, name="head")(x[:, -1])

    parameters = models.count_parameters(models.variable_shapes(Recurrent())["params"])
    assert sum(row.parameters for row in summarize(Recurrent())) == parameters


SIGNATURE = "def __call__(self, x, *, train=False):"
LAST = 'return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="head")(x)'


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("MODEL = Tiny", "MODEL = 3", "its class is int"),
        ("MODEL = Tiny", "MODEL = lambda: Tiny()", "its class is function"),
        ("num_classes: int = 10", "classes: int = 10", "has no field num_classes"),
        (SIGNATURE, "def __call__(self, x):", "has no argument train"),
        (SIGNATURE, "def call(self, x, *, train=False):", "fails when it is called"),
        ("num_classes: int = 10", "num_classes: int\n    depth: int", "argument: 'depth'"),
        ("self.width,", "self.height,", 'no attribute "height" (line 13)'),
        (LAST, "return x", "returns float32 [2, 256] for 2 images"),
        (LAST, "return (x, x)", "returns a tuple"),
        (LAST, f"{LAST}.astype('bfloat16')", "returns bfloat16 [2, 10]"),
        (LAST, "self.variable('cache', 'x', lambda: x); " + LAST, "has variables in 'cache'"),
        ("(4, 4), strides", "(4, 4), param_dtype='bfloat16', strides", "params/conv/bias in bf"),
        (
            "x = nn.relu",
            "self.variable('batch_stats', 'n', lambda: x.sum()) if train else 0; x = nn.relu",
            "changes the structure of batch_stats when train=True",
        ),
    ],
)
def test_unsuitable_modules_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = tmp_path / "tiny.py"
    assert old in TINY
    file.write_text(TINY.replace(old, new))
    with pytest.raises(UserError) as error:
        CustomModel(module(file), "tiny", file).build("tiny", dtype=jnp.dtype("float32"))
    assert message in str(error.value)
    assert str(error.value).startswith(f"{file}: MODEL ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("small", {"dtype": jnp.bfloat16}, "has no field dtype, which train.precision sets: add"),
        ("small", {"dropout": 0.5}, "has no option dropout: remove the setting model.dropout"),
        ("small", {"widht": 2}, "has no option widht: remove the setting model.arguments.widht"),
        ("other", {}, "defines the network 'small', not 'other'"),
        ("basic", {}, "the built-in network basic"),
    ],
)
def test_missing_fields_and_other_names_are_refused(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as error:
        models.create(name, CustomModel(Small, "small"), **options)
    assert message in str(error.value)


def test_a_file_with_an_unsuitable_model_is_refused_before_data_is_loaded(
    run: Run, tmp_path: Path
) -> None:
    for old, new, message in (
        ("MODEL = Tiny", "MODEL = 3", "its class is int"),
        ("MODEL = Tiny", "", "no model 'tiny'"),
        ('"tiny"', '"resnet18"', "'resnet18'"),
    ):
        (tmp_path / "tiny.py").write_text(TINY.replace(old, new))
        # CIFAR-10 is missing here. If the data were loaded before the model is checked, the error
        # would name the missing data set instead.
        outcome = run("train", "tiny.py")
        assert outcome.code == 2
        assert message in outcome.err.splitlines()[-1]
        assert [path.name for path in tmp_path.iterdir()] == ["tiny.py"]


@pytest.mark.slow
def test_the_documented_example_works_with_every_command(run: Run, tmp_path: Path) -> None:
    text = DOCS.read_text().partition("my_vit.py")[2]
    source = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert source
    small = source[1].replace("width: int = 64", "width: int = 8")
    (tmp_path / "my_vit.py").write_text(small.replace("depth: int = 2", "depth: int = 1"))
    rows = json.loads(run("summary", "my_vit.py", "--json").out)
    outcome = run("train", "my_vit.py", *QUICK, "--workdir", "run", "--set", "epochs=1")
    assert outcome.code == 0, outcome.err
    result = json.loads(Path("run/result.json").read_text())
    assert result["parameters"] == sum(row["parameters"] for row in rows)

    code = ("--code", "my_vit.py")
    measured = json.loads(run("evaluate", "run", *code, "--json").out)
    assert measured["accuracy"] == result["test_accuracy"]
    model = module("my_vit.py")
    loaded = cifar_jax.load("run", model=model)
    Image.new("RGB", (40, 40), (99, 99, 99)).save("gray.png")
    (answer,) = json.loads(run("predict", "run", "gray.png", *code, "--json").out)
    assert answer["top"][0]["probability"] == pytest.approx(loaded.predict(["gray.png"]).max())
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    for kind, options in (("stablehlo", {}), ("safetensors", {"model": model})):
        outcome = run("export", "run", "--to", kind, "--output", f"vit.{kind}", *code)
        assert outcome.code == 0, outcome.err
        logits = cifar_jax.load(f"vit.{kind}", **options).logits(images)
        np.testing.assert_allclose(logits, loaded.logits(images), atol=1e-5)
    assert run("predict", "vit.safetensors", "gray.png").code == 2


def test_code_in_a_run_folder_is_executed_only_on_request(run: Run, copied: Path) -> None:
    copy, trap = copied / "run" / "code.py", copied / "trapped"
    assert copy.read_bytes() == (copied / "tiny.py").read_bytes()
    copy.write_text(f"{copy.read_text()}\nimport pathlib; pathlib.Path({str(trap)!r}).touch()")
    Image.new("RGB", (32, 32)).save(copied / "black.png")
    for command in (
        ["evaluate", "run"],
        ["predict", "run", "black.png"],
        ["export", "run", "--to", "stablehlo"],
    ):
        outcome = run(*command)
        assert outcome.code == 2
        assert outcome.err.count("\n") == 1
        assert "--code" in outcome.err
    with pytest.raises(UserError):
        cifar_jax.load(copied / "run")
    assert run("report", "run").code == 0
    # `train.init_from` reads only the weights of a run. The code of that run is not executed.
    init_from = ("--workdir", "other", "--set", "train.init_from=run")
    assert run("train", "tiny.py", *QUICK, *init_from).code == 0
    assert not trap.exists()
    assert run("evaluate", "run", "--code", "run/code.py").code == 0
    assert trap.exists()
    network: Any = cifar_jax.load("run", model=module("tiny.py"))
    assert (network.variables["batch_stats"]["bn"]["mean"] != 0).all()


def test_a_network_for_one_number_of_images_is_not_exported(run: Run, copied: Path) -> None:
    code = copied / "fixed.py"
    code.write_text(TINY.replace("x.shape[0]", "len(x)"))
    done = run("export", "run", "--to", "stablehlo", "--code", str(code))
    assert done.code == 2
    assert "write x.shape[0] instead of len(x)" in done.err.splitlines()[-1]


def test_code_other_than_the_trained_one_is_reported_or_refused(run: Run, copied: Path) -> None:
    assert not run("evaluate", "run", "--code", "tiny.py").err
    for file, old, new, code, message in (
        ("gelu.py", "nn.relu", "nn.gelu", 0, "gelu.py"),
        ("wide.py", "width: int = 4", "width: int = 5", 2, "do not fit the network"),
        (
            "other.py",
            'name="tiny"',
            'name="other"',
            2,
            "MODEL defines the network 'other', not 'tiny'",
        ),
        ("none.py", "MODEL = Tiny", "", 2, "none.py defines no MODEL"),
    ):
        assert old in TINY
        (copied / file).write_text(TINY.replace(old, new))
        outcome = run("evaluate", "run", "--code", file)
        assert outcome.code == code
        assert message in outcome.err


def test_the_seed_reaches_the_initialization(run: Run, tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text(TINY)
    digests = []
    for seed in ("0", "1"):
        # The learning rate 1e-46 is zero in float32, so the weights keep their initial values.
        settings = ("--set", "optimizer.lr=1e-46", "--seed", seed, "--workdir", seed)
        outcome = run("train", "tiny.py", *QUICK, *settings)
        assert outcome.code == 0, outcome.err
        digests.append(json.loads((tmp_path / seed / "result.json").read_text())["params_sha256"])
    assert digests[0] != digests[1]
