"""Test that `make bench` refuses unfair comparisons."""

import argparse
import json
from pathlib import Path

import pytest

from benchmarks import bench, worker
from cifar_jax import catalog
from cifar_jax.config import override


class FakeContender:
    """Stand-in for a timed implementation. It reports 0.5 seconds per step."""

    measured, peak_mb = (0.5,), 100

    def __init__(self, parameters: int) -> None:
        self.facts = {"parameters": parameters, "compile_seconds": 1.0, "platform": "cpu"}


@pytest.fixture
def fake_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    def take_turns(experiment: str, names: list[str], options: argparse.Namespace) -> dict:
        return {name: FakeContender(62_006) for name in names}

    monkeypatch.setattr(bench, "take_turns", take_turns)
    monkeypatch.setattr(bench, "matrix_peak", lambda: ("cpu", 2048, 1e11))


@pytest.fixture(params=[True, False], ids=["with PyTorch", "without PyTorch"])
def torch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(bench, "find_spec", lambda name: request.param or None)
    return request.param


@pytest.mark.usefixtures("fake_timing", "torch")
def test_table_and_record_have_the_changed_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "times.json"
    changes = {"batch_size": 64, "train.precision": "bfloat16"}
    settings = [f"--set={name}={value}" for name, value in changes.items()]
    bench.main(["basic", *settings, "--output", str(output)])
    (row,) = json.loads(output.read_text())["rows"]
    assert row["batch_size"] == 64
    assert row["jax"]["images_per_second"] == 128
    assert row["settings"] == changes
    assert "|    64 |           128 |" in capsys.readouterr().out


def test_platforms_must_be_the_same() -> None:
    bench.require_same_platform({"jax": "gpu", "torch": "gpu"})
    with pytest.raises(SystemExit, match="jax on gpu, torch on cpu: install both"):
        bench.require_same_platform({"jax": "gpu", "torch": "cpu"})


@pytest.mark.usefixtures("fake_timing")
@pytest.mark.parametrize("setting", ["data.flip=true", "schedule.name=cosine", "epochs=2"])
def test_settings_that_pytorch_does_not_support_are_refused(
    torch: bool, setting: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if not torch:
        bench.main(["basic", "--set", setting])
        return
    with pytest.raises(SystemExit, match="2"):
        bench.main(["basic", "--set", setting])
    assert f"--set {setting.partition('=')[0]} does not change" in capsys.readouterr().err


@pytest.mark.usefixtures("fake_timing")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fast-net-bn-gap"], "Muon, Nesterov momentum"),
        (["basic", "--set", "optimizer.nesterov=true"], "Muon, Nesterov momentum"),
        (["speedrun-92"], "speedrun-92 uses speednet, which is not implemented"),
    ],
)
def test_recipes_that_pytorch_does_not_support_are_refused(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(bench, "find_spec", lambda name: True)
    with pytest.raises(SystemExit, match="2"):
        bench.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("fake_timing")
@pytest.mark.parametrize("arguments", [["basik"], ["basic", "--set", "optimizer.lr=-1"]])
def test_invalid_arguments_are_refused_before_timing(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        bench.main([*arguments, "--output", str(tmp_path / "times.json")])
    assert not list(tmp_path.iterdir())


def test_steps_do_not_need_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    config = override(catalog.load("basic").config, ["train.devices=1"])
    steps, outside, facts = worker.jax_steps(config)
    steps(3)
    outside(3)
    assert facts["parameters"] == 62_006
    assert not list(tmp_path.iterdir())
