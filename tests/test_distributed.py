"""Several devices and processes come to what one does, and read each other's checkpoints."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest
from cifar_jax.training.display import Display

from cifar_jax import catalog, config
from cifar_jax.runs.checkpoints import Checkpoints
from cifar_jax.training import fit, setup

EPOCHS, STEPS = 2, 8
SETTINGS = {
    "epochs": EPOCHS,
    "batch_size": 32,
    "data.dataset": "digits",
    "data.train_images": 32 * STEPS,
    "data.validation": 45,  # which two, four and eight devices have to pad
    "data.crop_padding": 2,
    "train.log_every": 4,
}
Alone = Callable[[str], tuple[Path, dict[str, Any]]]


def arguments(**settings: Any) -> list[str]:
    return [f"{name}={value}" for name, value in (SETTINGS | settings).items()]


def train_command(folder: Path, **settings: Any) -> list[str]:
    words = [word for setting in arguments(**settings) for word in ("--set", setting)]
    return ["-m", "cifar_jax", "train", "basic", "--workdir", str(folder), *words]


def start(command: list[str]) -> list[subprocess.Popen[str]]:
    """Two processes of two devices each that run `command` together."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    return [
        subprocess.Popen(
            [sys.executable, *command],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ
            | {
                # Compiling is most of the cost, and the programs' speed does not matter.
                "XLA_FLAGS": "--xla_force_host_platform_device_count=2 "
                "--xla_backend_optimization_level=0",
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(index),
            },
        )
        for index in range(2)
    ]


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit code, standard output and standard error of each."""
    try:
        outputs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *output) for p, output in zip(processes, outputs, strict=True)]


def train_here(model: str, folder: Path, devices: int) -> dict[str, Any]:
    """The same run in this process."""
    settings = arguments(**{"model.name": model, "train.devices": devices})
    chosen = config.override(catalog.load("basic").config, settings)
    run = fit.Run(experiment="basic", config=chosen, seed=0, workdir=folder)
    return fit.fit(run, Display(quiet=True))


def restored(folder: Path, devices: int) -> Any:
    """The last state in a run's folder, on so many devices of this process."""
    identity = json.loads((folder / "config.json").read_text())
    chosen = config.override(config.from_flat(identity["config"]), [f"train.devices={devices}"])
    with Checkpoints(folder / "checkpoints") as checkpoints:
        latest = checkpoints.latest()
        assert latest is not None
        return checkpoints.restore(latest, setup.init_state(setup.workload(chosen), seed=0))


def assert_same(result: dict[str, Any], other: dict[str, Any]) -> None:
    for split in ("train", "validation", "test"):
        assert result[f"{split}_accuracy"] == other[f"{split}_accuracy"]
        np.testing.assert_allclose(result[f"{split}_loss"], other[f"{split}_loss"], rtol=1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """What one device makes of a model: the run's folder and its result."""
    done: dict[str, tuple[Path, dict[str, Any]]] = {}

    def run(model: str) -> tuple[Path, dict[str, Any]]:
        if model not in done:
            folder = tmp_path_factory.mktemp(model)
            done[model] = folder, train_here(model, folder, devices=1)
        return done[model]

    return run


@pytest.mark.parametrize("devices", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_devices_agree_and_read_each_others_checkpoints(
    devices: int, alone: Alone, tmp_path: Path
) -> None:
    folder, expected = alone("basic")
    assert_same(train_here("basic", tmp_path, devices), expected)
    state = jax.device_get(restored(tmp_path, devices=1))
    chex.assert_trees_all_close(state, jax.device_get(restored(folder, 1)), rtol=1e-4, atol=1e-6)
    spread = restored(tmp_path, devices=4)
    assert len(spread.params["conv1"]["kernel"].sharding.device_set) == 4
    chex.assert_trees_all_equal(jax.device_get(spread), state)


@pytest.mark.parametrize("model", ["basic", pytest.param("net-bn-gap", marks=pytest.mark.slow)])
def test_two_processes_learn_what_one_does(model: str, alone: Alone, tmp_path: Path) -> None:
    first, second = finish(start(train_command(tmp_path, **{"model.name": model})))
    assert first[0] == second[0] == 0, first[2] + second[2]
    assert "on 4 × cpu" in first[1]
    assert "epoch" not in second[1]  # the first speaks for both
    folder, expected = alone(model)
    assert_same(json.loads((tmp_path / "result.json").read_text()), expected)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == EPOCHS
    state, lone = (jax.device_get(restored(path, 1)) for path in (tmp_path, folder))
    chex.assert_trees_all_close(state.variables, lone.variables, rtol=1e-4, atol=1e-5)
    # Momentum adds up the rounding of ten gradients, and the learning rate is not in it.
    chex.assert_trees_all_close(state, lone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("begun", "said"),
    [("config.json", "stopped by SIGTERM"), ("metrics.jsonl", "saved and stopped by SIGTERM")],
)
def test_a_signal_to_one_process_stops_both(tmp_path: Path, begun: str, said: str) -> None:
    """While they compile, or train; a log line, which comes less often, is not waited for."""
    processes = start(train_command(tmp_path, epochs=5000, **{"train.log_every": 2000}))
    deadline = time.monotonic() + 120
    there = tmp_path / begun
    while not (there.exists() and there.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    for code, _, error in finish(processes):
        assert code == 128 + signal.SIGTERM, error
        assert said in error
    if begun == "metrics.jsonl":
        assert int(restored(tmp_path, devices=1).step) >= STEPS


def test_what_stops_one_process_stops_all() -> None:
    script = """
import json, os
from cifar_jax import devices, distributed
from cifar_jax.errors import UserError
distributed.initialize_distributed()
index = int(os.environ["JAX_PROCESS_ID"])
def only_here():
    if index:
        raise UserError("no data on this machine")
    return "fine"
def no_room():
    if index:
        raise OSError(28, "No space left on device", "result.json")
said = {
    "exchanged": distributed.allgather({"index": "ä" * index}),
    "first": distributed.run_on_main(lambda: index),
}
try:
    distributed.run_on_all(only_here)
except UserError as error:
    said["error"] = str(error)
try:
    distributed.run_on_all(no_room)
except (OSError, UserError) as error:
    said["full"] = str(error)
try:
    devices.make_mesh(6)
except UserError as error:
    said["mesh"] = str(error)
print(json.dumps(said))
"""
    full = "[Errno 28] No space left on device: 'result.json'"
    told = (f"process 1: {full}", full)
    for index, (code, output, error) in enumerate(finish(start(["-c", script]))):
        assert code == 0, error
        assert json.loads(output.splitlines()[-1]) == {
            "full": told[index],
            "exchanged": [{"index": ""}, {"index": "ä"}],
            "first": 0,
            "error": "process 1: no data on this machine",
            "mesh": "batch_size 6 cannot be divided over 4 devices",
        }


def test_processes_that_cannot_be_found() -> None:
    """In a process of its own: where a device is in use already, all of it would be refused."""
    script = """
import json, os, sys
from cifar_jax import distributed
from cifar_jax.errors import UserError
said = []
for environment in json.loads(sys.argv[1]):
    os.environ |= environment
    try:
        distributed.initialize_distributed()
    except UserError as error:
        said.append(str(error))
    for name in environment:
        del os.environ[name]
print(json.dumps(said))
"""
    cases = [
        ({}, "(coordinator_address should be defined.): set JAX_COORDINATOR_ADDRESS"),
        ({"JAX_COORDINATOR_ADDRESS": "localhost:1"}, "(Number of processes must be defined.)"),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES='two' is not a whole number"),
        (
            {
                "JAX_COORDINATOR_ADDRESS": "localhost:1",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": "2",
            },
            "process_id and num_processes must be nonnegative, with process_id < num_processes",
        ),
    ]
    words = [sys.executable, "-c", script, json.dumps([environment for environment, _ in cases])]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert len(said) == len(cases)
    for text, (_, expected) in zip(said, cases, strict=True):
        assert expected in text
    assert done.stderr == ""  # which works after a refusal as before


AT_WORK = """
import os, sys, time
from cifar_jax import distributed
processes.HEARTBEAT_SECONDS = 5
distributed.initialize_distributed()
index = int(os.environ["JAX_PROCESS_ID"])
def work(seconds, leave_with=None):
    with distributed.together():
        for number in range(int(seconds * 10)):
            if sys.argv[1] == "together":
                distributed.allgather(number)
            time.sleep(0.1)
    if leave_with is not None:
        sys.stderr.write(f"{index} leaves\\n")
        distributed.leave(leave_with)
distributed.allgather("here")
print("at work", flush=True)
"""
GONE = "cifar-jax: another process of the run is gone ("


def at_work(doing: str, script: str) -> list[subprocess.Popen[str]]:
    """Two processes that met, and run `script`."""
    processes = start(["-c", AT_WORK + script, doing])
    for process in processes:
        assert process.stdout is not None
        while line := process.stdout.readline():
            if line == "at work\n":
                break
    return processes


@pytest.mark.parametrize("doing", ["together", "apart"])
@pytest.mark.parametrize("victim", [0, 1])
def test_one_that_is_killed_ends_the_other_in_one_line(victim: int, doing: str) -> None:
    processes = at_work(doing, "work(300)")
    processes[victim].kill()
    began = time.monotonic()
    code, _, error = finish(processes)[1 - victim]
    assert code == 1
    assert error.startswith(GONE)
    assert error.count("\n") == 1, error
    assert time.monotonic() - began < 60


def test_last_words_are_told_where_the_client_exits_at_once() -> None:
    """As that of JAX 0.7 does, which leaves no thread the time to read them."""
    script = """
import os
from cifar_jax.distributed import _Watch
watch = _Watch()
os.write(2, b"JAX distributed service detected fatal errors: absl::Status: GONE: x. y\\n")
os._exit(1)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{GONE}GONE: x)")
    assert done.stderr.count("\n") == 1


def test_an_error_of_one_process_ends_the_other() -> None:
    processes = at_work("together", "work(300) if index else work(0, leave_with=2)")
    first, second = finish(processes)
    assert first[0] == 2
    assert first[2] == "0 leaves\n"
    assert second[0] == 1
    assert second[2].startswith(GONE)


@pytest.mark.parametrize("code", [0, 2])
def test_the_same_end_is_waited_for(code: int) -> None:
    script = f"work(2 * index, leave_with={code})"  # the first, which JAX's service is in, is early
    for index, (found, _, error) in enumerate(finish(at_work("apart", script))):
        assert found == code, error
        assert error == f"{index} leaves\n"


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_stops_both_and_both_go_on(victim: int, tmp_path: Path) -> None:
    command = train_command(tmp_path / "killed", epochs=12)
    processes = start(command)
    metrics = tmp_path / "killed/metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    processes[victim].kill()
    code, _, error = finish(processes)[1 - victim]
    assert code == 1
    assert error.startswith(GONE)
    assert error.count("\n") == 1, error
    for folder in ("killed", "whole"):
        for code, _, error in finish(start(train_command(tmp_path / folder, epochs=12))):
            assert code == 0, error
    results = [json.loads((tmp_path / f / "result.json").read_text()) for f in ("killed", "whole")]
    assert results[0]["params_sha256"] == results[1]["params_sha256"]
