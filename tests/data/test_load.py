"""Loading: the cache, folders that are damaged, and splits."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cifar_jax import data
from cifar_jax.data import cache, tfds_folder
from cifar_jax.data.cifar10 import facts, tfds_write
from cifar_jax.data.dataset import (
    Decoded,
    Split,
    channel_statistics,
    content_digest,
    fingerprint,
)
from cifar_jax.errors import UserError


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that have been decoded so far."""
    seen: list[Path] = []
    decode = tfds_folder.decode

    def counted(folder: tfds_folder.TfdsFolder) -> Decoded:
        seen.append(folder.path)
        return decode(folder)

    monkeypatch.setattr(tfds_folder, "decode", counted)
    return seen


def assert_equal(a: data.Dataset, b: data.Dataset) -> None:
    np.testing.assert_array_equal(a.train.images, b.train.images)
    np.testing.assert_array_equal(a.train.labels, b.train.labels)
    np.testing.assert_array_equal(a.test.images, b.test.images)
    np.testing.assert_array_equal(a.test.labels, b.test.labels)
    assert (a.name, a.classes, a.mean, a.std) == (b.name, b.classes, b.mean, b.std)
    assert (a.fingerprint, a.content) == (b.fingerprint, b.content)


def test_import_is_light() -> None:
    heavy = "{'tensorflow_datasets', 'sklearn', 'PIL', 'jax', 'rich', 'tensorflow'}"
    code = f"import sys, cifar_jax.data; sys.exit(len({heavy} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_second_load_decodes_nothing(prepared: Path, decodings: list[Path]) -> None:
    first = data.load("cifar10")
    second = data.load("cifar10")
    assert_equal(first, second)
    assert decodings == [prepared]
    assert first.fingerprint == fingerprint(second.train, second.test)
    assert second.train.images.dtype == np.uint8
    assert second.train.labels.dtype == np.int32


def test_changed_folder_is_noticed(
    prepared: Path, images: Decoded, decodings: list[Path], data_dir: Path
) -> None:
    before = data.load("cifar10")
    shutil.rmtree(prepared)
    changed = images._replace(test=Split(255 - images.test.images, images.test.labels))
    tfds_write.write_cifar10(changed, data_dir)
    after = data.load("cifar10")
    assert len(decodings) == 2
    assert before.fingerprint != after.fingerprint
    np.testing.assert_array_equal(after.train.images, before.train.images)
    np.testing.assert_array_equal(after.test.images, 255 - before.test.images)
    entries = [p.name for p in cache.cache_dir().iterdir() if p.is_dir()]
    assert len(entries) == 1, "the stale entry is replaced"


def test_content_is_told_whatever_the_order(
    prepared: Path, images: Decoded, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = data.load("cifar10")
    assert not first.official
    assert data.load("cifar10").content == first.content, "the cache keeps it"

    order = np.random.default_rng(1).permutation(len(images.train.labels))
    shuffled = images._replace(train=Split(*(part[order] for part in images.train)))
    shutil.rmtree(prepared)
    tfds_write.write_cifar10(shuffled, data_dir)
    monkeypatch.setattr(facts, "CONTENT", first.content)
    second = data.load("cifar10")
    assert second.fingerprint != first.fingerprint
    assert second.official


@pytest.mark.parametrize("change", ["pixel", "label", "left out", "twice", "moved to the other"])
def test_content_changes_with_anything_else(images: Decoded, change: str) -> None:
    train, test = images.train, images.test
    content = content_digest(train, test)
    if change == "pixel":
        train = Split(train.images.copy(), train.labels)
        train.images[3, 0, 0, 0] ^= 1
    elif change == "label":
        train = Split(train.images, (train.labels + 1) % 10)
    elif change == "left out":
        train = Split(train.images[1:], train.labels[1:])
    elif change == "twice":
        train = Split(*(np.concatenate([part, part[:1]]) for part in train))
    else:
        train, test = test, train
    assert content_digest(train, test) != content


def _flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _replace(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("train_images.npy", _flip_a_byte),
        ("test_labels.npy", lambda path: os.truncate(path, 130)),
        ("train_labels.npy", lambda path: path.write_bytes(b"")),
        ("test_images.npy", Path.unlink),
        ("meta.json", Path.unlink),
        ("meta.json", lambda path: path.write_text("{")),
        ("meta.json", lambda path: path.write_text('{"version": 0}')),
        ("meta.json", lambda path: path.write_text("[]")),
        # What would load, and be wrong:
        ("train_images.npy", lambda path: _replace(path, b"|u1", b"|i1")),
        ("train_labels.npy", lambda path: _replace(path, b"<i4", b"<f4")),
        ("meta.json", lambda path: _replace(path, b'"cat"', b'"dog"')),
        ("meta.json", lambda path: _replace(path, b"0.5", b"0.6")),
        ("meta.json", lambda path: _replace(path, b'"content": "', b'"content": "0')),
    ],
)
def test_damaged_cache_is_rebuilt(prepared: Path, decodings: list[Path], name, damage) -> None:
    first = data.load("cifar10")
    train_labels = first.train.labels.copy()
    (entry,) = (p for p in cache.cache_dir().iterdir() if p.is_dir())
    damage(entry / name)
    second = data.load("cifar10")
    assert len(decodings) == 2
    np.testing.assert_array_equal(second.train.labels, train_labels)
    assert second.fingerprint == fingerprint(second.train, second.test)
    assert_equal(second, data.load("cifar10"))
    assert len(decodings) == 2


def test_cache_runs_no_code(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though every checksum holds."""

    class Touch:
        def __reduce__(self):
            return Path.touch, (tmp_path / "run",)

    good = data.load("cifar10")
    with monkeypatch.context() as patch:
        save = np.save
        hostile = np.array([Touch()], object)
        patch.setattr(np, "save", lambda file, array, **_: save(file, hostile, allow_pickle=True))
        cache._write(
            next(p for p in cache.cache_dir().iterdir() if p.is_dir()),
            tfds_folder.source(prepared),
            good,
        )
    assert_equal(data.load("cifar10"), good)
    assert not (tmp_path / "run").exists()


def test_leftovers_of_a_killed_run_go_away(prepared: Path) -> None:
    data.load("cifar10")
    (entry,) = (p for p in cache.cache_dir().iterdir() if p.is_dir())
    leftover = entry.with_name(f".{entry.name}-killed")
    leftover.mkdir()
    shutil.rmtree(entry)
    data.load("cifar10")
    assert not leftover.exists()


def test_a_folder_that_is_no_entry_is_left_alone(
    prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data.load("cifar10")
    (entry,) = (p for p in cache.cache_dir().iterdir() if p.is_dir())
    shutil.rmtree(entry)
    entry.mkdir()
    (entry / "thesis.tex").write_text("of somebody")
    assert len(data.load("cifar10").train.labels) == 20
    assert f"{entry.name} there has files that are not its own" in capsys.readouterr().err
    assert (entry / "thesis.tex").read_text() == "of somebody"


def test_unwritable_cache_is_done_without(
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CIFAR_JAX_CACHE", str(tmp_path / "file" / "cache"))
    assert len(data.load("cifar10").train.labels) == 20
    assert "could not be cached" in capsys.readouterr().err


def _load_in_process(queue) -> None:
    queue.put(data.load("cifar10").fingerprint)


def test_processes_that_start_at_once(prepared: Path) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=_load_in_process, args=(queue,)) for _ in range(3)]
    for process in processes:
        process.start()
    found = {queue.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert found == {data.load("cifar10").fingerprint}


@pytest.mark.parametrize(
    ("file", "damage", "match"),
    [
        ("cifar10-train.array_record-00000-of-00001", Path.unlink, "is missing"),
        (
            "cifar10-train.array_record-00000-of-00001",
            lambda path: os.truncate(path, 0),
            "is empty",
        ),
        (
            "cifar10-train.array_record-00000-of-00001",
            lambda path: os.truncate(path, path.stat().st_size - 70_000),
            "cifar10-train.array_record-00000-of-00001 is damaged",
        ),
        ("cifar10-test.array_record-00000-of-00001", _flip_a_byte, "cifar10-test.* is damaged"),
        ("dataset_info.json", lambda path: path.write_text('{"name": '), "metadata are damaged"),
        ("dataset_info.json", lambda path: path.write_text("[]"), "metadata are damaged"),
        ("dataset_info.json", Path.unlink, "dataset_info.json is missing"),
        ("label.labels.txt", Path.unlink, "label.labels.txt is missing"),
        (
            "label.labels.txt",
            lambda path: path.write_text("cat\n"),
            r"label \d is beyond its 1 classes",
        ),
    ],
)
def test_unusable_folder(prepared: Path, file: str, damage, match: str) -> None:
    damage(prepared / file)
    with pytest.raises(UserError, match=match) as caught:
        data.load("cifar10")
    assert str(prepared) in str(caught.value)
    assert "cifar-jax data import" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"shardLengths": ["21"]}, "20 images instead of 21"),
        ({"shardLengths": ["19"]}, "more images than 19"),
        ({"shardLengths": ["1000000000000"]}, "too small for 1,000,000,000,000 images"),
        ({"shardLengths": ["-1"]}, "too small for -1 images"),
        ({"shardLengths": ["many"]}, "metadata are damaged"),
        ({"shardLengths": ["20", "1"]}, "cifar10-train.array_record-00000-of-00002 is missing"),
        ({"filepathTemplate": "../{SPLIT}"}, "a shard is called '../train'"),
        ({"filepathTemplate": "{SPLIT.__class__}"}, "{SPLIT.__class__} is missing"),
        ({"filepathTemplate": "{ELSE}"}, "metadata are damaged"),
    ],
)
def test_metadata_that_do_not_fit(prepared: Path, change: dict, match: str) -> None:
    info = json.loads((prepared / "dataset_info.json").read_text())
    info["splits"][0] |= change
    (prepared / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=match):
        data.load("cifar10")


def test_a_name_cannot_lead_out_of_the_cache(prepared: Path) -> None:
    info = json.loads((prepared / "dataset_info.json").read_text())
    (prepared / "dataset_info.json").write_text(json.dumps(info | {"name": "../elsewhere"}))
    with pytest.raises(UserError, match="metadata are damaged"):
        data.load("cifar10")


def test_array_record_is_chosen_where_both_exist(prepared: Path) -> None:
    first = data.load("cifar10")
    info = json.loads((prepared / "dataset_info.json").read_text())
    info |= {"fileFormat": "tfrecord", "alternativeFileFormats": ["array_record"]}
    (prepared / "dataset_info.json").write_text(json.dumps(info))
    assert tfds_folder.inspect(prepared).format == "array_record"
    assert_equal(data.load("cifar10"), first)


def test_unknown_name() -> None:
    with pytest.raises(UserError, match=r"unknown data set 'cifar': did you mean cifar10\?"):
        data.load("cifar")
    with pytest.raises(UserError, match="there are cifar10, digits"):
        data.load("imagenet")


def split_of(count: int) -> Split:
    return Split(np.zeros((count, 32, 32, 3), np.uint8), np.arange(count, dtype=np.int32))


@pytest.mark.parametrize(
    ("validation", "held_out"), [(0, 0), (0.1, 5), (0.5, 25), (1, 1), (7, 7), (7.0, 7), (49, 49)]
)
def test_validation_is_the_end_of_train(validation: float, held_out: int) -> None:
    train, held = data.split_validation(split_of(50), validation)
    assert held.labels.tolist() == list(range(50 - held_out, 50))
    assert train.labels.tolist() == list(range(50 - held_out))
    assert (len(train.images), len(held.images)) == (50 - held_out, held_out)


@pytest.mark.parametrize("validation", [-0.1, -1, 50, 51, 2.5, 0.999, 0.001, float("nan")])
def test_validation_out_of_range(validation: float) -> None:
    with pytest.raises(UserError, match="does not fit 50 training images"):
        data.split_validation(split_of(50), validation)


def test_statistics_are_those_of_numpy() -> None:
    images = np.random.default_rng(1).integers(0, 200, (1500, 32, 32, 3), np.uint8)
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)), rtol=1e-9)


def test_status(prepared: Path, data_dir: Path, tmp_path: Path) -> None:
    text = data.status(data_dir)
    assert str(data_dir) in text
    assert "cifar10:3.0.2: array_record, 20 train, 4 test images" in text
    assert "cifar10: decoded at the next start" in text
    data.load("cifar10")
    assert "cifar10: fresh" in data.status(data_dir)
    assert str(tmp_path / "cache") in data.status(data_dir)
    (prepared / "dataset_info.json").unlink()
    assert "dataset_info.json is missing" in data.status(data_dir)
    assert "not there" in data.status(tmp_path / "nowhere")
