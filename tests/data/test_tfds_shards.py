"""The shards of a tfds folder: TFRecord files without TensorFlow, many of them, and damage."""

import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from cifar_jax.data.tfrecord import read_tfrecord
from synthetic_cifar import png_that_claims

from cifar_jax import data
from cifar_jax.data.dataset import Decoded
from cifar_jax.errors import UserError


def masked(content: bytes) -> bytes:
    crc = google_crc32c.value(content)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def framed(record: bytes) -> bytes:
    length = struct.pack("<Q", len(record))
    return length + masked(length) + record + masked(record)


def write_tfrecord(path: Path, records: list[bytes]) -> None:
    path.write_bytes(b"".join(map(framed, records)))


def write_array_record(path: Path, records: list[bytes]) -> None:
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


Write = Callable[[Path, list[bytes]], None]
WRITE: dict[str, Write] = {"tfrecord": write_tfrecord, "array_record": write_array_record}


def rewrite(folder: Path, format: str, shards: int = 1) -> None:
    """Turn a prepared folder into another that stock tfds could have written."""
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


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("format", WRITE)
def test_every_form_holds_the_same(
    format: str, shards: int, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # makes importing it fail
    first = data.load("cifar10")
    rewrite(prepared, format, shards)
    assert f"{format}, 20 train, 4 test images" in data.status()
    second = data.load("cifar10")
    assert second.fingerprint == first.fingerprint
    np.testing.assert_array_equal(second.train.images, first.train.images)


def test_checksum_is_that_of_the_standard() -> None:
    """Of RFC 3720, B.4, through the mask in TensorFlow's documentation of the format."""
    assert google_crc32c.value(bytes(32)) == 0x8A9136AA
    assert google_crc32c.value(b"\xff" * 32) == 0x62A8AB43


def test_records_that_others_wrote(tmp_path: Path) -> None:
    """By tensorboardX, which has the framing and the checksum in code of its own."""
    from tensorboardX.record_writer import RecordWriter

    records = [b"hello", b"", np.random.default_rng(0).bytes(10_000)]
    writer = RecordWriter(str(tmp_path / "file"))
    for record in records:
        writer.write(record)
    writer.close()
    assert list(read_tfrecord(tmp_path / "file")) == [records]


def damaged(prepared: Path, shard: str, match: str) -> None:
    with pytest.raises(UserError, match=f"{shard} is damaged .*{match}") as caught:
        data.load("cifar10")
    assert str(prepared) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cut", [1, 5, 12, 13, 100, 2000])
def test_tfrecord_cut_short(cut: int, prepared: Path) -> None:
    rewrite(prepared, "tfrecord", 2)
    shard = prepared / "cifar10-train.tfrecord-00001-of-00002"
    shard.write_bytes(shard.read_bytes()[:-cut])
    damaged(prepared, shard.name, "ends within a record")


def test_tfrecord_that_lacks_its_last_records(prepared: Path) -> None:
    rewrite(prepared, "tfrecord", 2)
    shard = prepared / "cifar10-train.tfrecord-00000-of-00002"
    (records,) = read_tfrecord(shard)
    write_tfrecord(shard, records[:-1])
    damaged(prepared, shard.name, "9 images instead of 10")


@pytest.mark.parametrize("at", [0, 7, 8, 11, 12, 500, -1])
def test_tfrecord_whose_checksum_does_not_hold(at: int, prepared: Path) -> None:
    rewrite(prepared, "tfrecord", 2)
    shard = prepared / "cifar10-test.tfrecord-00001-of-00002"
    content = bytearray(shard.read_bytes())
    content[at] ^= 0x10
    shard.write_bytes(content)
    damaged(prepared, shard.name, "a checksum does not hold")


def test_tfrecord_that_claims_exabytes(prepared: Path) -> None:
    rewrite(prepared, "tfrecord")
    shard = prepared / "cifar10-test.tfrecord-00000-of-00001"
    length = struct.pack("<Q", 1 << 62)
    shard.write_bytes(length + masked(length) + bytes(5000))
    damaged(prepared, shard.name, "ends within a record")


def test_no_flipped_bit_of_a_shard_goes_unseen(prepared: Path) -> None:
    """ArrayRecord pads its chunks with bytes that no record holds: there nothing changes."""
    good = data.load("cifar10").fingerprint
    shard = prepared / "cifar10-train.array_record-00000-of-00001"
    whole = shard.read_bytes()
    refused = 0
    for at in np.linspace(0, len(whole) - 1, 40).astype(int):
        content = bytearray(whole)
        content[at] ^= 0x04
        shard.write_bytes(content)
        try:
            assert data.load("cifar10").fingerprint == good
        except UserError:
            refused += 1
    assert refused > 10


@pytest.mark.parametrize(
    ("image", "match"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n", "cannot identify"),
        ((20_000, 20_000), "20000×20000|decompression bomb"),
        ((64, 32), "64×32 RGB, not 32×32 RGB"),
    ],
)
def test_records_of_other_images(image: bytes | tuple, match: str, prepared: Path) -> None:
    """Nothing but PNG and JPEG of CIFAR-10's size is decoded, whatever Pillow knows."""
    from tensorflow_datasets.proto import tf_example_pb2

    if isinstance(image, tuple):
        image = png_that_claims(*image)
    rewrite(prepared, "tfrecord")
    shard = prepared / "cifar10-test.tfrecord-00000-of-00001"
    (records,) = read_tfrecord(shard)
    example = tf_example_pb2.Example.FromString(records[0])  # pyright: ignore
    example.features.feature["image"].bytes_list.value[0] = image
    write_tfrecord(shard, [example.SerializeToString(), *records[1:]])
    damaged(prepared, shard.name, match)


def test_stock_tfds_reads_the_rewritten_folder(prepared: Path, images: Decoded) -> None:
    """So that what these tests write is what tfds means."""
    import tensorflow_datasets as tfds

    rewrite(prepared, "array_record", 3)
    builder: Any = tfds.builder_from_directory(prepared)
    assert len(builder.as_data_source("train")) == len(images.train.labels)
