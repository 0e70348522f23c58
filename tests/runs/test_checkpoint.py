"""Which checkpoints are kept, and what becomes of damaged ones."""

import errno
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from short_runs import change_meta

from cifar_jax.errors import UserError
from cifar_jax.runs.checkpoints import Checkpoints, DamagedError
from cifar_jax.training.optimizers import plateau_init
from cifar_jax.training.step import Metrics, TrainState

Damage = Callable[[Path], object]


def state(step: int) -> TrainState:
    params = {"w": jnp.full(3000, step, jnp.float32)}
    rates = jnp.zeros(1)
    return TrainState(
        jnp.int32(step), params, {}, (), plateau_init(), Metrics.zero(), rates, averaged={}
    )


def saved(folder: Path, accuracies: dict[int, float | None], keep: int = 3) -> Path:
    with Checkpoints(folder, keep) as checkpoints:
        for step, accuracy in accuracies.items():
            checkpoints.save(state(step), accuracy)
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_checkpoints_kept_are_the_last_and_the_best(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.latest() is None
        assert checkpoints.best() is None
        _, meta, damaged = checkpoints.restore_newest(state(0))
        assert (meta, damaged) == (None, [])
    assert not (tmp_path / "c").exists()
    accuracies = {1: 10.0, 2: 50.0, 3: 20.0, 4: 30.0, 5: None, 6: 40.0, 7: None}
    saved(tmp_path / "c", accuracies, keep=2)
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        assert checkpoints.latest() == 7
        assert checkpoints.best() == 2
        for step in (2, 6, 7):
            assert checkpoints.restore(step, state(0)).params["w"].tolist() == [step] * 3000
    assert names(tmp_path / "c") == {"2", "6", "7"}


def test_what_is_saved_within_an_epoch_pushes_out_no_whole_one(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in range(1, 7):
            checkpoints.save(state(step), 50.0 - step, whole=step in (1, 2, 3))
    assert names(tmp_path) == {"1", "2", "3", "6"}
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(state(7), 10.0)
    assert names(tmp_path) == {"1", "3", "7"}


def test_reading_deletes_nothing(tmp_path: Path) -> None:
    saved(tmp_path, {1: 10.0, 2: 50.0, 3: 20.0})
    (tmp_path / "4.orbax-checkpoint-tmp").mkdir()  # another process may be about to write it
    before = names(tmp_path)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.weights(3)
    assert names(tmp_path) == before
    saved(tmp_path, {5: 10.0})
    assert "4.orbax-checkpoint-tmp" not in names(tmp_path)


def test_what_is_being_written_is_waited_for_though_the_run_is_killed(tmp_path: Path) -> None:
    """And what is no longer kept is deleted."""

    def killed() -> None:
        with Checkpoints(tmp_path) as checkpoints:
            for step in (1, 2):
                checkpoints.save(state(step))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    assert names(tmp_path) == {"2"}


def test_a_checkpoint_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = [ValueError("No space left\n on device")]

    def wait(checkpointer: ocp.AsyncCheckpointer) -> None:
        if errors:
            raise errors.pop()

    monkeypatch.setattr(ocp.AsyncCheckpointer, "wait_until_finished", wait)
    told = r"no checkpoint could be written to .* \(No space left on device\): make room there"
    with pytest.raises(UserError, match=told), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state(1))


def arrays(checkpoint: Path) -> Path:
    """The largest file: the arrays' bytes."""
    files = (path for path in checkpoint.rglob("*") if path.is_file())
    return max(files, key=lambda path: path.stat().st_size)


def flip_a_byte(checkpoint: Path) -> None:
    file = arrays(checkpoint)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def other_meta(*, digest: bool, **changes: Any) -> Damage:
    """With `changes`; `digest` tells whether it is to its digest all the same."""

    def rewrite(checkpoint: Path) -> None:
        path = checkpoint / "meta/metadata"
        meta = json.loads(path.read_text())
        told = {
            name: meta[name] | value if isinstance(value, dict) else value
            for name, value in changes.items()
        }
        if digest:
            change_meta(checkpoint, **told)
        else:
            path.write_text(json.dumps(meta | told))

    return rewrite


def unlisted(checkpoint: Path) -> None:
    """As one flipped bit in a name would leave it: it looks like one of version 1."""
    path = checkpoint / "_CHECKPOINT_METADATA"
    path.write_text(path.read_text().replace('"meta"', '"mete"'))


DAMAGES: dict[str, Damage] = {
    "byte flipped": flip_a_byte,
    "truncated": lambda path: arrays(path).write_bytes(arrays(path).read_bytes()[:100]),
    "file emptied": lambda path: arrays(path).write_bytes(b""),
    "folder emptied": lambda path: [shutil.rmtree(path), path.mkdir()],
    "arrays deleted": lambda path: shutil.rmtree(path / "default"),
    "half deleted": lambda path: shutil.rmtree(path / "default/d"),
    "meta deleted": lambda path: shutil.rmtree(path / "meta"),
    "meta emptied": lambda path: (path / "meta/metadata").write_text(""),
    "meta not listed": unlisted,
    "another accuracy": other_meta(digest=False, validation_accuracy=99.9),
    "another plan": other_meta(digest=False, extra={"epochs": [[1, 2]]}),
    "no digest of its meta": other_meta(digest=False, meta_sha256=None),
    "another step": other_meta(digest=True, step=4),
    "other bytes than saved, of a lower digest": other_meta(
        digest=True, sha256={"params": "f" * 64}
    ),
    "other bytes than saved, of a higher digest": other_meta(
        digest=True, sha256={"params": "0" * 64}
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(
    tmp_path: Path, damage: Damage
) -> None:
    saved(tmp_path, {1: 10.0, 2: 50.0, 3: 20.0})
    damage(tmp_path / "3")
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(DamagedError, match=r"checkpoint .*/3 is damaged"):
            checkpoints.weights(3)
        found, meta, damaged = checkpoints.restore_newest(state(0))
    assert meta is not None
    assert found.params["w"].tolist() == [2] * 3000
    assert [bad.step for bad in damaged] == [3]
    assert damaged[0].reason
    assert names(tmp_path) == {"1", "2", "damaged-3"}
    saved(tmp_path, {3: 30.0})  # the run comes to that step again
    assert names(tmp_path) == {"1", "2", "3", "damaged-3"}
    damage(tmp_path / "3")
    with Checkpoints(tmp_path) as checkpoints:
        _, _, damaged = checkpoints.restore_newest(state(0))
    assert [bad.aside for bad in damaged] == [tmp_path / "damaged-3-2"]
    assert names(tmp_path) == {"1", "2", "damaged-3", "damaged-3-2"}


def test_one_that_is_not_the_newest_is_told_of_too(tmp_path: Path) -> None:
    """It may have been the best."""
    saved(tmp_path, {1: 50.0, 2: 10.0})
    (tmp_path / "1/meta/metadata").write_text("")
    with Checkpoints(tmp_path) as checkpoints:
        _, meta, damaged = checkpoints.restore_newest(state(0))
    assert meta is not None
    assert (meta.step, [bad.step for bad in damaged]) == (2, [1])
    assert names(tmp_path) == {"2", "damaged-1"}


def test_the_one_before_of_a_step_stays_until_the_next_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal in validation saves the step at which its epoch ends; then the epoch is saved."""

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    def again() -> None:
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(state(3), 40.0)

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state(3), whole=False)
    with monkeypatch.context() as patch:
        patch.setattr(ocp.AsyncCheckpointer, "save", killed)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                again()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 3
        assert checkpoints.weights(3)["params"]["w"].tolist() == [3] * 3000
        found, meta, damaged = checkpoints.restore_newest(state(0))
    assert meta is not None
    assert (int(found.step), meta.whole, damaged) == (3, False, [])
    again()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best() == 3
    assert names(tmp_path) == {"3"}


def test_of_two_of_one_step_the_one_before_is_taken_where_the_other_is_damaged(
    tmp_path: Path,
) -> None:
    """A start may be killed when the second is written and the first not yet deleted."""
    saved(tmp_path, {1: 10.0, 2: 20.0})
    shutil.copytree(tmp_path / "2", tmp_path / ".replaced-2")
    flip_a_byte(tmp_path / "2")
    with Checkpoints(tmp_path) as checkpoints:
        found, meta, damaged = checkpoints.restore_newest(state(0))
    assert meta is not None
    assert (int(found.step), meta.step) == (2, 2)
    assert [(bad.step, bad.aside.name) for bad in damaged] == [(2, "damaged-2")]
    assert names(tmp_path) == {"1", ".replaced-2", "damaged-2"}
    saved(tmp_path, {3: 30.0})
    assert names(tmp_path) == {"1", ".replaced-2", "3", "damaged-2"}


def test_where_all_are_damaged_nothing_is_touched(tmp_path: Path) -> None:
    saved(tmp_path, {1: 10.0, 2: 50.0})
    for step in "12":
        flip_a_byte(tmp_path / step)
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match=r"no checkpoint in .* can be read \(2: .*; 1: .*\)"),
    ):
        checkpoints.restore_newest(state(0))
    assert names(tmp_path) == {"1", "2"}


def test_a_damaged_one_pushes_out_no_whole_one(tmp_path: Path) -> None:
    saved(tmp_path, {1: None, 2: None}, keep=2)
    (tmp_path / "2/meta/metadata").write_text("")
    saved(tmp_path, {3: None}, keep=2)
    assert names(tmp_path) == {"1", "2", "3"}  # and is told of at the next start


def test_metadata_that_makes_no_sense_is_damaged(tmp_path: Path) -> None:
    saved(tmp_path, {1: 10.0})
    for text in ("{}", "[]", "null"):
        (tmp_path / "1/meta/metadata").write_text(text)
        with Checkpoints(tmp_path) as checkpoints:
            assert checkpoints.best() is None
            with pytest.raises(DamagedError, match="its metadata cannot be read"):
                checkpoints.weights(1)


def test_a_checkpoint_of_another_network_is_not_restored(tmp_path: Path) -> None:
    """Of one with fewer or more weights, or of another type."""
    saved(tmp_path, {1: 10.0})
    for count, kind in ((2999, "float32"), (3001, "float32"), (3000, "int32")):
        like = state(0)._replace(params={"w": jnp.zeros(count, kind)})
        with (
            Checkpoints(tmp_path) as checkpoints,
            pytest.raises(DamagedError, match=r"checkpoint .*/1 is damaged"),
        ):
            checkpoints.restore(1, like)


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def test_why_one_cannot_be_read_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, {1: 10.0})
    for error, told in ((ValueError("two\n  lines"), "two lines"), (ValueError(), "ValueError")):
        monkeypatch.setattr(ocp.PyTreeCheckpointer, "restore", failing(error))
        with (
            Checkpoints(tmp_path) as checkpoints,
            pytest.raises(DamagedError, match=rf"/1 is damaged \({told}\)$"),
        ):
            checkpoints.restore(1, state(0))


def test_too_little_memory_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, {1: 10.0, 2: 20.0})
    monkeypatch.setattr(ocp.PyTreeCheckpointer, "restore", failing(MemoryError()))
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(MemoryError):
        checkpoints.restore_newest(state(0))
    assert names(tmp_path) == {"1", "2"}


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "Too many open files"),
        ValueError("NOT_FOUND: Error opening: [OS error 5: EIO Input/output error]"),
    ],
)
def test_what_the_system_refuses_to_read_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    saved(tmp_path, {1: 10.0, 2: 20.0})
    monkeypatch.setattr(ocp.PyTreeCheckpointer, "restore", failing(error))
    told = r"checkpoint .*/2 cannot be read \(.*\): mend that, and start again"
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match=told):
        checkpoints.restore_newest(state(0))
    assert names(tmp_path) == {"1", "2"}


@pytest.mark.parametrize("name", ["a[b]", "gs:", "what?*", "ä ö"])
def test_folders_may_have_any_name(tmp_path: Path, name: str) -> None:
    folder = saved(tmp_path / name / "checkpoints", {1: 10.0, 2: 20.0})
    with Checkpoints(folder) as checkpoints:
        found, meta, damaged = checkpoints.restore_newest(state(0))
    assert meta is not None
    assert (int(found.step), damaged) == (2, [])
    assert names(folder) == {"1", "2"}


def test_a_field_that_came_later_has_its_initial_value(tmp_path: Path) -> None:
    class Later(NamedTuple):
        step: Any
        params: Any
        came_later: Any

    class Earlier(NamedTuple):
        step: Any
        params: Any

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(Earlier(jnp.int32(1), {"w": jnp.ones(2)}))
    with Checkpoints(tmp_path) as checkpoints:
        like = Later(jnp.int32(0), {"w": jnp.zeros(2)}, jnp.float32(7))
        found = checkpoints.restore(1, like)
    assert found.params["w"].tolist() == [1, 1]
    assert float(found.came_later) == 7


def test_digests_are_over_paths_types_shapes_and_bytes(tmp_path: Path) -> None:
    """In every version: by others, each checkpoint that there is would count as damaged."""

    class Nested(NamedTuple):
        step: Any
        params: Any

    params = {"b": {"kernel": jnp.float32([[1, 2]])}, "a": jnp.int32([3])}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(Nested(jnp.int32(1), params))
    text = b"a int32 (1,)\0" + np.array([3], "<i4").tobytes()
    text += b"b/kernel float32 (1, 2)\0" + np.array([1, 2], "<f4").tobytes()
    assert json.loads((tmp_path / "1/meta/metadata").read_text())["sha256"] == {
        "step": hashlib.sha256(b" int32 ()\0" + np.array(1, "<i4").tobytes()).hexdigest(),
        "params": hashlib.sha256(text).hexdigest(),
    }
