"""Test that runs on several devices or in several processes give the results of one device."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cifar_jax import cli, distributed
from cifar_jax.errors import UserError

EXPERIMENT = '''
"""A small network with what may differ between devices: BatchNorm, dropout, augmentation."""

import jax
from flax import linen as nn

from cifar_jax.config import Config, Data, Model, Optimizer
from cifar_jax.models import layers


class Small(nn.Module):
    num_classes: int = 10
    dropout: float = 0.2
    dtype: object = None

    @nn.compact
    def __call__(self, images, *, train=False):
        if train:
            jax.debug.inspect_array_sharding(
                images, callback=lambda sharding: print(sharding.shard_shape(images.shape))
            )
        x = layers.Conv(16, (3, 3), padding=1, name="conv1")(images)
        x = layers.Pool(name="pool1")(nn.relu(layers.BatchNorm(name="bn1")(x, train=train)))
        x = layers.GlobalAveragePool(name="pool")(x)
        x = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(x)
        return nn.Dense(self.num_classes, name="fc")(x)


MODEL = Small
CONFIG = Config(
    model=Model(name="small"),
    epochs=2,
    batch_size=32,
    optimizer=Optimizer(name="sgd", lr=0.1),
    data=Data(dataset="digits", train_images=256, validation=45, crop_padding=2, flip=True),
)
'''
LOSSES = ("train_loss", "validation_loss", "test_loss")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("experiment") / "small.py"
    path.write_text(EXPERIMENT)
    return str(path)


def train(experiment: str, folder: Path, *settings: str) -> dict[str, Any]:
    """Train in the current process, which has eight devices. Return the run's result."""
    words = [word for setting in settings for word in ("--set", setting)]
    assert cli.run(["train", experiment, "--workdir", str(folder), *words]) == 0
    return read_result(folder)


def read_result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def one_device(experiment: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Result of a training run on one device."""
    return train(experiment, tmp_path_factory.mktemp("run"), "train.devices=1")


def assert_same_losses(result: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in LOSSES:
        assert result[name] == pytest.approx(expected[name], rel=1e-5), name


def test_several_devices_share_each_batch_and_give_the_result_of_one(
    experiment: str, one_device: dict[str, Any], tmp_path: Path, capsys
) -> None:
    """The run starts on eight devices and continues on two. Neither number divides 45 images."""
    train(experiment, tmp_path, "train.devices=8", "epochs=1")
    # Each of the eight devices gets 4 of the 32 images in a batch.
    assert "(4, 32, 32, 3)\n" in capsys.readouterr().out
    result = train(experiment, tmp_path, "train.devices=2")
    assert "(16, 32, 32, 3)\n" in capsys.readouterr().out
    assert_same_losses(result, one_device)


# Training in several processes


def start(command: list[str]) -> list[subprocess.Popen[str]]:
    """Start the Python command in two processes. Each process has two devices."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        # XLA's optimizations are off, because compilation dominates the time of these tests.
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0",
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": "2",
    }
    return [
        subprocess.Popen(
            [sys.executable, *command],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment | {"JAX_PROCESS_ID": str(index)},
        )
        for index in range(2)
    ]


def start_training(experiment: str, folder: Path, *settings: str) -> list[subprocess.Popen[str]]:
    words = [word for setting in settings for word in ("--set", setting)]
    return start(["-m", "cifar_jax", "train", experiment, "--workdir", str(folder), *words])


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Wait for the processes. Return the exit code, stdout and stderr of each process."""
    try:
        outputs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *output) for p, output in zip(processes, outputs, strict=True)]


def wait_for(path: Path) -> None:
    """Wait until the file exists and is not empty."""
    deadline = time.monotonic() + 120
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} was not written"
        time.sleep(0.05)


@pytest.mark.slow
def test_two_processes_give_the_result_of_one_device(
    experiment: str, one_device: dict[str, Any], tmp_path: Path
) -> None:
    first, second = finish(start_training(experiment, tmp_path))
    assert first[0] == second[0] == 0, first[2] + second[2]
    assert "on 4 × cpu" in first[1]
    assert "epoch" not in second[1]  # Only the main process prints.
    assert_same_losses(read_result(tmp_path), one_device)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "message"),
    [("config.json", "stopped by SIGTERM"), ("metrics.jsonl", "saved and stopped by SIGTERM")],
    ids=["compiling", "training"],
)
def test_a_signal_to_one_process_stops_both(
    experiment: str, tmp_path: Path, file: str, message: str
) -> None:
    processes = start_training(experiment, tmp_path, "epochs=5000")
    wait_for(tmp_path / file)
    processes[1].send_signal(signal.SIGTERM)
    for code, _, error in finish(processes):
        assert code == 128 + signal.SIGTERM, error
        assert message in error


@pytest.mark.slow
def test_after_a_kill_both_processes_end_and_the_run_continues_exactly(
    experiment: str, tmp_path: Path
) -> None:
    processes = start_training(experiment, tmp_path / "killed", "epochs=12")
    wait_for(tmp_path / "killed/metrics.jsonl")
    processes[1].kill()
    began = time.monotonic()
    assert finish(processes)[0][0] != 0
    assert time.monotonic() - began < 60
    for folder in ("killed", "whole"):
        for code, _, error in finish(start_training(experiment, tmp_path / folder, "epochs=12")):
            assert code == 0, error
    results = [read_result(tmp_path / folder) for folder in ("killed", "whole")]
    assert results[0]["params_sha256"] == results[1]["params_sha256"]


def test_functions_that_communicate() -> None:
    script = """
import json, os
import numpy as np
from cifar_jax import devices, distributed
from cifar_jax.errors import UserError
distributed.initialize()
index = int(os.environ["JAX_PROCESS_ID"])
def message(function):
    try:
        return function()
    except (UserError, OSError) as error:
        return str(error)
def fail():
    if index:
        raise OSError(28, "No space left on device", "result.json")
def compare(**values):
    return message(lambda: distributed.require_equal(values, "settings"))
print(json.dumps([
    distributed.allgather({"index": "ä" * index}),
    distributed.all_max(index, 1 - index, 0.5),
    distributed.broadcast_arrays([np.full(2, index)])[0].tolist(),
    distributed.run_on_main(lambda: index),
    message(lambda: distributed.run_on_all(fail)),
    compare(seed=1, epochs=2),
    compare(seed=1, epochs=2 + index).partition(". ")[0],
    message(lambda: devices.make_mesh(8, 2)).partition(". ")[0],
]))
distributed.shutdown(0)
"""
    full = "[Errno 28] No space left on device: 'result.json'"
    for index, (code, output, error) in enumerate(finish(start(["-c", script]))):
        assert code == 0, error
        assert "cifar-jax: waiting for 2 processes at localhost:" in error
        assert json.loads(output.splitlines()[-1]) == [
            [{"index": ""}, {"index": "ä"}],
            [1.0, 1.0, 0.5],
            [0, 0],
            0,
            full if index else f"process 1: {full}",
            None,
            "the processes have different settings: epochs is 2 in process 0 and 3 in process 1",
            "train.devices is 2, but the processes of this run have 4 devices and must use all",
        ]


def test_processes_that_are_not_configured_are_refused(monkeypatch, capsys) -> None:
    def refuse(**options: Any) -> None:
        raise ValueError("coordinator_address should be defined.\nat length")

    monkeypatch.setattr("jax.distributed.initialize", refuse)
    with pytest.raises(UserError, match=r"\(coordinator_address should be defined\)\. Set JAX_"):
        distributed.initialize()
    assert capsys.readouterr().err == "cifar-jax: waiting for the other processes\n"
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(UserError, match=r"cannot connect \(.*'two'\)"):
        distributed.initialize()


WORK = """
import os, sys, time
from cifar_jax import cli, distributed
from cifar_jax.errors import UserError

def work(*arguments, **options):
    distributed.initialize()
    distributed.allgather("ready")
    print("ready", flush=True)
    if os.environ["JAX_PROCESS_ID"] == sys.argv[1]:
        raise UserError("no space")
    for number in range(1200):
        if sys.argv[2] == "together":
            distributed.allgather(number)
        time.sleep(0.1)

distributed.SHUTDOWN_SECONDS = 2
cli.cli.main = work
cli.main()
"""


@pytest.mark.parametrize(
    ("mode", "index", "end"),
    [
        ("together", 1, "kill"),
        *(
            pytest.param(mode, index, end, marks=pytest.mark.slow)
            for mode in ("together", "apart")
            for index in (0, 1)
            for end in ("kill", "fail")
        ),
    ],
)
def test_a_process_ends_within_a_minute_of_the_other(mode: str, index: int, end: str) -> None:
    """In mode `apart`, the processes exchange no data. Only JAX's heartbeats detect the end."""
    processes = start(["-c", WORK, str(index) if end == "fail" else "none", mode])
    for process in processes:
        assert process.stdout is not None
        while process.stdout.readline() not in ("ready\n", ""):
            pass
    if end == "kill":
        processes[index].kill()
    began = time.monotonic()
    outcomes = finish(processes)
    assert time.monotonic() - began < 60
    if end == "fail":
        assert outcomes[index][0] == 2
        assert outcomes[index][2].splitlines()[-1] == "cifar-jax: no space"
    code, _, error = outcomes[1 - index]
    assert code != 0
    assert error
