"""Test that checkpoints are saved and restored, and that damaged checkpoints are renamed."""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from cifar_jax.errors import UserError
from cifar_jax.runs.checkpoints import Checkpoints, DamagedError

Damage = Callable[[Path], object]


class State(NamedTuple):
    step: Any
    epoch: Any
    params: Any
    batch_stats: Any
    optimizer: Any
    averaged: Any


def state(step: int, epoch: int = 0, size: int = 3000, **fields: Any) -> State:
    kernel = np.random.default_rng(step).normal(size=size).astype(np.float32)
    params = {"conv1": {"kernel": jnp.asarray(kernel)}}
    stats = {"bn1": {"mean": jnp.full(3, step, jnp.bfloat16)}}
    optimizer = optax.adam(0.1).init(params)
    values = State(jnp.int32(step), jnp.int32(epoch), params, stats, optimizer, averaged={})
    return values._replace(**fields)


def save(folder: Path, accuracies: dict[int, float | None], keep: int = 3) -> Path:
    """Save one checkpoint per step. `accuracies` maps each step to its validation accuracy."""
    with Checkpoints(folder, keep) as checkpoints:
        for step, accuracy in accuracies.items():
            checkpoints.save(state(step), end_of_epoch=True, validation_accuracy=accuracy)
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_an_empty_folder_has_no_checkpoints(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert (checkpoints.all(), checkpoints.latest(), checkpoints.best()) == ([], None, None)
        like = state(7)
        assert checkpoints.restore_latest(like) == (like, None, [])
        assert checkpoints.restore_best(like) == (like, None, [])
    assert not (tmp_path / "checkpoints").exists()


def test_the_last_epochs_and_the_best_are_kept(tmp_path: Path) -> None:
    accuracies = {10: 10.0, 20: 50.0, 30: 20.0, 40: 50.0, 50: None, 60: 40.0, 70: None}
    save(tmp_path, accuracies, keep=2)
    assert names(tmp_path) == {"4", "6", "7"}
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert [saved.step for saved in checkpoints.all()] == [40, 60, 70]
        latest, best = checkpoints.latest(), checkpoints.best()
    assert latest
    assert latest.step == 70
    assert best
    # Several checkpoints have the best accuracy. `best` returns the latest.
    assert (best.step, best.validation_accuracy) == (40, 50.0)


def test_a_save_within_an_epoch_is_kept_until_the_next_save(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3, 4, 5, 6):
            checkpoints.save(state(step), end_of_epoch=step <= 3)
        checkpoints.wait()
        assert names(tmp_path) == {"2", "3", "6"}
        checkpoints.save(state(6), end_of_epoch=True)  # Save step 6 again, after validation.
        checkpoints.wait()
        assert names(tmp_path) == {"3", "7"}


def test_a_state_is_restored_with_its_metadata(tmp_path: Path) -> None:
    folder = tmp_path / "ä ö, 50% @a=b" / "checkpoints"
    original = state(3, epoch=1, averaged={"params": {"w": jnp.arange(4.0)}})
    extra = {"elapsed_seconds": 1.25, "line": [0.1, 3]}
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(original, end_of_epoch=False, validation_accuracy=12.5, extra=extra)
    like = state(0, averaged={"params": {"w": jnp.zeros(4)}})
    with Checkpoints(folder) as checkpoints:
        restored, saved, messages = checkpoints.restore_latest(like)
        assert saved
        chex.assert_trees_all_equal(checkpoints.restore(saved, like), restored, original)
    chex.assert_trees_all_equal_shapes_and_dtypes(restored, original)
    assert messages == []
    assert (saved.number, saved.step, saved.epoch) == (1, 3, 1)
    assert (saved.end_of_epoch, saved.validation_accuracy, saved.extra) == (False, 12.5, extra)
    assert saved.digests.keys() == {*State._fields}


def test_arrays_may_be_donated_after_a_save(tmp_path: Path) -> None:
    update = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    current = jax.device_put(state(1, size=1_000_000))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(current, end_of_epoch=False)
        for _ in range(3):
            current = update(current)
        checkpoints.wait()
        restored, _, messages = checkpoints.restore_latest(state(0, size=1_000_000))
    chex.assert_trees_all_equal(restored, state(1, size=1_000_000))
    assert messages == []


@pytest.mark.parametrize("averaged", [True, False])
def test_weights_are_averaged_if_an_average_is_kept(tmp_path: Path, averaged: bool) -> None:
    other = {"params": {"w": jnp.ones(2)}, "batch_stats": {"b": jnp.ones(3)}}
    saved_state = state(5, averaged=other if averaged else {})
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(state(4, batch_stats={}), end_of_epoch=True)
        checkpoints.save(saved_state, end_of_epoch=True)
        checkpoints.wait()
        without_stats, latest = checkpoints.all()
        assert checkpoints.weights(without_stats)["batch_stats"] == {}
        weights = checkpoints.weights(latest)
    expected = other if averaged else {name: getattr(saved_state, name) for name in other}
    chex.assert_trees_all_equal(weights, expected)


def test_only_saving_deletes_the_leftovers_of_a_killed_process(
    tmp_path: Path,
) -> None:
    save(tmp_path, {1: 10.0, 2: 50.0, 3: 20.0})
    for name in ("4.orbax-checkpoint-tmp", ".deleted-0"):
        (tmp_path / name / "state").mkdir(parents=True)
    before = names(tmp_path)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.restore_latest(state(0))
    assert names(tmp_path) == before
    save(tmp_path, {5: 10.0})
    assert names(tmp_path) == {"2", "3", "5"}


def test_an_interrupt_waits_for_the_save_in_progress(tmp_path: Path) -> None:
    def interrupted() -> None:
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(state(1), end_of_epoch=True)
            checkpoints.save(state(2), end_of_epoch=True)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == {"2"}


def test_a_failed_write_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("No space left\n on device")

    monkeypatch.setattr(ocp.AsyncCheckpointer, "wait_until_finished", fail)
    message = r"cannot write a checkpoint to .* \(No space left on device\)\. Is the disk full"
    with pytest.raises(UserError, match=message), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state(1), end_of_epoch=True)


def arrays(checkpoint: Path) -> Path:
    """Return the largest file of a checkpoint, which contains the arrays."""
    files = (path for path in checkpoint.rglob("*") if path.is_file())
    return max(files, key=lambda path: path.stat().st_size)


def flip_a_bit(checkpoint: Path) -> None:
    content = bytearray(arrays(checkpoint).read_bytes())
    content[len(content) // 2] ^= 1
    arrays(checkpoint).write_bytes(content)


def change_meta(**changes: Any) -> Damage:
    def change(checkpoint: Path) -> None:
        path = checkpoint / "meta/metadata"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


DAMAGES: dict[str, Damage] = {
    "bit flipped": flip_a_bit,
    "truncated": lambda path: arrays(path).write_bytes(arrays(path).read_bytes()[:100]),
    "file emptied": lambda path: arrays(path).write_bytes(b""),
    "folder emptied": lambda path: [shutil.rmtree(path), path.mkdir()],
    "arrays deleted": lambda path: shutil.rmtree(path / "state"),
    "arrays half deleted": lambda path: shutil.rmtree(path / "state/d"),
    "meta deleted": lambda path: shutil.rmtree(path / "meta"),
    "meta emptied": lambda path: (path / "meta/metadata").write_text(""),
    "meta is no object": lambda path: (path / "meta/metadata").write_text("[]"),
    "other accuracy": change_meta(validation_accuracy=99.9),
    "other values": change_meta(extra={"elapsed_seconds": 9}),
    "other digests": change_meta(digests={}),
    "no digest of the meta": change_meta(meta_sha256=""),
    "a copy": lambda path: [shutil.rmtree(path), shutil.copytree(path.parent / "1", path)],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_renamed_and_the_previous_one_is_restored(
    tmp_path: Path, damage: Damage
) -> None:
    save(tmp_path, {10: 10.0, 20: 50.0, 30: 20.0})
    with Checkpoints(tmp_path) as checkpoints:
        latest = checkpoints.latest()
        assert latest
        damage(tmp_path / "3")
        if damage is flip_a_bit:
            with pytest.raises(DamagedError, match=r"checkpoint 3 in .* is damaged: .*params"):
                checkpoints.weights(latest)
        restored, saved, messages = checkpoints.restore_latest(state(0))
    assert saved
    assert (int(restored.step), saved.number) == (20, 2)
    chex.assert_trees_all_equal(restored, state(20))
    assert len(messages) == 1
    assert messages[0].startswith(f"checkpoint 3 in {tmp_path} is damaged: ")
    assert messages[0].endswith(". Renamed to damaged-3.")
    assert names(tmp_path) == {"1", "2", "damaged-3"}
    save(tmp_path, {30: 30.0}, keep=1)
    # The number of the damaged checkpoint is not used again.
    assert names(tmp_path) == {"2", "4", "damaged-3"}


@pytest.mark.parametrize("damage", [flip_a_bit, DAMAGES["meta emptied"]], ids=["arrays", "meta"])
def test_a_damaged_best_checkpoint_is_renamed_and_the_next_best_is_restored(
    tmp_path: Path, damage: Damage
) -> None:
    save(tmp_path, {1: 50.0, 2: 40.0, 3: 30.0})
    damage(tmp_path / "1")
    with Checkpoints(tmp_path) as checkpoints:
        restored, saved, messages = checkpoints.restore_best(state(0))
    assert saved
    assert (int(restored.step), saved.validation_accuracy) == (2, 40.0)
    assert [m.split(":")[0] for m in messages] == [f"checkpoint 1 in {tmp_path} is damaged"]
    assert names(tmp_path) == {"damaged-1", "2", "3"}


def test_nothing_is_renamed_if_all_checkpoints_are_damaged(tmp_path: Path) -> None:
    save(tmp_path, {1: 10.0, 2: 50.0})
    for number in "12":
        flip_a_bit(tmp_path / number)
    message = "checkpoint 2 in .*; checkpoint 1 in .* The run has no other checkpoint"
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match=message):
        checkpoints.restore_latest(state(0))
    assert names(tmp_path) == {"1", "2"}


def test_damaged_metadata_does_not_displace_a_good_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, {1: None, 2: None}, keep=2)
    (tmp_path / "2/meta/metadata").write_text("")
    save(tmp_path, {3: None}, keep=2)
    assert names(tmp_path) == {"1", "2", "3"}


@pytest.mark.parametrize(
    ("fields", "difference"),
    [
        (
            {"params": {"w": np.ones(3)}},
            r"params/conv1/kernel is float32\[3000\] in the checkpoint and missing",
        ),
        (
            {"averaged": {"w": np.ones(2)}},
            r"averaged/w is missing in the checkpoint and float64\[2\]",
        ),
        ({"batch_stats": {"bn1": {"mean": np.ones(4)}}}, r"batch_stats/bn1/mean is bfloat16\[3\]"),
        ({"step": np.float32(0)}, r"step is int32\[\] in the checkpoint and float32\[\]"),
    ],
)
def test_a_checkpoint_of_another_network_is_not_damaged(
    tmp_path: Path, fields: dict[str, Any], difference: str
) -> None:
    save(tmp_path, {1: 10.0, 2: 20.0})
    message = rf"checkpoint 2 in .* is from another network or optimizer \({difference}"
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match=message) as error:
        checkpoints.restore_latest(state(0)._replace(**fields))
    assert not isinstance(error.value, DamagedError)
    assert names(tmp_path) == {"1", "2"}


def test_too_little_memory_is_not_reported_as_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise MemoryError

    save(tmp_path, {1: 10.0, 2: 20.0})
    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", fail)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(MemoryError):
        checkpoints.restore_latest(state(0))
    assert names(tmp_path) == {"1", "2"}


@pytest.mark.parametrize("name", ["a[b]", "gs:", "what?", "a\\b", "x\udcff"])
def test_folder_names_that_orbax_cannot_use_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot hold checkpoints, because its path contains"):
        Checkpoints(tmp_path / name / "checkpoints")
    assert names(tmp_path) == set()


def test_arrays_are_not_read_in_the_main_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the main thread, a signal would raise an exception inside asyncio, which could hang."""
    threads = []
    read = ocp.PyTreeCheckpointHandler.metadata

    def spy(self: Any, path: Any) -> Any:
        threads.append(threading.current_thread())
        return read(self, path)

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "metadata", spy)
    with Checkpoints(save(tmp_path, {1: None})) as checkpoints:
        checkpoints.restore_latest(state(0))
    assert threads
    assert threading.main_thread() not in threads
