"""A model that a person's own config file defines: trained, used, and never run unasked."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image
from short_runs import files

import cifar_jax
from cifar_jax import catalog, cli, models
from cifar_jax.errors import UserError
from cifar_jax.models.custom import CustomModel
from cifar_jax.models.summary import summarise

DOCS = Path(__file__).parents[1] / "docs" / "use.md"
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


class Outcome:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Outcome]:
    """Call the command line in an empty folder, without CIFAR-10."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))

    def call(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = cli.run(arguments)
        out, err = capsys.readouterr()
        return Outcome(code, out, err)

    return call


def module(file: str | Path) -> Any:
    parts = catalog.load(str(file)).custom
    assert parts is not None
    return parts.model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tiny.py` and `run`, an epoch of it."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "tiny.py").write_text(TINY)
    arguments = ["train", str(folder / "tiny.py"), *QUICK, "--workdir", str(folder / "run")]
    assert cli.run(arguments) == 0
    return folder


@pytest.fixture
def there(trained: Path, tmp_path: Path) -> Path:
    """A copy of that, to work in."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_the_documented_example_goes_all_the_way(run: Any, tmp_path: Path) -> None:
    text = DOCS.read_text().partition("`my_vit.py`:")[2]
    source = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert source
    assert len([line for line in source[1].splitlines() if line]) <= 30
    quick = (
        source[1]
        .replace("width: int = 64", "width: int = 8")
        .replace("depth: int = 2", "depth: int = 1")
    )
    (tmp_path / "my_vit.py").write_text(quick)  # most of the time goes into compiling
    rows = json.loads(run("summary", "my_vit.py", "--json").out)

    train = ("train", "my_vit.py", *QUICK, "--workdir", "run", "--set")
    done = run(*train, "epochs=1")
    assert done.code == 0, done.err
    assert "my-vit seed 0: test accuracy" in done.out
    done = run(*train, "epochs=2")
    assert "goes on from step 4" in done.out
    assert "otherwise" not in done.out
    result = json.loads(Path("run/result.json").read_text())
    assert result["parameters"] == sum(row["parameters"] for row in rows)

    code = ("--code", "my_vit.py")
    measured = json.loads(run("evaluate", "run", *code, "--json").out)
    assert measured["accuracy"] == result["test_accuracy"]
    Image.new("RGB", (40, 40), (99, 99, 99)).save("grey.png")
    (answer,) = json.loads(run("predict", "run", "grey.png", *code, "--json").out)
    assert "my-vit" in run("report", "run").out

    expected = cifar_jax.load("run", model=module("my_vit.py"))
    assert answer["top"][0]["probability"] == pytest.approx(expected.predict(["grey.png"]).max())
    for kind in ("stablehlo", "safetensors"):
        done = run("export", "run", "--to", kind, "--output", f"vit.{kind}", *code)
        assert done.code == 0, done.err
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    for answers in (
        cifar_jax.load("vit.stablehlo"),
        cifar_jax.load("vit.safetensors", model=module("my_vit.py")),
    ):
        np.testing.assert_allclose(answers.logits(images), expected.logits(images), atol=1e-5)
    done = run("predict", "vit.safetensors", "grey.png")
    assert done.code == 2
    assert "--code" in done.err
    pytest.importorskip("jax2onnx", reason="needs the extra `export`")
    done = run("export", "run", "--to", "onnx", *code)
    assert done.code == 0, done.err


def test_a_folders_code_is_never_run_unasked(run: Any, there: Path) -> None:
    copy = there / "run" / "model.py"
    assert copy.read_bytes() == (there / "tiny.py").read_bytes()
    trap = there / "trapped"
    copy.write_text(f"{copy.read_text()}\nimport pathlib; pathlib.Path({str(trap)!r}).touch()")
    Image.new("RGB", (32, 32)).save(there / "black.png")
    for verb in (
        ["evaluate", "run"],
        ["predict", "run", "black.png"],
        ["export", "run", "--to", "stablehlo"],
    ):
        done = run(*verb)
        assert done.code == 2
        assert done.err.count("\n") == 1
        assert "--code run/model.py" in done.err
    with pytest.raises(UserError, match="hand over the model"):
        cifar_jax.load(there / "run")
    assert run("report", "run").code == 0
    assert run("evaluate", "run", "--code", "tiny.py").code == 0
    begin = ("train", "tiny.py", *QUICK, "--workdir", "other", "--set", "train.init_from=run")
    assert run(*begin).code == 0  # for which weights are enough
    assert not trap.exists()
    assert run("evaluate", "run", "--code", "run/model.py").code == 0
    assert trap.exists()


def test_what_is_no_change_of_the_model_is_none(run: Any, there: Path) -> None:
    file = there / "tiny.py"
    text = file.read_text().replace('"""A conv', '"""Just a conv').replace("epochs=1", "epochs=2")
    file.write_text(text.replace("x = nn.relu", "# now\n        x =  nn.relu"))
    done = run("train", "tiny.py", *QUICK, "--workdir", "run")
    assert done.code == 0, done.err
    assert "goes on from step 4" in done.out
    assert "otherwise" not in done.out + run("evaluate", "run", "--code", "tiny.py").err
    assert (there / "run" / "model.py").read_bytes() == file.read_bytes()


def test_a_change_of_the_model_is_told(run: Any, there: Path) -> None:
    file = there / "tiny.py"
    file.write_text(file.read_text().replace("nn.relu", "nn.gelu"))
    assert "otherwise" in run("evaluate", "run", "--code", "tiny.py").err
    done = run("train", "tiny.py", *QUICK, "--workdir", "run", "--set", "epochs=2")
    assert done.code == 0, done.err
    assert "tiny.py defines the model otherwise" in done.out
    assert "tiny.py defines the model otherwise" in (there / "run" / "log.txt").read_text()
    assert "otherwise" not in run("evaluate", "run", "--code", "tiny.py").err


@pytest.mark.parametrize(
    ("old", "new"),
    [("width: int = 4", "width: int = 5"), ('name="bn"', 'name="norm"'), (', name="conv"', "")],
)
def test_weights_that_no_longer_fit_are_refused(run: Any, there: Path, old: str, new: str) -> None:
    file = there / "tiny.py"
    file.write_text(file.read_text().replace(old, new))
    before = files(there / "run")
    done = run("train", "tiny.py", *QUICK, "--workdir", "run", "--set", "epochs=2")
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "tiny.py defines the model otherwise" in done.err
    assert "of another network; choose another --workdir" in done.err
    assert files(there / "run") == before
    done = run("evaluate", "run", "--code", "tiny.py")
    assert done.code == 2
    assert "of another network" in done.err


def test_the_code_of_another_model_is_refused(run: Any, there: Path) -> None:
    (there / "other.py").write_text(TINY.replace('name="tiny"', 'name="other"'))
    (there / "none.py").write_text(TINY.replace("MODEL = Tiny", "").replace('"tiny"', '"basic"'))
    for code, words in {
        "other.py": "other.py: MODEL is named 'other', not 'tiny'",
        "none.py": "none.py has no MODEL",
        "absent.py": "no experiment file absent.py",
    }.items():
        done = run("evaluate", "run", "--code", code)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert words in done.err
    done = run("predict", "net-bn-gap", "x.png", "--code", "tiny.py")
    assert "'net-bn-gap' is a network of the package's" in done.err


def test_batch_norm_of_linen_learns_its_statistics(trained: Path) -> None:
    network: Any = cifar_jax.load(trained / "run", model=module(trained / "tiny.py"))
    assert (network.variables["batch_stats"]["bn"]["mean"] != 0).all()


def test_a_files_model_gives_way_to_one_of_the_package(run: Any, tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text(TINY)
    done = run("train", "tiny.py", *QUICK, "--set", "model.name=basic", "--workdir", "run")
    assert done.code == 0, done.err
    assert run("evaluate", "run").code == 0
    assert not (tmp_path / "run" / "model.py").exists()


class Special(nn.Module):
    num_classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = x.reshape(x.shape[0], -1)[:, :8]
        x = x + self.param("position", nn.initializers.constant(0.5), (8,))
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="head")(x)


def test_initializers_are_the_modules_own() -> None:
    model = models.create("special", CustomModel(Special), num_classes=3)
    params = models.init_variables(model, jax.random.key(0))["params"]
    assert (params["position"] == 0.5).all()
    assert (params["head"]["kernel"] == 0).all()
    assert params["head"]["bias"].shape == (3,)


def test_whatever_a_module_raises_it_does_not_take_that_size() -> None:
    class Fixed(Special):
        @nn.compact
        def __call__(self, x: jax.Array, train: bool) -> jax.Array:
            assert x.shape[1] == 32
            return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))

    model = models.create("fixed", CustomModel(Fixed))
    assert models.takes(model, 32)
    assert not models.takes(model, 16)


def test_fields_of_an_instance_are_kept() -> None:
    class Deep(Special):
        depth: int = 1

    assert models.create("deep", CustomModel(Deep(depth=3)), num_classes=7) == Deep(
        num_classes=7, depth=3
    )


def test_summary_counts_everything_once(tmp_path: Path) -> None:
    class Mixed(nn.Module):
        num_classes: int = 10

        @nn.compact
        def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
            x = nn.remat(nn.Conv)(6, (4, 4), strides=(4, 4), name="patches")(x).reshape(1, 64, 6)
            x = nn.Sequential([nn.Dense(6), nn.relu, nn.Dense(6)], name="mixer")(x)
            x = x @ self.param("mix", nn.initializers.ones, (6, 5))
            return nn.Dense(self.num_classes, name="head")(x.mean(1))

    rows = {row.name: row for row in summarise(Mixed())}
    assert rows["patches"].multiply_adds == 64 * 16 * 3 * 6
    assert [rows[f"Dense_{n}"].multiply_adds for n in (0, 1)] == [64 * 36, 64 * 36]
    assert (rows["Mixed"].parameters, rows["Mixed"].multiply_adds) == (30, 64 * 30)
    assert (rows["head"].configuration, rows["head"].parameters) == ("Dense 10", 60)
    variables = models.variable_shapes(Mixed())
    counted = sum(row.parameters for row in rows.values())
    assert counted == models.count_parameters(variables["params"])


SIGNATURE = "def __call__(self, x, *, train=False):"
LAST = 'return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="head")(x)'


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("MODEL = Tiny", "MODEL = 3", "not of type int"),
        ("MODEL = Tiny", "MODEL = dict", "not of type dict"),
        ("MODEL = Tiny", "MODEL = lambda: Tiny()", "not of type function"),
        ("MODEL = Tiny", "", "no model 'tiny'"),
        ('"tiny"', '"resnet18"', "names the package's 'resnet18'"),
        ("num_classes: int = 10", "classes: int = 10", "has no num_classes"),
        (SIGNATURE, "def __call__(self, x):", "takes no train"),
        (SIGNATURE, "def call(self, x, *, train=False):", "cannot be called"),
        ("num_classes: int = 10", "num_classes: int\n    depth: int", "argument: 'depth'"),
        ("self.width,", "self.height,", 'no attribute "height" (line 13)'),
        (LAST, "return x", "gives float32 [2, 256] of 2 images"),
        (LAST, "return (x, x)", "gives a tuple"),
        (LAST, f"{LAST}.astype('bfloat16')", "gives bfloat16 [2, 10]"),
        (LAST, f"{LAST}[0]", "gives float32 [10]"),
        (LAST, "self.variable('cache', 'x', lambda: x); " + LAST, "has variables in 'cache'"),
        ("(4, 4), strides", "(4, 4), param_dtype='bfloat16', strides", "params/conv/bias in bf"),
        (
            "x = nn.relu",
            "self.variable('batch_stats', 'n', lambda: x.sum()) if train else 0; x = nn.relu",
            "has other batch_stats with train=True",
        ),
        ("epochs=1", "epochs=1, train=Train(precision='bfloat16')", "has no dtype"),
        ('name="tiny"', 'name="tiny", dropout=0.5', "has no dropout"),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused_before_all_else(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, words: str
) -> None:
    from cifar_jax.training import setup

    monkeypatch.setattr(setup, "load", lambda name: pytest.fail("data was loaded"))
    text = TINY.replace("import Config,", "import Config, Train,")
    assert old in text
    (tmp_path / "tiny.py").write_text(text.replace(old, new))
    done = run("train", "tiny.py", *QUICK)
    assert done.code == 2
    assert words in done.err
    assert done.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.py"]
