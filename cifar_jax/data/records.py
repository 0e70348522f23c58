"""Read the records of ArrayRecord and TFRecord files, without TensorFlow."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

_BATCH = 1000  # Number of records that are read from an ArrayRecord file at a time.


def read_array_record(path: Path) -> Iterator[bytes]:
    """Yield the records of an ArrayRecord file."""
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(os.fsencode(path))
    try:
        count = reader.num_records()
        for start in range(0, count, _BATCH):
            yield from reader.read(start, min(start + _BATCH, count))
    finally:
        reader.close()


def read_tfrecord(path: Path) -> Iterator[bytes]:
    """Yield the records of a TFRecord file.

    A record consists of the length of the content as 8 little-endian bytes, the masked CRC-32C of
    the length, the content, and the masked CRC-32C of the content:
    https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details

    Raises:
      ValueError: a checksum is wrong, or the file ends within a record.
    """
    remaining = path.stat().st_size
    with path.open("rb") as file:
        while header := file.read(12):
            length = struct.unpack("<Q", _verified(header, 8))[0]
            remaining -= 12 + length + 4
            if remaining < 0:  # Check this before reading: a damaged length may be huge.
                raise ValueError("it ends within a record")
            yield _verified(file.read(length + 4), length)


def _verified(content: bytes, length: int) -> bytes:
    """Return the first `length` bytes of `content`, which are followed by their checksum.

    Raises:
      ValueError: the checksum is wrong or incomplete.
    """
    import google_crc32c

    if len(content) != length + 4:
        raise ValueError("it ends within a record")
    body = content[:length]
    crc = google_crc32c.value(body)
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    if struct.unpack("<I", content[length:])[0] != masked:
        raise ValueError("a checksum is wrong")
    return body
