"""Test that imported PyTorch ResNets give PyTorch's logits, and that no code in a file is run."""

import argparse
import json
import os
import pickle
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import make_torch_resnet as recorded
from safetensors.numpy import load_file, save_file

import cifar_jax
from cifar_jax import cli, data, models
from cifar_jax.config import Model
from cifar_jax.data import Split, cifar10
from cifar_jax.errors import UserError
from cifar_jax.inference import torch_names
from cifar_jax.inference.evaluate import evaluate
from cifar_jax.inference.exports import export
from cifar_jax.inference.load import pretrained
from cifar_jax.inference.model import TrainedNetwork
from cifar_jax.inference.state_dict import read_state_dict
from cifar_jax.inference.torch_weights import import_torch
from cifar_jax.runs.schemas import NetworkCard

RECORD = json.loads((Path(recorded.__file__).parent / "torch_resnet.json").read_text())["networks"]


def state_dict(name: str, spelling: str = "pytorch-cifar") -> dict[str, np.ndarray]:
    """Return the weights for which PyTorch's logits are recorded, by parameter name."""
    tensors = {
        key: recorded.parameter(key, tuple(shape)) if shape else np.int64(0)[None]
        for key, shape in RECORD[name]["shapes"].items()
    }
    prefix, shortcut, last = {
        "pytorch-cifar": ("", "shortcut", "linear"),
        "torchvision": ("module.", "downsample", "fc"),
        "stem-pool": ("encoder.", "shortcut", "fc"),
    }[spelling]
    return {
        prefix + key.replace("shortcut", shortcut).replace("linear", last): value
        for key, value in tensors.items()
    }


@pytest.mark.parametrize(
    ("name", "spelling"),
    [
        ("resnet10", "pytorch-cifar"),
        ("resnet10", "torchvision"),
        ("resnet10", "stem-pool"),
        pytest.param("resnet18", "pytorch-cifar", marks=pytest.mark.slow),
    ],
)
def test_an_imported_network_gives_pytorchs_logits(
    name: str, spelling: str, tmp_path: Path
) -> None:
    file, stem_pool = tmp_path / "weights.safetensors", spelling == "stem-pool"
    save_file(state_dict(name, spelling), file)
    import_torch(file, name, tmp_path / "run", stem_pool=stem_pool)
    network: Any = cifar_jax.load(tmp_path / "run")
    images = jnp.asarray(recorded.images().transpose(0, 2, 3, 1))
    logits = network.module.apply(network.variables, images, train=False)
    expected = np.array(RECORD[name]["stem_pool_logits" if stem_pool else "logits"])
    np.testing.assert_allclose(logits, expected, atol=2e-5 * np.abs(expected).max())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "weights.safetensors"]


@pytest.mark.parametrize("name", ["resnet10", pytest.param("resnet18", marks=pytest.mark.slow)])
def test_an_imported_resnet_is_exported_with_the_same_names(name: str, tmp_path: Path) -> None:
    original = state_dict(name)
    save_file(original, tmp_path / "a.safetensors")
    network = import_torch(tmp_path / "a.safetensors", name, tmp_path / "run").network
    exported = torch_names.to_torch(name, network.variables)
    counters = {key for key in original if key.endswith("num_batches_tracked")}
    assert exported.keys() == original.keys() - counters
    for key, array in exported.items():
        np.testing.assert_array_equal(array, original[key], key)


@pytest.mark.parametrize(
    ("name", "options"),
    [("basic", {}), ("speednet", {"arguments": {"filters": 16}})],
)
def test_an_export_for_pytorch_comes_back_exactly(
    name: str, options: dict[str, Any], tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    card = cifar_jax.load("basic").card
    changes = {
        "model": NetworkCard(name=name, num_classes=3, **options),
        "classes": ["a", "b", "c"],
    }
    changes |= {"input_shape": [36, 36, 3], "mean": [0.1, 0.2, 0.3], "white": 4095}
    module = models.create(name, num_classes=3, **options.get("arguments", {}))
    variables = models.init_variables(module, jax.random.key(0), 36)
    network = TrainedNetwork(card.model_copy(update=changes), variables, "the run")
    export(network, "torch", tmp_path / "a.safetensors")
    code, out, _ = call("import-torch", "a.safetensors", "--model", name, "--workdir", "run")
    assert code == 0
    assert "From the model card in the file, and from the options: images of 36×36 pixels; m" in out
    back = cifar_jax.load(tmp_path / "run")
    assert isinstance(back, TrainedNetwork)
    jax.tree.map(np.testing.assert_array_equal, back.variables, network.variables)
    for field in ("model", "classes", "input_shape", "mean", "std", "white", "tta"):
        assert getattr(back.card, field) == getattr(network.card, field)
    code, _, error = call("predict", "a.safetensors", "image.png")
    assert (code, "is for PyTorch: convert it with `cifar-jax import-torch`" in error) == (2, True)
    code, _, error = call("import-torch", "a.safetensors", "--model", "net")
    assert (code, error) == (2, f"cifar-jax: a.safetensors is a {name}: add --model {name}\n")
    if name == "speednet":
        # `load_file` reads the tensors without the model card.
        tensors = load_file(tmp_path / "a.safetensors")
        save_file(tensors | {"stage1_bn1.weight": np.full(64, 2, np.float32)}, "b.safetensors")
        words = ("import-torch", "b.safetensors", "--model", "speednet", "--classes", "a,b,c")
        code, _, error = call(*words)
        assert (code, "values other than 1 in `stage1_bn1.weight`" in error) == (2, True)


@pytest.mark.parametrize(
    "name",
    [
        "basic",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("net-attention", "speednet")),
    ],
)
def test_pytorch_loads_an_export_and_gives_the_same_logits(
    name: str, torch: Any, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    from benchmarks import torch_models

    model = cifar_jax.load(make_run(tmp_path / "run", name))
    export(model, "torch", tmp_path / "a.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    network = (torch_models.MODELS | torch_models.OTHER_MODELS)[name]().eval()
    state = load_file(tmp_path / "a.safetensors")
    network.load_state_dict({key: torch.from_numpy(array) for key, array in state.items()})
    normalized = (images / np.float32(255) - np.float32(model.card.mean)) / model.card.std
    with torch.no_grad():
        logits = network(torch.from_numpy(np.float32(normalized).transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(model.logits(images), logits, atol=1e-5)


def test_the_command_writes_a_run_folder_that_others_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, run = tmp_path / "weights.safetensors", tmp_path / "run"
    save_file(state_dict("resnet10"), file)
    digits = data.load("digits")
    words = ["import-torch", str(file), "--model", "resnet10", "--workdir", str(run)]
    words += ["--classes", ", ".join(digits.classes), "--normalization", "half", "--stem-pool"]
    assert cli.run([*words, "--std", "1", "1", "1"]) == 2
    assert not run.exists()
    assert cli.run(words) == 0
    out = capsys.readouterr().out
    assert "weights do not show it: max-pooling after the first" in out
    assert "mean 0.5 0.5 0.5; std 0.5 0.5 0.5\nAccuracy not measured" in out
    card = cifar_jax.load(run).card
    assert (card.mean, card.std) == ([0.5] * 3, [0.5] * 3)
    assert (card.imported_from, card.model.arguments) == (file.name, {"stem_pool": True})
    assert sum(layer.parameters for layer in card.layers) == 4_903_242
    assert pretrained(run).variables["params"]["conv1"]["kernel"].shape == (3, 3, 3, 64)
    with pytest.raises(UserError, match="imported weights, and does not say which images"):
        evaluate(run)
    config = run / "config.json"
    config.write_text(config.read_text().replace('"cifar10"', '"digits"'))
    result = evaluate(run)
    assert (result.images, result.epoch) == (360, 0)
    assert 0 <= result.scores.accuracy < 40


def test_a_network_without_the_pooling_of_its_pretrained_weights_is_refused(tmp_path: Path) -> None:
    save_file(state_dict("resnet10", "stem-pool"), tmp_path / "weights.safetensors")
    run = tmp_path / "run"
    import_torch(tmp_path / "weights.safetensors", "resnet10", run, stem_pool=True)
    assert pretrained(run, Model(name="resnet10", arguments={"stem_pool": True}))
    # The default of `pooling` is "max".
    assert pretrained("net-bn-gap", Model(name="net-bn-gap", pooling="max"))
    with pytest.raises(UserError, match=r"trained with stem_pool True, but .* stem_pool False"):
        pretrained(run, Model(name="resnet10"))


@pytest.mark.parametrize("prefix", ["", "net.", "_orig_mod.student.module."])
def test_only_the_network_is_imported_from_its_surroundings(prefix: str, tmp_path: Path) -> None:
    tensors: dict[str, Any] = {
        f"{prefix}{key.replace('layer1.', 'layer1._checkpoint_wrapped_module.')}": value
        for key, value in state_dict("resnet10").items()
    }
    file, folder = tmp_path / "weights.safetensors", tmp_path / "run"
    others = {"best_accuracy.value": np.array([-np.inf]), "_orig_mod.n_averaged": np.zeros(1)}
    save_file(tensors | (others if prefix else {}), file)
    imported = import_torch(file, "resnet10", folder)
    assert imported.ignored == (("best_accuracy.value",) if prefix else ())
    kernel = imported.network.variables["params"]["conv1"]["kernel"]
    np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), tensors[f"{prefix}conv1.weight"])
    teacher = {f"teacher.{key}": value for key, value in state_dict("resnet10").items()}
    save_file(tensors | teacher, file)
    with pytest.raises(UserError, match="holds several networks, with the first layers `"):
        import_torch(file, "resnet10", tmp_path / "second")


@pytest.mark.parametrize("is_trained", [True, False])
def test_the_accuracy_of_the_import_is_printed_with_a_warning_if_it_is_low(
    is_trained: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_file(state_dict("resnet10"), tmp_path / "weights.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), np.uint8)
    answers = import_torch(
        tmp_path / "weights.safetensors", "resnet10", tmp_path / "first"
    ).network.predict(images)
    labels = (answers.argmax(-1) + (0 if is_trained else 1)) % 10
    dataset = data.load("digits")._replace(test=Split(images, labels))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(data, "load", {"cifar10": dataset}.get)
    words = ["import-torch", str(tmp_path / "weights.safetensors"), "--model", "resnet10"]
    assert cli.run([*words, "--workdir", str(tmp_path / "absent")]) == 0
    assert "CIFAR-10 is not on this machine" in capsys.readouterr().out
    cifar10.folder(tmp_path).mkdir(parents=True)
    assert cli.run([*words, "--workdir", str(tmp_path / "run")]) == 0
    out, error = capsys.readouterr()
    assert f"1,000 test images of CIFAR-10: {100 if is_trained else 0}.0 %" in out
    assert ("0.0 % is far below" in error) == (not is_trained)


def test_safetensors_are_read_without_pytorch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    file, values = tmp_path / "a.safetensors", np.arange(4.0)
    tensors = {"_orig_mod.module.fc.weight": values.astype(jnp.bfloat16), "fc.bias": values}
    save_file(tensors | {"bn.num_batches_tracked": np.ones(1, np.int64)}, file)
    arrays = read_state_dict(file).tensors
    assert {name: array.dtype for name, array in arrays.items()} == {
        "fc.weight": np.float32,
        "fc.bias": np.float32,
    }
    np.testing.assert_array_equal([*arrays.values()], [values, values])


def test_a_pth_file_needs_a_safe_version_of_pytorch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.pth"
    file.write_bytes(b"PK\x03\x04")
    for torch, message in (
        (None, r"needs PyTorch: pip install 'cifar-jax\[torch\]'"),
        (SimpleNamespace(__version__="2.5.1+cpu"), r"needs PyTorch 2\.6 or newer"),
    ):
        monkeypatch.setitem(sys.modules, "torch", torch)
        with pytest.raises(UserError, match=message):
            read_state_dict(file)


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="needs the extra `torch`")


@pytest.fixture
def network(torch: Any) -> Any:
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    network.load_state_dict(network.state_dict() | {"0.bias": torch.arange(2.0)})
    return network


class Options(dict):
    """A subclass of dict that PyTorch refuses to load."""


@pytest.mark.parametrize("key", ["net", "cnn", "nested", "flat", "list", "legacy", "average"])
def test_a_state_dict_is_found_in_a_training_checkpoint(
    torch: Any, network: Any, key: str, tmp_path: Path
) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.zeros(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    state = network.state_dict()
    other = {"optimizer": optimizer.state_dict(), "args": argparse.Namespace(path=tmp_path)}
    other |= {"accuracy": np.float64(93.1), "losses": np.arange(3), "class_weight": torch.ones(3)}
    other |= {"scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [1])}
    other |= {"log": defaultdict(list, {"loss": [1]}), "options": Options(lr=0.1)}
    content: Any = {
        "net": {"net": state, "ema": {"shadow": state}} | other,
        "cnn": {"cnn": state} | other,
        "nested": {"checkpoint": {"model": {"state_dict": state}}} | other,
        "flat": state | other,
        "list": [3, {"a": {"b": ({"state": state},)}} | other],
        "legacy": {"model": state} | other,
        "average": torch.optim.swa_utils.AveragedModel(network).state_dict(),
    }[key]
    file = tmp_path / "checkpoint.pth"
    torch.save(content, file, _use_new_zipfile_serialization=key != "legacy")
    tensors = read_state_dict(file).tensors
    names = {name for name in state if not name.endswith("num_batches_tracked")}
    assert tensors.keys() - {"class_weight"} == names
    for name in names:
        np.testing.assert_array_equal(tensors[name], state[name].numpy())


def test_tensors_of_every_kind_become_float32(torch: Any, tmp_path: Path) -> None:
    matrix = torch.arange(12.0).reshape(3, 4)
    tensors = {"weight": torch.nn.Parameter(matrix.T), "part": matrix[1:, 1:3]}
    tensors |= {kind: getattr(matrix, kind)() for kind in ("bfloat16", "half", "double")}
    tensors |= {"sparse": matrix.to_sparse(), "negated": torch.complex(matrix, matrix).conj().imag}
    torch.save(tensors, tmp_path / "a.pth")
    for key, array in read_state_dict(tmp_path / "a.pth").tensors.items():
        assert array.dtype == np.float32
        expected = tensors[key].detach().float().to_dense().resolve_neg()
        np.testing.assert_array_equal(array, expected.numpy())


class Attack:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("executed"),))


class Shell:
    def __reduce__(self) -> Any:
        return (os.system, ("touch executed",))


class Command(Shell):
    def __reduce__(self) -> Any:
        return (subprocess.getoutput, ("touch executed",))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda network: network,
            r"holds a whole torch\.nn\.\S*Sequential object, not a state dict",
        ),
        (lambda network: {"model": network}, r"no state dict; .* \(model is a whole torch\.nn\."),
        (lambda network: {"net": network.state_dict(), "x": Attack()}, "could run code"),
        (lambda network: {"net": network.state_dict(), "x": Shell()}, r"of type posix\.system"),
        (
            lambda network: {
                f"{prefix}{key}": value
                for prefix in ("", "module.")
                for key, value in network.state_dict().items()
            },
            r"several networks, because \S* occurs .* such as module\.",
        ),
        (lambda network: {"epoch": 3, "lr": 0.1}, "no state dict; its keys are `epoch`, `lr`"),
        (
            lambda network: {"a": network.state_dict(), "b": network.state_dict()},
            "several state dicts, under the keys a, b",
        ),
        (lambda network: [*network.parameters()], "of type list, not a state dict"),
    ],
)
def test_other_files_of_torch_save_are_refused_and_nothing_runs(
    torch: Any,
    network: Any,
    make: Callable[[Any], Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(make(network), "bad.pth")
    with pytest.raises(UserError, match=message) as error:
        read_state_dict(Path("bad.pth"))
    assert str(error.value).endswith("torch.save(model.state_dict(), 'weights.pth')")
    assert "\n" not in str(error.value)
    torch.save({"net": network.state_dict(), "x": Command()}, "other.pth")
    assert read_state_dict(Path("other.pth")).tensors  # The object `Command` is ignored.
    assert not Path("executed").exists()


@pytest.mark.parametrize("is_legacy", [False, True])
def test_a_pytorch_file_is_recognized_where_a_trained_model_is_expected(
    torch: Any, network: Any, is_legacy: bool, tmp_path: Path
) -> None:
    file = tmp_path / "weights.bin"
    torch.save(network, file, _use_new_zipfile_serialization=not is_legacy)
    for load in (cifar_jax.load, pretrained):
        with pytest.raises(UserError, match="is a PyTorch file: convert it with `cifar-jax import"):
            load(file)
    with pytest.raises(UserError, match=r"holds a whole .* object, not a state dict"):
        read_state_dict(file)


def test_torchscript_is_refused_without_a_warning(
    torch: Any, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pth")
    recwarn.clear()  # Saving warns that TorchScript is deprecated.
    with pytest.raises(UserError, match="is a TorchScript program"):
        read_state_dict(tmp_path / "script.pth")
    assert not recwarn.list


def test_a_damaged_file_is_refused_in_one_line(torch: Any, network: Any, tmp_path: Path) -> None:
    file, tensors = tmp_path / "a.pth", tmp_path / "a.safetensors"
    torch.save(network.state_dict(), file)
    save_file({"fc.weight": np.ones(2)}, tensors)
    whole = file.read_bytes()
    changed = whole.replace(network[1].weight.detach().numpy().tobytes(), bytes(8))
    for damaged in (whole[:500], changed, b"hello", tensors.read_bytes()[:-3]):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged") as error:
            read_state_dict(file)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "run `git lfs pull`"),
        (b'{"weight_map": {}}', "is a JSON file"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        (b"\x1f\x8b\x08", "is compressed with gzip: unpack it"),
        (pickle.dumps({"fc.weight": np.ones(2)}), "is a Python pickle, but not a file of torch"),
    ],
)
def test_a_file_without_weights_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(content)
    for read in (read_state_dict, cifar_jax.load, pretrained):
        with pytest.raises(UserError, match=message):
            read(tmp_path / "model.pth")


@pytest.mark.parametrize(
    ("name", "changes", "options", "message"),
    [
        ("resnet10", {"layer2.0.conv1.weight": None}, {}, r"it lacks `layer2\.0\.conv1\.weight"),
        ("resnet10", {"extra": np.zeros(1)}, {}, "has an unexpected `extra`"),
        (
            "resnet10",
            {"conv1.weight": np.ones((64, 2, 3, 3), "f4")},
            {},
            r"conv1\.weight is \[64, 2, 3, 3\]",
        ),
        (
            "resnet10",
            {"linear.weight": None},
            {},
            r"no last layer .* it holds `bn1\.bias`, .*, `linear\.bias` \(61 in all\)",
        ),
        (
            "resnet10",
            {"linear.weight": np.ones((11, 512), "f4"), "linear.bias": np.ones(11, "f4")},
            {},
            "11 classes, but their names are unknown: give 11",
        ),
        ("resnet10", {"linear.weight": np.ones((512, 10), "f4")}, {}, r"needs \[10, 512\]"),
        ("resnet10", {"bn1.weight": np.ones(64, "i1")}, {}, "bn1.weight as int8"),
        ("resnet10", {"bn1.running_var": -np.ones(64, "f4")}, {}, "a negative variance in bn1"),
        ("resnet10", {"bn1.bias": np.full(64, np.nan, "f4")}, {}, "NaN or infinite values in bn1"),
        ("resnet10", {"conv1.weight": np.zeros((64, 3, 3, 3), "f4")}, {}, "only zeros in conv1"),
        ("resnet10", {}, {"classes": ["a", "b"]}, "10 classes, but --classes names 2"),
        ("resnet10", {}, {"std": (1.0, 0.0, 1.0)}, "std"),
        ("resnet18", {}, {}, "it lacks `layer"),
        (
            "basic",
            {},
            {},
            r"no last layer `fc3` next to a first layer `conv1`, so it is not a basic; ",
        ),
        ("vgg", {}, {}, "--model must be basic, net, .*, not 'vgg'"),
    ],
)
def test_another_network_leaves_no_folder(
    name: str, changes: dict, options: dict, message: str, tmp_path: Path
) -> None:
    tensors = state_dict("resnet10") | changes
    file, folder = tmp_path / "weights.safetensors", tmp_path / "run"
    save_file({key: value for key, value in tensors.items() if value is not None}, file)
    with pytest.raises(UserError, match=message):
        import_torch(file, name, folder, **options)
    assert list(tmp_path.iterdir()) == [file]
