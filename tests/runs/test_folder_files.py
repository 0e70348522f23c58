"""The name of a run's folder, and its files one by one."""

import errno
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cifar_jax.config import Config, Model, Optimizer, flatten
from cifar_jax.errors import UserError
from cifar_jax.runs import environment
from cifar_jax.runs.files import read_json
from cifar_jax.runs.folder import Workdir, folder_name, open_workdir

CONFIG = Config(model=Model(name="basic"), epochs=2, batch_size=8, optimizer=Optimizer(lr=0.1))
IDENTITY = {"experiment": "basic", "seed": 0, "overrides": {}, "config": flatten(CONFIG)}


# Its name, under which a run is looked for: by another it would begin anew


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "net"),
        ({"epochs": 5, "optimizer.lr": 3e-4}, "net@epochs=5,lr=0.0003"),
        ({"optimizer.name": "adam", "model.name": "x"}, "net@optimizer.name=adam,model.name=x"),
        ({"data.flip": False}, "net@flip=False"),
        ({"tta.flip": False}, "net@tta.flip=False"),
        ({"data.dataset": "folder:/my images/ä"}, "net@dataset=folder-my-images-ä"),
    ],
)
def test_a_variation_has_a_folder_of_its_own(changes: dict[str, Any], name: str) -> None:
    assert folder_name("net", changes) == name


def test_long_names_of_folders_are_cut_and_stay_apart() -> None:
    one, other = (folder_name("net", {"data.dataset": f"folder:/{'long' * 60}/{n}"}) for n in "12")
    assert one != other
    assert max(len(one), len(other)) < 90


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"model.name": "x"}, "net@model.name=x"),
        ({"data.flip": True, "tta.flip": True}, "net@flip=True,tta.flip=True"),
    ],
)
def test_a_name_says_which_setting_is_meant(changes: dict[str, Any], name: str) -> None:
    assert folder_name("net", changes) == name


def test_what_differs_is_cut_where_it_takes_more_than_80_characters() -> None:
    text = "dataset=" + 72 * "x"
    assert folder_name("net", {"data.dataset": 72 * "x"}) == f"net@{text}"
    text += "x"
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert folder_name("net", {"data.dataset": 73 * "x"}) == f"net@{text[:60]}-{digest[:8]}"


def test_a_folder_among_other_things_may_become_a_runs(tmp_path: Path) -> None:
    """Only a run's own folder may not hold another's."""
    (tmp_path / "config.json").write_text('{"name": "my web app"}')
    (tmp_path / "others/checkpoints").mkdir(parents=True)
    for path in (tmp_path / "seed0", tmp_path / "others/seed0"):
        with open_workdir(path, IDENTITY, fresh=False):
            pass
        assert read_json(path / "config.json") == IDENTITY


# Its files


def row(epoch: int, step: int) -> dict[str, Any]:
    measured = {"train_loss": 1.5, "train_accuracy": 50.0, "images_per_second": 9.0}
    return {"epoch": epoch, "step": step, **measured, "learning_rate": 0.1, "wall_seconds": 3}


def test_rewind_drops_what_will_be_repeated(tmp_path: Path) -> None:
    with open_workdir(tmp_path, IDENTITY, fresh=False) as run:
        run.append_epoch(row(1, 10))
        run.append_epoch(row(2, 20))
    folder = Workdir(tmp_path)
    assert folder.rewind(1) == [row(1, 10)]
    assert folder.epochs() == ([row(1, 10)], 0)
    assert folder.rewind(0) == []


def test_lost_lines_are_counted_and_survived(tmp_path: Path) -> None:
    with open_workdir(tmp_path, IDENTITY, fresh=False) as run:
        run.append_epoch(row(1, 10))
        run.append_epoch(row(2, 20))
    path = tmp_path / "metrics.jsonl"
    first, second = path.read_text().splitlines()
    path.write_text(f'{first[:8]}\n{second}\n[1]\n{{"epoch": 3, "st')
    folder = Workdir(tmp_path)
    assert folder.epochs() == ([row(2, 20)], 3)
    assert folder.rewind(2) == [row(2, 20)]
    folder.append_epoch(row(3, 30))
    folder.append_epoch(row(2, 21))  # written down twice: the later counts
    assert folder.epochs() == ([row(2, 21), row(3, 30)], 0)


def test_every_start_is_recorded(tmp_path: Path) -> None:
    device = {"platform": "cpu", "kind": "cpu", "count": 1}
    with open_workdir(tmp_path, IDENTITY, fresh=False) as folder:
        folder.record_start(device, {"train.devices": 1})
        folder.record_start(device, {"train.devices": 2})
    starts = folder.starts()
    assert [start["execution"] for start in starts] == [{"train.devices": 1}, {"train.devices": 2}]
    assert starts[0]["device"] == device
    assert {"python", "jax", "flax", "optax", "orbax-checkpoint"} <= starts[0]["versions"].keys()
    named = {"started", "command", "git_commit", "machine", "xla_flags", "matmul_precision"}
    assert named <= starts[0].keys()
    assert {"cpu", "cores", "features"} <= starts[0]["machine"].keys()
    assert environment.differences(starts) == []


def test_a_line_without_an_epoch_is_lost_and_no_other(tmp_path: Path) -> None:
    lines = ('{"step": 10}', '{"epoch": null}', '{"epoch": "?"}', '{"epoch": 1, "step": 10}')
    (tmp_path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    assert Workdir(tmp_path).epochs() == ([{"epoch": 1, "step": 10}], 3)


def test_logits_are_kept_in_half_their_size_beside_the_result(tmp_path: Path) -> None:
    Workdir(tmp_path).write_result({"test_accuracy": 50.0}, np.float32([[1.5, -0.1]]))
    kept = np.load(tmp_path / "test_logits.npy")
    assert kept.dtype == np.float16
    assert kept.tolist() == np.float16([[1.5, -0.1]]).tolist()
    assert Workdir(tmp_path).result() == {"test_accuracy": 50.0}


@pytest.mark.parametrize("card", [None, {"version": 1, "classes": ["cat", "dog"]}])
def test_what_defines_a_model_is_kept_beside_what_the_card_says(
    tmp_path: Path, card: dict[str, Any] | None
) -> None:
    """In a folder of before there were cards, too; a later start has the last word."""
    folder = Workdir(tmp_path)
    if card:
        folder.write_card(card)
    for source in (b"MODEL = 1\n", b"MODEL = 2\n"):
        folder.write_code(source, "mine.py")
        digest = hashlib.sha256(source).hexdigest()
        assert folder.code.read_bytes() == source
        assert folder.card() == (card or {}) | {"code": {"file": "mine.py", "sha256": digest}}


def test_what_cannot_be_deleted_is_named_and_the_folder_stays_a_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_workdir(tmp_path, IDENTITY, fresh=False) as folder:
        folder.append_epoch({"epoch": 1, "step": 10})
    unlink = Path.unlink

    def refused(path: Path, missing_ok: bool = False) -> None:
        if path.name == "metrics.jsonl":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        unlink(path, missing_ok=missing_ok)

    told = r"metrics\.jsonl cannot be deleted \(Permission denied\): choose another --workdir"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refused)
        with pytest.raises(UserError, match=told):
            open_workdir(tmp_path, IDENTITY | {"seed": 1}, fresh=True).__enter__()
    assert read_json(tmp_path / "config.json") == IDENTITY
    with open_workdir(tmp_path, IDENTITY, fresh=True) as folder:  # it is free again
        assert folder.epochs() == ([], 0)
