"""PyTorch's ResNets for CIFAR give the same logits here, and their files nothing but tensors."""

import contextlib
import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import make_torch_resnet as recorded
from safetensors.numpy import save_file

import cifar_jax
from cifar_jax import data
from cifar_jax.errors import UserError
from cifar_jax.inference import torch_file
from cifar_jax.inference.evaluate import evaluate
from cifar_jax.inference.torch_weights import import_torch

FIXTURES = Path(__file__).parents[1] / "fixtures"
RECORD = json.loads((FIXTURES / "torch_resnet.json").read_text())["networks"]
SMALL = FIXTURES / "torch_small.pth"


def state_dict(name: str) -> dict[str, np.ndarray]:
    """What PyTorch had when it made the recorded logits."""
    return {
        key: recorded.parameter(key, tuple(shape)) if shape else np.int64(0)[None]
        for key, shape in RECORD[name]["shapes"].items()
    }


def as_torchvision(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        f"module.{key}".replace("shortcut", "downsample").replace("linear", "fc"): value
        for key, value in tensors.items()
    }


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


def test_an_imported_network_is_measured_where_it_knows_the_classes(tmp_path: Path) -> None:
    file, digits = tmp_path / "weights.safetensors", data.load("digits")
    save_file(state_dict("resnet10"), file)
    for name, classes in (("run", digits.classes), ("other", None)):
        import_torch(file, "resnet10", tmp_path / name, classes=classes)
        config = tmp_path / name / "config.json"
        config.write_text(config.read_text().replace('"cifar10"', '"digits"'))
    found = evaluate(tmp_path / "run")
    assert (found["images"], found["epoch"]) == (360, 0)
    assert 0 <= found["accuracy"] < 40
    with pytest.raises(UserError, match="other classes than the data set digits"):
        evaluate(tmp_path / "other")


def test_what_torch_save_wrote_is_read_without_torch() -> None:
    tensors = torch_file.read(SMALL)
    for name, shape in {"0.weight": (2, 1, 3, 3), "1.running_var": (2,)}.items():
        np.testing.assert_array_equal(tensors[name], recorded.parameter(name, shape))
    whole = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(tensors["transposed"], whole.T)
    np.testing.assert_array_equal(tensors["part"], whole[1:, 1:3])
    np.testing.assert_array_equal(tensors["half"], np.arange(3, dtype=np.float16))
    np.testing.assert_array_equal(tensors["learned"], np.ones(2))
    assert tensors["1.num_batches_tracked"].dtype == np.int64


def archive(path: Path, program: bytes, **storages: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", program)
        for name, content in storages.items():
            file.writestr(f"archive/data/{name.removeprefix('s')}", content)
    return path


class Named:
    """Pickles as a call of a function by its name."""

    def __init__(self, module: str, name: str, *arguments: Any) -> None:
        self.module, self.name, self.arguments = module, name, arguments


def crafted(value: Any) -> bytes:
    """A pickle of protocol 2 in which each `Named` is a call, and ("storage", …) a storage."""
    out = io.BytesIO()

    def put(value: Any) -> None:
        if isinstance(value, Named):
            out.write(f"c{value.module}\n{value.name}\n".encode())
            if value.arguments:
                put(value.arguments)
                out.write(b"R")
        elif isinstance(value, tuple):
            out.write(b"(")
            for item in value:
                put(item)
            out.write(b"t" + b"Q" * (value[:1] == ("storage",)))
        elif isinstance(value, dict):
            out.write(b"}")
            for key, item in value.items():
                put(key)
                put(item)
                out.write(b"s")
        else:
            out.write(pickle.dumps(value, 2)[2:-1])

    out.write(b"\x80\x02")
    put(value)
    out.write(b".")
    return out.getvalue()


def tensor(offset: Any = 0, size: Any = (2,), stride: Any = (1,), count: Any = 4) -> Named:
    storage = ("storage", Named("torch", "FloatStorage"), "0", "cpu", count)
    return Named("torch._utils", "_rebuild_tensor_v2", storage, offset, size, stride, False, {})


def test_a_crafted_file_of_plain_tensors_is_read(tmp_path: Path) -> None:
    file = archive(
        tmp_path / "a.pth", crafted({"a": tensor(1)}), s0=np.arange(4, dtype="f4").tobytes()
    )
    np.testing.assert_array_equal(torch_file.read(file)["a"], [1, 2])


@pytest.mark.parametrize(
    "content",
    [
        {"a": Named("os", "system", "touch executed")},
        {"a": Named("builtins", "eval", "1")},
        {"a": Named("numpy", "dtype", "O8")},
        {"a": Named("torch._utils", "_rebuild_tensor_v2")},
        {"a": Named("torch", "load", "elsewhere")},
        {"a": tensor(offset=3)},
        {"a": tensor(offset=-1)},
        {"a": tensor(stride=(-1,))},
        {"a": tensor(stride=(4,))},
        {"a": tensor(size=(2, 2), stride=(1,))},
        {"a": tensor(size=(1 << 40,), stride=(0,))},
        {"a": tensor(count=5)},
        {"a": tensor(count=-1)},
        {"a": tensor(size=[2])},
        {"a": "text"},
        {"a": 1.5},
        {1: tensor()},
        [tensor()],
        {},
    ],
)
def test_what_is_no_state_dict_is_refused_and_nothing_executed(
    tmp_path: Path, content: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    program = crafted(content if not isinstance(content, list) else tuple(content))
    file = archive(tmp_path / "bad.pth", program, s0=bytes(16))
    with pytest.raises(UserError) as error:
        torch_file.read(file)
    assert "bad.pth" in str(error.value)
    assert not (tmp_path / "executed").exists()


def test_many_tensors_of_one_storage_take_no_more_than_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is a copy: a small file could ask for all memory."""
    monkeypatch.setattr(torch_file, "_MAX_BYTES", 15_000)
    tensors = {f"a{i}": tensor(size=(1000,), count=1000) for i in range(5)}
    file = archive(tmp_path / "bomb.pth", crafted(tensors), s0=bytes(4000))
    with pytest.raises(UserError, match="far more numbers than a network"):
        torch_file.read(file)


def test_a_file_that_is_cut_or_changed_is_told_in_one_line(tmp_path: Path) -> None:
    whole = SMALL.read_bytes()
    file = tmp_path / "weights.pth"
    random = np.random.default_rng(0)
    for end in (0, 10, len(whole) // 2, len(whole) - 30):
        file.write_bytes(whole[:end])
        with pytest.raises(UserError) as error:
            torch_file.read(file)
        assert "\n" not in str(error.value)
    for place in random.integers(0, len(whole), 200):
        changed = bytearray(whole)
        changed[place] ^= 1 << random.integers(8)
        file.write_bytes(changed)
        with contextlib.suppress(UserError):  # some bytes are of no account
            torch_file.read(file)


def test_another_network_leaves_no_folder(tmp_path: Path) -> None:
    tensors = state_dict("resnet10")
    cut = {key: value for key, value in tensors.items() if key != "layer2.0.conv1.weight"}
    narrow = tensors | {"conv1.weight": tensors["conv1.weight"][:, :, 1:]}
    eleven = tensors | {"linear.weight": np.zeros((11, 512), np.float32)}
    folder = tmp_path / "run"
    for name, given, options, message in (
        ("resnet10", cut, {}, "has no layer2.0.conv1.weight"),
        ("resnet10", tensors | {"extra": np.zeros(1)}, {}, "has extra, which the network has not"),
        ("resnet10", narrow, {}, "params/conv1/kernel"),
        ("resnet10", eleven, {}, "11 classes apart, not 10: name them with --classes"),
        ("resnet10", tensors, {"classes": ["a", "b"]}, "10 classes apart, not 2"),
        ("resnet10", tensors, {"std": (1.0, 0.0, 1.0)}, "std is not of pixels from 0 to 1"),
        ("resnet18", tensors, {}, "has no layer"),
        ("basic", tensors, {}, "only resnet18 and resnet10"),
    ):
        file = tmp_path / "weights.safetensors"
        save_file(given, file)
        with pytest.raises(UserError, match=message):
            import_torch(file, name, folder, **options)
        assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]
    folder.mkdir()
    with pytest.raises(UserError, match="exists"):
        import_torch(file, "resnet10", folder)
