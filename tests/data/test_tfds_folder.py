"""Test prepared tfds folders: both record formats, several shards and damaged files."""

import json
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from synthetic_cifar import png_with_size

from cifar_jax import data
from cifar_jax.data.records import read_tfrecord
from cifar_jax.errors import UserError


def masked_crc(content: bytes) -> bytes:
    crc = google_crc32c.value(content)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def write_tfrecord(path: Path, records: list[bytes]) -> None:
    lengths = [struct.pack("<Q", len(record)) for record in records]
    path.write_bytes(
        b"".join(
            length + masked_crc(length) + record + masked_crc(record)
            for length, record in zip(lengths, records, strict=True)
        )
    )


def write_array_record(path: Path, records: list[bytes]) -> None:
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


WRITE: dict[str, Callable[[Path, list[bytes]], None]] = {
    "tfrecord": write_tfrecord,
    "array_record": write_array_record,
}


def rewrite(folder: Path, format: str, shards: int = 1) -> None:
    """Convert a prepared tfds folder to another record format and number of shards."""
    info = json.loads((folder / "dataset_info.json").read_text())
    info["fileFormat"] = format
    for split in info["splits"]:
        (old,) = folder.glob(f"cifar10-{split['name']}.array_record-*")
        records = ArrayRecordReader(str(old)).read_all()
        old.unlink()
        parts = np.array_split(np.arange(len(records)), shards)
        for index, part in enumerate(parts):
            name = f"cifar10-{split['name']}.{format}-{index:05d}-of-{shards:05d}"
            WRITE[format](folder / name, [records[i] for i in part])
        split["shardLengths"] = [str(len(part)) for part in parts]
    (folder / "dataset_info.json").write_text(json.dumps(info))


def assert_refused(prepared: Path, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        data.load("cifar10")
    assert str(prepared) in str(caught.value)
    assert "cifar-jax data import" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("format", WRITE)
def test_every_form_holds_the_same_images(
    format: str, shards: int, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # Make `import tensorflow` fail.
    first = data.load("cifar10")
    rewrite(prepared, format, shards)
    assert f"{format}, 20 train, 4 test images" in data.status()
    second = data.load("cifar10")
    assert second.fingerprint == first.fingerprint
    np.testing.assert_array_equal(second.train.images, first.train.images)


def test_tfrecord_of_another_writer(tmp_path: Path) -> None:
    """tensorboardX writes the TFRecord format independently of TensorFlow."""
    from tensorboardX.record_writer import RecordWriter

    records = [b"hello", b"", np.random.default_rng(0).bytes(10_000)]
    writer = RecordWriter(str(tmp_path / "file"))
    for record in records:
        writer.write(record)
    writer.close()
    assert list(read_tfrecord(tmp_path / "file")) == records


TRAIN = "cifar10-train.array_record-00000-of-00001"


@pytest.mark.parametrize(
    ("file", "damage", "match"),
    [
        (TRAIN, Path.unlink, f"{TRAIN} is missing"),
        (TRAIN, lambda path: path.write_bytes(b""), f"{TRAIN} is damaged"),
        (TRAIN, lambda path: os.truncate(path, path.stat().st_size - 70_000), "is damaged"),
        ("dataset_info.json", lambda path: path.write_text('{"name": '), "metadata are damaged"),
        ("dataset_info.json", lambda path: path.write_text("[]"), "metadata are damaged"),
        ("dataset_info.json", Path.unlink, "dataset_info.json is missing"),
        ("label.labels.txt", Path.unlink, "label.labels.txt is missing"),
        ("label.labels.txt", lambda path: path.write_text("cat\n"), r"label \d with only 1 class"),
    ],
)
def test_damaged_folder_is_refused(
    prepared: Path, file: str, damage: Callable[[Path], object], match: str
) -> None:
    damage(prepared / file)
    assert_refused(prepared, match)


@pytest.mark.parametrize(
    ("lengths", "match"),
    [
        (["21"], "20 images instead of 21"),
        (["19"], "20 images instead of 19"),
        (["many"], "metadata are damaged"),
        (["20", "1"], "cifar10-train.array_record-00000-of-00002 is missing"),
    ],
)
def test_wrong_shard_lengths_are_refused(prepared: Path, lengths: list[str], match: str) -> None:
    info = json.loads((prepared / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = lengths
    (prepared / "dataset_info.json").write_text(json.dumps(info))
    assert_refused(prepared, match)


@pytest.mark.parametrize("cut", [1, 5, 13, 2000])
def test_tfrecord_cut_short(cut: int, prepared: Path) -> None:
    rewrite(prepared, "tfrecord", 2)
    shard = prepared / "cifar10-train.tfrecord-00001-of-00002"
    shard.write_bytes(shard.read_bytes()[:-cut])
    assert_refused(prepared, f"{shard.name} is damaged .*ends within a record")


@pytest.mark.parametrize("position", [0, 8, 12, 500, -1])
def test_tfrecord_with_a_flipped_bit(position: int, prepared: Path) -> None:
    rewrite(prepared, "tfrecord")
    shard = prepared / "cifar10-test.tfrecord-00000-of-00001"
    content = bytearray(shard.read_bytes())
    content[position] ^= 0x10
    shard.write_bytes(content)
    assert_refused(prepared, f"{shard.name} is damaged .*a checksum is wrong")


def test_tfrecord_with_a_huge_length(prepared: Path) -> None:
    rewrite(prepared, "tfrecord")
    shard = prepared / "cifar10-test.tfrecord-00000-of-00001"
    length = struct.pack("<Q", 1 << 62)
    shard.write_bytes(length + masked_crc(length) + bytes(5000))
    assert_refused(prepared, "ends within a record")


@pytest.mark.parametrize(
    ("image", "match"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n", "is damaged"),
        (png_with_size(20_000, 20_000), "has more than 89 million pixels"),
        (png_with_size(64, 32), "is a damaged image"),
    ],
)
def test_records_of_other_images_are_refused(image: bytes, match: str, prepared: Path) -> None:
    from tensorflow_datasets.proto import tf_example_pb2

    rewrite(prepared, "tfrecord")
    shard = prepared / "cifar10-test.tfrecord-00000-of-00001"
    records = list(read_tfrecord(shard))
    example = tf_example_pb2.Example.FromString(records[0])  # pyright: ignore
    example.features.feature["image"].bytes_list.value[0] = image
    write_tfrecord(shard, [example.SerializeToString(), *records[1:]])
    assert_refused(prepared, match)
