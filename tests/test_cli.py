"""Every verb of the command line, from its arguments to its exit code and what it prints."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cifar_jax import catalog, cli, config
from cifar_jax.cli.train import _result_line
from cifar_jax.data.cifar10 import CLASSES
from cifar_jax.errors import Stopped, UserError
from cifar_jax.models import MODELS, PAPER_PARAMETERS
from cifar_jax.runs.folder import folder_name
from cifar_jax.training.fit import Run

QUICK = (
    *("--set", "data.dataset=digits", "--set", "epochs=1", "--set", "data.train_images=64"),
    *("--set", "data.validation=0.1", "--set", "train.devices=1"),
)


def quick(experiment: str) -> str:
    """The folder's name of a run with those settings."""
    own = catalog.load("basic").config
    asked = config.override(own, QUICK[1::2])
    changes = config.differences(config.identity(own), config.identity(asked))
    return folder_name(experiment, {name: value for name, (_, value) in changes.items()})


class Outcome:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Call the command line in an empty folder, without CIFAR-10."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))

    def call(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = cli.run(arguments)
        return Outcome(code, *capsys.readouterr())

    return call


def test_help_imports_little_and_names_every_verb() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "cifar_jax", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for verb in (
        "train",
        "evaluate",
        "models",
        "summary",
        "experiments",
        "settings",
        "data",
        "report",
    ):
        assert f"\n  {verb} " in done.stdout
    for heavy in ("jax", "numpy", "pydantic", "matplotlib", "tensorflow_datasets"):
        assert f"| {heavy}\n" not in done.stderr, f"--help imports {heavy}"


def test_models_agree_with_the_paper(run) -> None:
    done = run("models", "--json")
    assert done.code == 0
    rows = {row["name"]: row for row in json.loads(done.out)}
    assert list(rows) == list(MODELS)
    for name, count in PAPER_PARAMETERS.items():
        assert rows[name]["parameters"] == rows[name]["paper_parameters"] == count
    assert "11,173,962" in run("models").out


def test_summary_has_the_papers_columns(run) -> None:
    done = run("summary", "net-attention")
    assert done.code == 0
    assert "Layer Name" in done.out
    assert "Layer Configuration" in done.out
    for words in ("3x3, 64, padding=1", "BatchNorm2d 64", "In_dim=128", "16x16", "521,646"):
        assert words in done.out
    layers = json.loads(run("summary", "basic", "--json").out)
    assert [layer["output_size"] for layer in layers[1:5]] == ["28x28", "14x14", "10x10", "5x5"]
    assert sum(layer["parameters"] for layer in layers) == 62_006


def test_experiments_agree_with_their_files(run) -> None:
    rows = json.loads(run("experiments", "--json").out)
    assert [row["name"] for row in rows] == catalog.names()
    best = next(row for row in rows if row["name"] == "resnet10-plateau")
    assert best["paper_accuracy"] == 92.09
    assert best["settings"]["schedule.name"] == "plateau"
    assert "3.5(5)" in best["description"]
    assert "resnet18-adam-lr1e-4" in run("experiments").out


def test_settings_are_all_that_set_reaches(run) -> None:
    rows = json.loads(run("settings", "--json").out)
    # Of the two averages, which exclude each other, a config has one or neither.
    names = [row["name"] for row in rows if not row["name"].startswith("averaging.")]
    assert names == list(config.flatten(catalog.load("basic").config))
    listing = run("settings").out
    assert "optimizer.name: one of sgd, adam, adamw, muon  [sgd]\n" in listing
    assert "data.train_images: a whole number, at least 1, or none  [none]\n" in listing
    assert "Learning rate; the schedule moves it." in listing


def test_train_then_again_then_evaluate_then_report(run, tmp_path: Path) -> None:
    done = run("train", "basic", "--seed", "3", *QUICK)
    assert done.code == 0, done.err
    assert "test accuracy" in done.out
    folder = tmp_path / "runs" / quick("basic") / "seed3"
    result = json.loads((folder / "result.json").read_text())
    assert result["seed"] == 3
    assert result["overrides"]["data.dataset"] == "digits"

    again = run("train", "basic", "--seed", "3", *QUICK)
    assert again.code == 0
    assert "is finished" in again.out

    there = ("--seed", "3", "--workdir", str(folder))
    other = run("train", "basic", *there, *QUICK, "--set", "optimizer.lr=0.01")
    assert other.code == 2
    assert "optimizer.lr: 0.001 there, 0.01 here" in other.err

    evaluated = json.loads(run("evaluate", str(folder), "--json").out)
    assert evaluated["accuracy"] == pytest.approx(result["test_accuracy"])
    assert evaluated["images"] == 360
    assert "validation accuracy" in run("evaluate", str(folder), "--split", "validation").out

    report = run("report")
    assert report.code == 0
    assert "not run" in report.out
    assert "data.dataset=digits" in report.out
    assert (tmp_path / "runs/report.md").exists()
    refused = run("report", "--record", "results", str(folder))
    assert refused.code == 2
    assert not (tmp_path / "results").exists()


def test_seeds_and_workdir(run, tmp_path: Path) -> None:
    assert run("train", "basic", "--seeds", "2", "--workdir", "here", *QUICK).code == 0
    assert (tmp_path / "here/seed0/result.json").exists()
    assert (tmp_path / "here/seed1/result.json").exists()
    assert run("train", "basic", "--workdir", "one", *QUICK).code == 0
    assert (tmp_path / "one/result.json").exists()
    assert run("train", "basic", "--workdir", "one", *QUICK, "--fresh").code == 0


def test_one_that_fails_does_not_keep_the_others_from_their_turn(run, tmp_path: Path) -> None:
    text = (catalog.experiments_folder() / "basic.py").read_text()
    (tmp_path / "other.py").write_text(text)
    occupied, free = (tmp_path / "all" / quick(name) / "seed0" for name in ("other", "basic"))
    occupied.mkdir(parents=True)
    (occupied / "letter.txt").write_text("not a run's")
    done = run("train", "other.py", "basic", "--workdir", "all", *QUICK)
    assert done.code == 2
    assert (free / "result.json").exists()
    said = done.out.partition("1 of 2 are finished:")[2]
    assert f"other seed 0: failed: {occupied.relative_to(tmp_path)} holds other files" in said
    assert "basic seed 0: test accuracy" in said
    assert "1 failed" in done.err

    (occupied / "letter.txt").unlink()
    again = run("train", "other.py", "basic", "--workdir", "all", *QUICK)
    assert again.code == 0
    assert f"{free.relative_to(tmp_path)} is finished" in again.out
    assert "2 of 2 are finished:" in again.out


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders of the trainings that were begun. None takes any time; that of `net` fails, that
    of `resnet10` breaks, and one of batches of 7 is stopped."""
    folders = []

    def fit(asked: Run, display: object) -> dict[str, Any]:
        folders.append(asked.workdir)
        if asked.config.batch_size in (7, 9):
            raise Stopped(signal.SIGTERM, saved=asked.config.batch_size == 7)
        if asked.experiment == "net":
            raise UserError("the loss is not finite")
        if asked.experiment == "resnet10":
            raise RuntimeError("out of memory\nat length")
        facts = {"experiment": asked.experiment, "seed": asked.seed, "test_accuracy": 50.0}
        return facts | {"epochs": 1, "paper_accuracy": None, "best_validation_epoch": None}

    monkeypatch.setattr("cifar_jax.training.fit.fit", fit)
    return folders


PAPER = [name for name in catalog.names() if catalog.load(name).config.paper]


def test_the_papers_experiments_one_after_the_other(run, begun: list[Path], capsys) -> None:
    with pytest.raises(RuntimeError, match="out of memory"):  # a fault is shown, after the others
        run("train", "--paper", "--seed", "2")
    said = capsys.readouterr().out.partition(f"8 of {len(PAPER)} are finished:\n")[2]
    assert begun == [Path("runs", name, "seed2") for name in PAPER]
    lines = [line.strip() for line in said.splitlines()]
    assert [line.partition(" ")[0] for line in lines] == PAPER
    assert "net seed 2: failed: the loss is not finite" in lines
    assert "resnet10 seed 2: failed: RuntimeError: out of memory" in lines


def test_a_signal_stops_all(run, tmp_path: Path, begun: list[Path]) -> None:
    (tmp_path / "runs/resnet10@batch_size=7/seed0").mkdir(parents=True)
    (tmp_path / "runs/resnet10@batch_size=7/seed0/result.json").write_text("{}")
    done = run("train", "basic", "net", "resnet10", "--set", "batch_size=7")
    assert done.code == 128 + signal.SIGTERM
    assert begun == [Path("runs/basic@batch_size=7/seed0")]
    assert "basic seed 0: saved and stopped" in done.out
    assert "net seed 0: not trained in this start" in done.out
    assert "resnet10 seed 0: finished before" in done.out
    assert "1 of 3 are finished" in done.out
    done = run("train", "basic", "--seeds", "2", "--set", "batch_size=9")
    assert "basic seed 0: stopped\n" in done.out  # before there was anything to save
    assert "--fresh" not in done.out
    (tmp_path / "runs/basic@batch_size=9/seed0/checkpoints").mkdir(parents=True)
    assert "leave --fresh out" in run("train", "basic", "--fresh", "--set", "batch_size=9").out


def test_train_a_config_file(run, tmp_path: Path) -> None:
    text = (catalog.experiments_folder() / "basic.py").read_text()
    (tmp_path / "my_own.py").write_text(text.replace("epochs=20", "epochs=1"))
    done = run("train", "my_own.py", *QUICK)
    assert done.code == 0, done.err
    assert len(list((tmp_path / "runs").glob("my-own@*/seed0/result.json"))) == 1


def test_data_import_and_status(run, tmp_path: Path) -> None:
    assert "not there" in run("data", "status").out
    for number, name in enumerate(CLASSES):
        for split in ("train", "test"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (32, 32), (number, 0, 0)).save(folder / "1.png")
    done = run("data", "import", "images")
    assert done.code == 0, done.err
    assert "10 train, 10 test images" in done.out
    assert "official: no" in done.out
    status = run("data", "status")
    assert "cifar10:3.0.2" in status.out
    assert "not there" not in status.out
    assert run("data", "import", "images").code == 2  # never written over


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train"], "name one EXPERIMENT"),
        (["train", "basic", "--paper"], "name one EXPERIMENT"),
        (["train", "basic", "nett"], "did you mean net?"),
        (["train", "basik"], "did you mean basic?"),
        (["train", "nowhere.py"], "no experiment file"),
        (["train", "basic", "--set", "optimizer.lr"], "expected key=value"),
        (["train", "basic", "--set", "optimiser.lr=1"], "did you mean optimizer.lr?"),
        (["train", "basic", "--set", "epochs=two"], "expected a whole number"),
        (["train", "basic", "--set", "optimizer.lr=-1"], "must be positive"),
        (["train", "basic", "--set", "model.name=nett"], "did you mean net"),
        (["train", "basic", "--set", "model.pooling=average"], "basic has no pooling"),
        (["train", "basic", "--set", "data.dataset=digit"], "did you mean digits?"),
        (["train", "basic", *QUICK, "--set", "batch_size=65"], "batch_size 65 is larger"),
        (["train", "basic", *QUICK, "--set", "train.devices=99"], "train.devices=99"),
        (["train", "basic", "--seed", "1", "--seeds", "2"], "exclude each other"),
        (["train", "basic", "--seed", "-1"], "--seed"),
        (["summary", "resnet19"], "did you mean resnet1"),
        (["evaluate", "runs/none"], "no run or export runs/none"),
        (["report", "runs/none"], "runs/none"),
        (["data", "import", "none.tar.gz"], "none.tar.gz"),
        (["trian"], "No such command"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(run, tmp_path: Path, arguments, words) -> None:
    done = run(*arguments)
    assert done.code == 2
    assert words in done.err
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


OWN = {
    **{"experiment": "basic", "seed": 0, "epochs": 20, "test_accuracy": 61.0},
    **{"paper_accuracy": 62.06, "best_validation_epoch": None, "overrides": {}},
    **{"data_sha256": "of another order", "data_official": True},
}


@pytest.mark.parametrize(
    "changes", [{"data_official": False}, {"overrides": {"epochs": 20}}, {"halvings": 1}]
)
def test_only_the_papers_own_is_told_beside_the_paper(changes: dict[str, Any]) -> None:
    assert "(the paper: 62.06 %)" in _result_line(OWN)
    assert "the paper" not in _result_line(OWN | changes)


def test_a_fault_is_not_called_the_users(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fault() -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(catalog, "names", fault)
    with pytest.raises(RuntimeError):
        cli.run(["experiments"])
    monkeypatch.setattr(sys, "argv", ["cifar-jax", "experiments"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert 'raise RuntimeError("broken")' in capsys.readouterr().err


def test_a_second_signal_stops_at_once(run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(catalog, "names", interrupted)
    done = run("experiments")
    assert done.code == 128 + signal.SIGINT
    assert done.err.splitlines()[-1] == "cifar-jax: stopped"
