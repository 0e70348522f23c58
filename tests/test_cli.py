"""Test the arguments, output and exit codes of the `cifar-jax` commands."""

import asyncio
import errno
import json
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

import cifar_jax
from cifar_jax import catalog, cli, config, errors
from cifar_jax.cli.output import print_table
from cifar_jax.errors import Stopped, UserError
from cifar_jax.runs.schemas import Result, RunIdentity, dump, parse
from cifar_jax.training.request import RunRequest

COMMANDS = (
    *("train", "evaluate", "predict", "export", "import-torch", "report", "models", "summary"),
    *("experiments", "settings", "data", "env"),
)
QUICK = (
    *("--set", "data.dataset=digits", "--set", "epochs=1", "--set", "data.train_images=64"),
    *("--set", "data.validation=0.1", "--set", "train.devices=1"),
)


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Cli = Callable[..., Outcome]


@pytest.fixture
def run(capsys, tmp_path: Path, monkeypatch) -> Cli:
    """Return a function that runs a `cifar-jax` command in an empty folder without CIFAR-10."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))

    def call(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = cli.run(arguments)
        return Outcome(code, *capsys.readouterr())

    return call


def start(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a `cifar-jax` command in a new process."""
    command = [sys.executable, "-m", "cifar_jax", *arguments]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, **options)


def write_result(folder: Path, name: str, epochs: int) -> None:
    """Write the files of a finished run with a batch size of 7."""
    changed = config.override(catalog.load(name).config, ["batch_size=7", f"epochs={epochs}"])
    identity = {"experiment": name, "seed": 0, "overrides": {"batch_size": 7}}
    identity["settings"] = config.flatten(changed)
    record = json.loads((Path(__file__).parents[1] / "results/basic-seed0.json").read_text())
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dump(RunIdentity(**identity))))
    (folder / "result.json").write_text(json.dumps(dump(parse(record | identity, Result, "run"))))


# Help and listings


def test_help_names_every_command_and_imports_little(run: Cli) -> None:
    code = "import sys; from cifar_jax import cli; cli.run(['--help']); print(*sys.modules)"
    command = [sys.executable, "-c", code]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name in COMMANDS:
        assert f"\n  {name} " in text
        assert run(name, "--help").out.startswith(f"Usage: cifar-jax {name} ")
    modules = text.splitlines()[-1].split()
    heavy = {"jax", "numpy", "pydantic", "rich", "matplotlib", "tensorflow_datasets"}
    assert heavy.isdisjoint(modules)


@pytest.mark.parametrize(
    ("arguments", "words", "row"),
    [
        (["models"], "11,173,962", {"name": "basic", "parameters": 62_006}),
        (["summary", "net-attention"], "3x3, 64, padding=1", {"output_size": "16x16"}),
        (["experiments"], "92.09", {"name": "resnet10-plateau", "paper_accuracy": 92.09}),
        (["settings"], "sgd, adam, adamw, muon", {"name": "optimizer.lr"}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_listings_are_tables_or_json(run: Cli, arguments, words, row) -> None:
    done = run(*arguments)
    assert (done.code, done.err) == (0, "")
    assert words in done.out
    rows = json.loads(run(*arguments, "--json").out)
    assert any(row.items() <= listed.items() for listed in rows)


def test_env_prints_what_a_bug_report_needs(run: Cli, monkeypatch) -> None:
    monkeypatch.setenv("JAX_EXAMPLE", "1")
    report = json.loads(run("env", "--json").out)
    assert {"cifar-jax", "python", "jax", "jaxlib", "flax", "optax"} <= report["versions"].keys()
    assert report["environment variables"]["JAX_EXAMPLE"] == "1"
    assert len(report["devices"]) == 8
    assert "tfds" in report["data"][0]
    text = run("env").out
    for name in report:
        assert f"\n{name}: " in f"\n{text}".replace(":\n", ": \n")
    assert f"\n  jax {report['versions']['jax']}\n" in text
    assert "\n  JAX_EXAMPLE 1\n" in text
    assert "cifar10:3.0.2: not prepared" in text


# Training


def test_train_evaluate_and_report_a_run(run: Cli, tmp_path: Path) -> None:
    done = run("train", "basic", "--seed", "3", *QUICK)
    assert done.code == 0, done.err
    last = done.out.strip().splitlines()[-1]
    assert "test accuracy" in last
    # The paper's accuracy is not shown, because the settings differ from the paper's settings.
    assert "paper" not in done.out
    (folder,) = (tmp_path / "runs").glob("basic@*/seed3")
    result = json.loads((folder / "result.json").read_text())
    assert result["seed"] == 3
    assert result["overrides"]["data.dataset"] == "digits"
    assert (folder / "log.txt").read_text().splitlines()[-1] == last

    again = run("train", "basic", "--seed", "3", *QUICK)
    assert again.code == 0
    assert "is finished" in again.out
    assert again.out.strip().splitlines()[-1] == last

    words = ("--seed", "3", "--workdir", str(folder), *QUICK, "--set", "optimizer.lr=0.01")
    other = run("train", "basic", *words)
    assert other.code == 2
    assert "optimizer.lr" in other.err
    assert "0.001" in other.err

    evaluation = json.loads(run("evaluate", str(folder), "--json").out)
    assert evaluation["accuracy"] == pytest.approx(result["test_accuracy"])
    assert evaluation["images"] == 360
    assert "validation accuracy" in run("evaluate", str(folder), "--split", "validation").out

    report = run("report")
    assert report.code == 0
    assert "data.dataset=digits" in report.out
    assert (tmp_path / "runs/report.md").exists()
    page = (tmp_path / "runs/report.html").read_text()
    assert "Answers for the validation images" in page
    assert "<summary>Layers (" in page
    assert page.count('src="data:image/png;base64,') > 1  # The page has pictures of mistakes.
    assert run("report", "--record", "results", str(folder)).code == 2
    assert not (tmp_path / "results").exists()


def test_train_a_config_file_with_several_seeds(run: Cli, tmp_path: Path) -> None:
    source = (catalog.experiments_folder() / "basic.py").read_text()
    (tmp_path / "my_own.py").write_text(source)
    assert run("train", "my_own.py", "--seeds", "2", "--workdir", "here", *QUICK).code == 0
    results = [json.loads((tmp_path / f"here/seed{n}/result.json").read_text()) for n in (0, 1)]
    assert [result["experiment"] for result in results] == ["my-own", "my-own"]
    assert results[0]["params_sha256"] != results[1]["params_sha256"]
    assert run("train", "my_own.py", "--workdir", "here/seed0", *QUICK, "--fresh").code == 0


PAPER = [name for name in catalog.names() if catalog.load(name).config.paper]


@pytest.fixture
def trained(monkeypatch) -> list[Path]:
    """Replace training by a function that only adds the run folder to a list. Return the list.

    For some runs, the function raises an exception. The experiment `net` raises UserError, and
    `resnet10` raises RuntimeError. The batch size 7 raises Stopped, as after SIGTERM.
    """
    folders = []

    def train(request: RunRequest, *options: object) -> SimpleNamespace:
        folders.append(request.workdir)
        if request.config.batch_size == 7:
            raise Stopped(signal.SIGTERM, saved=True)
        if request.experiment == "net":
            raise UserError("the loss is not finite")
        if request.experiment == "resnet10":
            raise RuntimeError("a bug\nat length")
        return SimpleNamespace(
            experiment=request.experiment,
            seed=request.seed,
            test_accuracy=50.0,
            test_accuracy_plain=49.0,
            paper_accuracy=request.config.paper and request.config.paper.test_accuracy,
            overrides=request.overrides,
            settings={},
            data_official=True,
            epochs=2,
            best_validation_epoch=1,
            best_validation_test_accuracy=48.0,
        )

    monkeypatch.setattr("cifar_jax.training.train.train", train)
    return folders


def test_paper_trains_all_experiments_although_some_fail(
    run: Cli, trained: list[Path], capsys
) -> None:
    # The RuntimeError is raised after all runs.
    with pytest.raises(RuntimeError, match="a bug"):
        run("train", "--paper", "--seed", "2")
    summary = capsys.readouterr().out.partition(f"8 of {len(PAPER)} runs are finished:\n")[2]
    assert trained == [Path("runs", name, "seed2") for name in PAPER]
    lines = [line.strip() for line in summary.splitlines()]
    assert [line.partition(" ")[0] for line in lines] == PAPER
    assert "net seed 2: failed: the loss is not finite" in lines
    assert "resnet10 seed 2: failed: RuntimeError: a bug" in lines
    assert (
        "basic seed 2: test accuracy 50.00 %, 49.00 % without test-time augmentation "
        "(paper: 62.06 %); 48.00 % at the best validation accuracy, epoch 1"
    ) in lines


def test_several_seeds_end_with_their_mean(run: Cli, trained: list[Path]) -> None:
    done = run("train", "basic", "--seeds", "3")
    assert done.code == 0
    assert done.out.endswith("basic: test accuracy 50.00 ± 0.00 % over 3 seeds\n")


def test_the_exit_code_is_2_if_one_of_several_runs_fails(run: Cli, trained: list[Path]) -> None:
    done = run("train", "net", "basic")
    assert done.code == 2
    assert len(trained) == 2
    assert "1 of 2 runs are finished" in done.out
    assert "1 of 2 runs failed" in done.err


def test_a_signal_stops_all_runs(run: Cli, tmp_path: Path, trained: list[Path]) -> None:
    for name, epochs in (("resnet10", 135), ("net-bn-gap", 40)):
        write_result(tmp_path / f"runs/{name}@batch_size=7/seed0", name, epochs)
    names = ("basic", "net", "resnet10", "net-bn-gap")
    done = run("train", *names, "--set", "batch_size=7")
    assert done.code == 128 + signal.SIGTERM
    assert trained == [Path("runs/basic@batch_size=7/seed0")]
    assert "basic seed 0: saved and stopped" in done.out
    assert "net seed 0: not started" in done.out
    assert "resnet10 seed 0: already finished" in done.out
    assert "net-bn-gap seed 0: not started" in done.out  # It has 40 of 50 epochs.
    assert "1 of 4 runs are finished" in done.out


# Errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train"], "no experiment is given: name one or more"),
        (["train", "--paper", "basic"], "leave out the names, or leave out --paper"),
        (["train", "basic", "nett"], "did you mean net?"),
        (["train", "nowhere.py"], "nowhere.py"),
        (["train", "basic", "--set", "optimiser.lr=1"], "did you mean optimizer.lr?"),
        (["train", "basic", "--set", "epochs=two"], "epochs"),
        (["train", "basic", "--set", "data.dataset=digit"], "did you mean digits?"),
        (
            ["train", "basic", *QUICK, "--set", "batch_size=65"],
            "batch_size is 65, but digits has only 64",
        ),
        (["train", "basic", *QUICK, "--set", "train.devices=99"], "train.devices is 99"),
        (["train", "basic", "--seed", "1", "--seeds", "2"], "--seeds"),
        (["summary", "resnet19"], "did you mean resnet1"),
        (["evaluate", "runs/none"], "runs/none"),
        (["report", "runs/none"], "runs/none"),
        (["data", "import", "none.tar.gz"], "none.tar.gz"),
        (["trian"], "No such command"),
        (["evaluate"], "Missing argument"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_with_exit_code_2(
    run: Cli, tmp_path: Path, arguments: list[str], words: str
) -> None:
    done = run(*arguments)
    assert done.code == 2
    assert done.err.startswith("cifar-jax: ")
    assert words in done.err
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "basic", *QUICK, "--workdir", "URL"],
        ["train", "basic", "--set", "data.dataset=folder:URL"],
        ["train", "basic", "--set", "data.dataset=URL"],
        ["train", "basic", *QUICK, "--set", "train.init_from=URL"],
        ["train", "URL"],
        ["evaluate", "URL"],
        ["evaluate", "net-bn-gap", "--code", "URL"],
        ["predict", "URL", "cat.jpg"],
        ["export", "net-bn-gap", "--to", "safetensors", "--output", "URL"],
        ["import-torch", "URL", "--model", "resnet18"],
        ["import-torch", "net.pth", "--model", "resnet18", "--workdir", "URL"],
        ["report", "URL"],
        ["report", ".", "--output", "URL"],
        ["report", ".", "--record", "URL"],
        ["data", "import", "URL"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("url", ["gs://bucket/a", "file:///a/b.py"])
def test_a_url_is_not_a_path(run: Cli, tmp_path: Path, arguments: list[str], url: str) -> None:
    done = run(*(word.replace("URL", url) for word in arguments))
    assert done.code == 2
    advice = "Leave out file://." if url.startswith("file:") else "Copy the files"
    assert f"{url} is a URL, and only local paths are accepted. {advice}" in done.err
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("variable", ["TFDS_DATA_DIR", "CIFAR_JAX_CACHE"])
@pytest.mark.parametrize(
    ("value", "words"),
    [("gs://b/a", "gs://b/a is a URL"), ("~nobody-here/a", "needs a home folder")],
)
def test_a_variable_names_a_local_folder(run: Cli, monkeypatch, variable, value, words) -> None:
    monkeypatch.setenv(variable, value)
    done = run("data", "status")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert words in done.err
    assert variable in done.err


def test_a_url_in_python_is_not_a_path(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for call in (lambda url: cifar_jax.train("basic", url), cifar_jax.load):
        for url in ("s3://bucket/run", Path("s3://bucket/run")):
            with pytest.raises(UserError, match="s3://bucket/run is a URL"):
                call(url)
    assert list(tmp_path.iterdir()) == []


def fail_with(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("first\nsecond"), 2, "first second"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a"), 2, "a: No space left on device"),
        (OSError(errno.EFBIG, os.strerror(errno.EFBIG)), 2, "File too large"),
        (KeyboardInterrupt(), 130, "stopped"),
        (Stopped(signal.SIGTERM, saved=True), 143, "saved and stopped by SIGTERM."),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_errors_give_an_exit_code_and_one_line(
    run: Cli, monkeypatch, error: BaseException, code: int, message: str
) -> None:
    monkeypatch.setattr(catalog, "names", fail_with(error))
    done = run("experiments")
    assert done.code == code
    line = done.err.removeprefix("\n")  # Click prints an empty line after Ctrl-C.
    assert line.startswith(f"cifar-jax: {message}")
    assert line.count("\n") == 1


def test_a_bug_has_a_traceback_and_exit_code_1(monkeypatch, capsys) -> None:
    monkeypatch.setattr(catalog, "names", fail_with(RuntimeError("broken")))
    monkeypatch.setattr(sys, "argv", ["cifar-jax", "experiments"])
    monkeypatch.setattr("cifar_jax.distributed.shutdown", lambda code: None)
    monkeypatch.setattr(cli, "hide_background_errors", lambda: None)
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 1
    assert "RuntimeError: broken" in capsys.readouterr().err


def test_errors_of_interrupted_event_loops_are_hidden(monkeypatch) -> None:
    reported = []
    monkeypatch.setattr(sys, "__unraisablehook__", reported.append)
    monkeypatch.setattr(sys, "unraisablehook", None)
    with warnings.catch_warnings():
        cli.hide_background_errors()
        error = AttributeError("'_UnixSelectorEventLoop' object has no attribute '_ssock'")
        for place in (asyncio.BaseEventLoop.__del__, Path.exists):
            sys.unraisablehook(SimpleNamespace(exc_value=error, object=place))  # pyright: ignore
    assert [failure.object for failure in reported] == [Path.exists]


def test_too_little_memory_is_explained() -> None:
    with pytest.raises(Exception, match="RESOURCE_EXHAUSTED") as on_device:
        jnp.zeros(2**46).block_until_ready()
    with pytest.raises(MemoryError) as on_host:
        np.zeros(2**50)
    for error in (on_device.value, on_host.value):
        message = errors.explain(error) or ""
        assert message.startswith("out of memory: ")
        assert "lower batch_size" in message


@pytest.mark.parametrize("error", [RuntimeError("RESOURCE_EXHAUSTED"), OSError("closed")])
def test_other_errors_are_bugs(error: Exception) -> None:
    assert errors.explain(error) is None


# Output


def test_output_can_be_closed_early() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = start("experiments", stdout=writing)
    finally:
        os.close(writing)
    # Unix programs have this exit code if their output is closed.
    assert done.returncode == 128 + signal.SIGPIPE
    assert done.stderr == ""


def test_a_terminal_without_utf8_can_show_everything() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = start("experiments", stdout=subprocess.PIPE, env=environment)
    assert done.returncode == 0, done.stderr
    assert "resnet18-adam" in done.stdout


@pytest.mark.parametrize("width", [None, 40, 10], ids=["pipe", "terminal", "narrow"])
def test_tables_never_cut_a_number(width: int | None, capsys, monkeypatch) -> None:
    if width is not None:
        # With FORCE_COLOR, Rich treats the output as a terminal.
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", str(width))
    long = " ".join(["text"] * 100)
    row = (long, "[finished]", "11,173,962", "1,234")  # Rich would read `[name]` as markup.
    print_table(("Name", "State", "Parameters", "Multiply-adds"), [row], (2, 3))
    lines = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()
    assert sum("11,173,962" in line and "1,234" in line for line in lines) == 1
    assert any("Multiply-adds" in line for line in lines)
    assert any("text" in line and "[finished]" in line for line in lines)  # No column disappears.
    if width is None:
        assert any(long in line for line in lines)
    else:
        assert max(map(len, lines)) <= max(width, 51)  # The table needs at least 51 columns.
