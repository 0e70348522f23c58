"""PyTorch's ResNets for CIFAR are imported with the same logits, and without running any code."""

import argparse
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import make_torch_resnet as recorded
from safetensors.numpy import save_file

import cifar_jax
from cifar_jax import cli, data
from cifar_jax.errors import UserError
from cifar_jax.inference.evaluate import evaluate
from cifar_jax.inference.load import weights
from cifar_jax.inference.state_dict import read_state_dict
from cifar_jax.inference.torch_weights import import_torch

FIXTURES = Path(__file__).parents[1] / "fixtures"
RECORD = json.loads((FIXTURES / "torch_resnet.json").read_text())["networks"]


def state_dict(name: str) -> dict[str, np.ndarray]:
    """The weights that PyTorch's recorded logits belong to."""
    return {
        key: recorded.parameter(key, tuple(shape)) if shape else np.int64(0)[None]
        for key, shape in RECORD[name]["shapes"].items()
    }


def as_torchvision(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        f"module.{key}".replace("shortcut", "downsample").replace("linear", "fc"): value
        for key, value in tensors.items()
    }


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="needs the extra `torch`")


@pytest.mark.parametrize(
    ("name", "spelling"),
    [
        ("resnet10", "pytorch-cifar"),
        ("resnet10", "torchvision"),
        pytest.param("resnet18", "pytorch-cifar", marks=pytest.mark.slow),
    ],
)
def test_an_imported_network_gives_pytorchs_logits(
    name: str, spelling: str, tmp_path: Path
) -> None:
    tensors = state_dict(name)
    file = tmp_path / "weights.safetensors"
    save_file(tensors if spelling == "pytorch-cifar" else as_torchvision(tensors), file)
    import_torch(file, name, tmp_path / "run")
    network: Any = cifar_jax.load(tmp_path / "run")
    images = jnp.asarray(recorded.images().transpose(0, 2, 3, 1))
    logits = network.module.apply(network.variables, images, train=False)
    expected = np.array(RECORD[name]["logits"])
    np.testing.assert_allclose(logits, expected, atol=2e-5 * np.abs(expected).max())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "weights.safetensors"]


def test_the_command_writes_a_run_folder_that_others_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, run = tmp_path / "weights.safetensors", tmp_path / "run"
    save_file(state_dict("resnet10"), file)
    digits = data.load("digits")
    words = ["import-torch", str(file), "--model", "resnet10", "--workdir", str(run)]
    words += ["--classes", ", ".join(digits.classes)]
    words += ["--mean", *map(str, digits.mean), "--std", *map(str, digits.std)]
    assert cli.run(words) == 0
    assert "resnet10 with 10 classes, written to" in capsys.readouterr().out
    card = cifar_jax.load(run).card
    assert (card.mean, card.std) == (list(digits.mean), list(digits.std))
    assert card.imported_from == "weights.safetensors"
    assert sum(layer.parameters for layer in card.layers) == 4_903_242
    assert weights(run)["params"]["conv1"]["kernel"].shape == (3, 3, 3, 64)
    with pytest.raises(UserError, match="other classes than the data set cifar10"):
        evaluate(run)
    config = run / "config.json"
    config.write_text(config.read_text().replace('"cifar10"', '"digits"'))
    result = evaluate(run)
    assert (result.images, result.epoch) == (360, 0)
    assert 0 <= result.accuracy < 40


def test_safetensors_are_read_without_pytorch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    file, values = tmp_path / "a.safetensors", np.arange(4.0)
    save_file(
        {
            "_orig_mod.module.fc.weight": values.astype(jnp.bfloat16),
            "fc.bias": values,
            "bn.num_batches_tracked": np.ones(1, np.int64),
        },
        file,
    )
    tensors = read_state_dict(file)
    assert tensors.keys() == {"fc.weight", "fc.bias"}
    for array in tensors.values():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, values)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    file = tmp_path / "a.safetensors"
    save_file({"fc.weight": np.ones(2, np.float32), "fc.bias": np.array([1, value])}, file)
    with pytest.raises(UserError, match=r"NaN or infinite values in fc\.bias"):
        read_state_dict(file)


def test_a_pth_file_needs_a_safe_version_of_pytorch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.pth"
    file.write_bytes(b"PK\x03\x04")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"takes PyTorch: pip install 'cifar-jax\[torch\]'"):
        read_state_dict(file)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(__version__="2.5.1+cpu"))
    with pytest.raises(UserError, match=r"takes PyTorch 2\.6 or newer, and this is 2\.5\.1"):
        read_state_dict(file)


@pytest.fixture
def network(torch: Any) -> Any:
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    for key, value in network.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.tensor(recorded.parameter(key, tuple(value.shape))))
    return network


@pytest.mark.parametrize("wrapper", ["net", "state_dict", "weights", None, "legacy", "average"])
def test_a_state_dict_is_found_in_a_training_checkpoint(
    torch: Any, network: Any, wrapper: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "checkpoint.pth"
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.zeros(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    state = network.state_dict()
    content = {
        "optimizer": optimizer.state_dict(),
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 3).state_dict(),
        "args": argparse.Namespace(lr=0.1),
        "accuracy": np.float64(93.1),
        "epoch": np.int64(3),
    }
    if wrapper == "average":
        content = torch.optim.swa_utils.AveragedModel(network).state_dict()
    elif wrapper in (None, "legacy"):
        content = state
    else:
        content[wrapper] = state
    torch.save(content, file, _use_new_zipfile_serialization=wrapper != "legacy")
    tensors = read_state_dict(file)
    assert tensors.keys() == {key for key in state if not key.endswith("num_batches_tracked")}
    for key, array in tensors.items():
        np.testing.assert_array_equal(array, state[key].numpy())


def test_tensors_of_every_kind_become_float32(torch: Any, tmp_path: Path) -> None:
    matrix = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "weight": torch.nn.Parameter(matrix.T),
        "part": matrix[1:, 1:3],
        "bfloat16": matrix.bfloat16(),
        "half": matrix.half(),
        "double": matrix.double(),
    }
    torch.save(tensors, tmp_path / "a.pth")
    for key, array in read_state_dict(tmp_path / "a.pth").items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, tensors[key].detach().float().numpy())


class Attack:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda torch, network: network, r"holds a torch\.nn\.\S*Sequential.* could run code"),
        (lambda torch, network: {"net": network.state_dict(), "x": Attack()}, "could run code"),
        (lambda torch, network: {"epoch": 3, "lr": 0.1}, "no state dict; its keys are epoch, lr"),
        (
            lambda torch, network: {"a": network.state_dict(), "b": network.state_dict()},
            "several state dicts; its keys are a, b",
        ),
        (lambda torch, network: torch.zeros(3), "holds a Tensor, not a state dict"),
    ],
)
def test_other_files_of_torch_save_are_refused_and_nothing_runs(
    torch: Any,
    network: Any,
    content: Any,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content(torch, network), "bad.pth")
    with pytest.raises(UserError, match=message) as error:
        read_state_dict(Path("bad.pth"))
    assert r"Save the weights alone: torch.save(model.state_dict()" in str(error.value)
    assert "\n" not in str(error.value)
    assert not Path("executed").exists()


def test_a_damaged_file_is_refused_in_one_line(torch: Any, network: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    torch.save(network.state_dict(), file)
    content = file.read_bytes()
    tensors = tmp_path / "a.safetensors"
    save_file({"fc.weight": np.ones(2)}, tensors)
    for damaged in (content[: len(content) // 2], b"", b"hello", tensors.read_bytes()[:-3]):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged") as error:
            read_state_dict(file)
        assert "\n" not in str(error.value)


def test_another_network_leaves_no_folder(tmp_path: Path) -> None:
    tensors = state_dict("resnet10")
    cut = {key: value for key, value in tensors.items() if key != "layer2.0.conv1.weight"}
    narrow = tensors | {"conv1.weight": tensors["conv1.weight"][:, :, 1:]}
    eleven = tensors | {"linear.weight": np.zeros((11, 512), np.float32)}
    headless = {key: value for key, value in tensors.items() if "linear" not in key}
    folder = tmp_path / "run"
    for name, content, options, message in (
        ("resnet10", cut, {}, r"has no layer2\.0\.conv1\.weight"),
        ("resnet10", tensors | {"extra": np.zeros(1)}, {}, "has extra, which the network lacks"),
        ("resnet10", narrow, {}, "params/conv1/kernel"),
        ("resnet10", headless, {}, r"no last layer .* it holds bn1\.bias, .* more"),
        ("resnet10", eleven, {}, "11 classes, not 10: name them with --classes"),
        ("resnet10", tensors, {"classes": ["a", "b"]}, "10 classes, not 2"),
        ("resnet10", tensors, {"std": (1.0, 0.0, 1.0)}, "std"),
        ("resnet18", tensors, {}, "has no layer"),
        ("basic", tensors, {}, "choose resnet18 or resnet10"),
    ):
        file = tmp_path / "weights.safetensors"
        save_file(content, file)
        with pytest.raises(UserError, match=message):
            import_torch(file, name, folder, **options)
        assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]
    folder.mkdir()
    with pytest.raises(UserError, match="exists"):
        import_torch(file, "resnet10", folder)
