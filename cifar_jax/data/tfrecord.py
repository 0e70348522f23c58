"""Reading TFRecord files without TensorFlow.

A record is its length (8 bytes, little-endian), the masked CRC-32C of these, its content, and the
content's: https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
"""

import struct
from collections.abc import Iterator
from pathlib import Path

_BATCH_BYTES = 1 << 22


def read_tfrecord(path: Path) -> Iterator[list[bytes]]:
    """The records of a file, many at a time.

    Raises ValueError where a checksum does not hold or the file ends within a record, and OSError.
    """
    batch, size = [], 0
    left = path.stat().st_size
    with path.open("rb") as file:
        while header := file.read(12):
            left -= 12
            length = struct.unpack("<Q", _checked(header, 8))[0]
            # Only then is so much memory asked for.
            if length + 4 > left:
                raise ValueError("it ends within a record")
            batch.append(_checked(file.read(length + 4), length))
            left -= length + 4
            size += length
            if size >= _BATCH_BYTES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _checked(content: bytes, length: int) -> bytes:
    """The first ``length`` bytes, which the four after them are the masked CRC-32C of."""
    import google_crc32c

    if len(content) != length + 4:
        raise ValueError("it ends within a record")
    body = content[:length]
    crc = google_crc32c.value(body)
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    if struct.unpack("<I", content[length:])[0] != masked:
        raise ValueError("a checksum does not hold")
    return body
