"""Test that `make bench` refuses unfair comparisons."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench, worker
from cifar_jax import catalog, devices
from cifar_jax.config import override


class FakeContender:
    """Stand-in for a timed implementation. It reports 0.5 seconds per step."""

    measured, peak_mb = (0.5,), 100

    def __init__(self, parameters: int = 62_006, platform: str = "cpu") -> None:
        self.facts = {"parameters": parameters, "compile_seconds": 1.0, "platform": platform}


@pytest.fixture
def fake_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    def take_turns(
        experiment: str, variants: list[bench.Variant], options: argparse.Namespace
    ) -> dict:
        return {variant: FakeContender() for variant in variants}

    monkeypatch.setattr(bench, "take_turns", take_turns)
    monkeypatch.setattr(bench, "matrix_peak", lambda: ("cpu", 2048, 1e11))
    monkeypatch.setattr(devices, "has_bfloat16_units", lambda: True)


@pytest.fixture(params=[True, False], ids=["with PyTorch", "without PyTorch"])
def torch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(bench, "torch_is_installed", lambda python: request.param)
    return request.param


@pytest.mark.usefixtures("fake_timing", "torch")
def test_table_and_record_have_the_changed_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "times.json"
    changes = {"batch_size": 64}
    settings = [f"--set={name}={value}" for name, value in changes.items()]
    bench.main(["basic", *settings, "--output", str(output)])
    (row,) = json.loads(output.read_text())["rows"]
    assert row["batch_size"] == 64
    assert row["jax-bfloat16"]["images_per_second"] == 128
    assert row["settings"] == changes
    assert "|    64 |         128 |" in capsys.readouterr().out


def test_summary_has_the_mean_and_the_smallest_ratio() -> None:
    def row(batch_size: int, jax: float, torch: float) -> dict:
        speeds = {"jax-float32": jax, "torch-float32": torch}
        figures = {name: {"images_per_second": speed} for name, speed in speeds.items()}
        return {"batch_size": batch_size, **figures}

    lines = bench.summary([row(8, 4, 1), row(128, 1, 1)])
    assert lines == [
        f"For JAX and PyTorch in float32, the mean speed ratio is {mean} and the smallest is 1.00 "
        f"({rows})."
        for mean, rows in (("2.00", "all rows"), ("1.00", "batch size 128 or more"))
    ]


def test_pytorch_is_timed_with_and_without_kept_memory_on_a_cpu() -> None:
    names = [str(v) for v in bench.choose_variants("cpu", has_torch=True, float32_only=True)]
    assert names == ["jax-float32", "torch-float32", "torch-float32-kept"]
    names = [str(v) for v in bench.choose_variants("NVIDIA", has_torch=True, float32_only=False)]
    assert names == ["jax-float32", "jax-bfloat16", "torch-float32", "torch-bfloat16"]


@pytest.mark.parametrize("other", [FakeContender(platform="gpu"), FakeContender(parameters=1)])
def test_contenders_must_be_comparable(other: FakeContender, monkeypatch) -> None:
    def take_turns(experiment: str, variants: list[bench.Variant], options: Any) -> dict:
        return dict(zip(variants, [FakeContender(), other], strict=True))

    monkeypatch.setattr(bench, "take_turns", take_turns)
    variants = [bench.Variant("jax", "float32", True), bench.Variant("torch", "float32", False)]
    with pytest.raises(SystemExit, match="The contenders have different"):
        bench.time_row("basic", catalog.load("basic").config, variants, argparse.Namespace())


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
        (["speedrun-92"], "Muon, Nesterov momentum"),
    ],
)
def test_recipes_that_pytorch_does_not_support_are_refused(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(bench, "torch_is_installed", lambda python: True)
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
    steps, facts = worker.jax_steps(config)
    steps(3)
    assert facts["parameters"] == 62_006
    assert not list(tmp_path.iterdir())
