"""Files from strangers: what they cannot do to whoever imports them."""

import io
import pickle
import struct
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import synthetic_cifar as synthetic

from cifar_jax import data
from cifar_jax.data.cifar10 import archives
from cifar_jax.data.dataset import Decoded
from cifar_jax.errors import UserError


def fails(path: Path, data_dir: Path, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        data.import_path(path, data_dir)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not data_dir.exists() or list(data_dir.iterdir()) == []


class _Call:
    """Pickles as a call of a global, with a state to set on what it returns."""

    def __init__(self, function: Any, arguments: tuple, state: Any = None) -> None:
        self.reduced = (function, arguments, state) if state is not None else (function, arguments)

    def __reduce__(self):
        return self.reduced


_RECONSTRUCT, _FROM_BUFFER = np.empty(0).__reduce__()[0], np.empty(0).__reduce_ex__(5)[0]
_OBJECTS = _Call(np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0))
_POINTERS = struct.pack("<4Q", *[0x4141414141414141] * 4)
_UINT8 = _Call(np.dtype, ("u1", False, True), (3, "|", None, None, None, -1, -1, 0))


def batch_file(path: Path, labels: object, protocol: int) -> Path:
    """A batch with good images and these labels."""
    rows = np.zeros((4, 3072), np.uint8)
    path.write_bytes(pickle.dumps({"labels": labels, "data": rows}, protocol))
    return path


ARRAYS = {
    "objects, as protocol 2 writes arrays": _Call(
        _RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (4,), _OBJECTS, False, _POINTERS)
    ),
    "objects, as protocol 5 does": _Call(_FROM_BUFFER, (_POINTERS, _OBJECTS, (4,), "C")),
    "a shape beyond the content": _Call(
        _RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (1 << 40,), _UINT8, False, b"abcd")
    ),
    "a negative shape": _Call(_FROM_BUFFER, (b"abcd", _UINT8, (-1,), "C")),
    "another type of array": _Call(
        _RECONSTRUCT, (np.dtype, (0,), b"b"), (1, (4,), _UINT8, False, b"abcd")
    ),
    "an array with room beforehand": _Call(_RECONSTRUCT, (np.ndarray, (1 << 40,), b"b")),
    "an array never filled": _Call(_RECONSTRUCT, (np.ndarray, (0,), b"b")),
    "a dtype alone": _Call(np.dtype, ("V1000000000", False, True)),
    "a dtype whose state is set anew": _Call(
        np.dtype, ("u1", False, True), (3, "|", None, None, None, 1 << 30, 1 << 30, 63)
    ),
    "a function that is given a state": _Call(
        np.dtype, (_Call(_RECONSTRUCT, (np.ndarray, (0,), b"b")),)
    ),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", ARRAYS)
def test_crafted_pickle_is_refused(name: str, protocol: int, tmp_path: Path) -> None:
    """In a process of its own, since it is memory that it would corrupt."""
    path = batch_file(tmp_path / "batch", [ARRAYS[name]] * 4, protocol)
    code = (
        "import sys; from pathlib import Path; from cifar_jax.data.cifar10 import archives\n"
        "archives.IMAGES_PER_BATCH = 4\n"
        "try: archives._python_batch(Path(sys.argv[1]).read_bytes())\n"
        "except Exception as error: print('refused:', error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout[:8]) == (0, "refused:"), done.stdout + done.stderr[-500:]


def _nested(depth: int) -> bytes:
    """A dictionary with a key of so many tuples, one in the other."""
    return b"\x80\x02})" + b"\x85" * depth + b"K\x01s."


BOMBS = {
    "tuples nested a million deep": _nested(1_000_000),
    "a memo of two thousand million": b"\x80\x02}r\xff\xff\xff\x7f.",
    "eight exabytes": b"\x80\x05\x96" + struct.pack("<Q", 1 << 62) + b"abc.",
    "a text encoded a thousand times": pickle.dumps("x" * 1_000_000, 2)[:-1]
    + b"0c_codecs\nencode\nq\x01X\x06\x00\x00\x00latin1q\x02"
    + b"h\x01h\x00h\x02\x86R0" * 1000
    + b"}.",
    "millions of instructions": b"\x80\x02" + b"}0" * 3_000_000 + b"}.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_pickle_that_would_exhaust_the_machine(name: str, tmp_path: Path) -> None:
    (tmp_path / "batch").write_bytes(BOMBS[name])
    code = (
        "import re, resource, sys; from pathlib import Path\n"
        "from cifar_jax.data.cifar10 import archives\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "content = Path(sys.argv[1]).read_bytes()\n"
        "try: archives._python_batch(content)\n"
        "except Exception as error: print('refused:', error)\n"
        # Of this program alone: `ru_maxrss` begins with that of the process it was started by.
        "print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "batch")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout[:8]) == (0, "refused:"), done.stdout + done.stderr[-500:]
    assert int(done.stdout.splitlines()[-1]) < 700_000, "kilobytes"


@pytest.mark.parametrize(
    "labels", [[1.0] * 4, [True] * 4, [[1]] * 4, [10**30] * 4, "1234", {}, None]
)
def test_labels_that_are_no_whole_numbers(labels: object, images: Decoded, tmp_path: Path) -> None:
    path = synthetic.write_python(tmp_path, images)
    batch_file(path / "data_batch_2", labels, 4)
    with pytest.raises(UserError, match="data_batch_2 is damaged"):
        archives.read_folder(path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_whole_batch_saved_again(protocol: int, images: Decoded, tmp_path: Path) -> None:
    """With all that the official batches hold, keys and names as byte strings."""
    path = synthetic.write_python(tmp_path, images)
    rows = np.arange(4 * 3072, dtype=np.uint32).astype(np.uint8).reshape(4, 3072)
    for layout in (rows, np.asfortranarray(rows)):
        batch = {b"batch_label": b"testing batch 1 of 1", b"labels": [3, 8, 8, 0], b"data": layout}
        batch[b"filenames"] = [b"caf\xe9_%d.png" % i for i in range(4)]
        (path / "test_batch").write_bytes(pickle.dumps(batch, protocol))
        read = archives.read_folder(path).images.test
        assert read.labels.tolist() == [3, 8, 8, 0]
        np.testing.assert_array_equal(read.images.transpose(0, 3, 1, 2).reshape(4, -1), rows)


def _add(tar: tarfile.TarFile, name: str, content: bytes = b"", **fields: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(content))


def test_archive_that_climbs_out(images: Decoded, tmp_path: Path, data_dir: Path) -> None:
    """Members are read by their last name, and nothing is unpacked."""
    batches = synthetic.write_binary(tmp_path, images)
    path = tmp_path / "climbing.tar"
    with tarfile.open(path, "w") as tar:
        _add(tar, "../../outside.txt", b"hello")
        _add(tar, f"{tmp_path}/absolute.txt", b"hello")
        for file in batches.iterdir():
            _add(tar, f"../../{file.name}", file.read_bytes())
    before = set(tmp_path.rglob("*"))
    assert data.import_path(path, data_dir).counts == {"train": 20, "test": 4}
    written = set(tmp_path.rglob("*")) - before
    assert all(p.is_relative_to(data_dir) for p in written)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_archive_of_links_and_devices(
    kind: bytes, images: Decoded, tmp_path: Path, data_dir: Path
) -> None:
    batches = synthetic.write_binary(tmp_path, images)
    path = tmp_path / "links.tar"
    with tarfile.open(path, "w") as tar:
        for file in batches.iterdir():
            if file.name != "data_batch_2.bin":
                _add(tar, file.name, file.read_bytes())
        _add(tar, "data_batch_2.bin", type=kind, linkname=str(batches / "data_batch_1.bin"))
    fails(path, data_dir, "lacks data_batch_2.bin")


def _zeros(size: int) -> Any:
    class Zeros(io.RawIOBase):
        left = size

        def read(self, count: int = -1) -> bytes:
            count = min(count, self.left)
            self.left -= count
            return bytes(count)

    return Zeros()


@pytest.mark.parametrize(
    ("name", "kind", "size"),
    [
        ("data_batch_1.bin", tarfile.REGTYPE, 200_000_000),
        ("something else", tarfile.REGTYPE, 1_200_000_000),
        ("long name", tarfile.GNUTYPE_LONGNAME, 200_000_000),
        ("pax header", tarfile.XHDTYPE, 200_000_000),
    ],
)
def test_archive_that_is_a_bomb(
    name: str, kind: bytes, size: int, tmp_path: Path, data_dir: Path
) -> None:
    path = tmp_path / "bomb.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        member = tarfile.TarInfo(name)
        member.type, member.size = kind, min(size, 1 << 20)  # the rest need not be there
        buffer = bytearray(member.tobuf(tarfile.GNU_FORMAT))
        buffer[124:136] = b"%011o\0" % size
        buffer[148:156] = b"%06o\0 " % (sum(buffer) - sum(buffer[148:156]) + 8 * 32)
        tar.fileobj.write(bytes(buffer) + bytes(1 << 20))  # pyright: ignore
    fails(path, data_dir, "larger|large")


def test_batch_file_that_is_far_too_large(images: Decoded, tmp_path: Path, data_dir: Path) -> None:
    path = synthetic.write_binary(tmp_path, images)
    with (path / "data_batch_3.bin").open("r+b") as file:
        file.truncate(1 << 40)  # sparse: it takes no room on the disk
    fails(path, data_dir, "data_batch_3.bin is too large")


@pytest.mark.parametrize("size", [1, 2, 5, 9, 10, 15, 20])
@pytest.mark.parametrize("mode", ["w:gz", "w:bz2"])
def test_archive_cut_within_its_first_bytes(
    size: int, mode: Literal["w:gz", "w:bz2"], images: Decoded, tmp_path: Path, data_dir: Path
) -> None:
    path = tmp_path / "cut.tar.gz"
    with tarfile.open(path, mode) as tar:
        tar.add(synthetic.write_binary(tmp_path, images), arcname="batches")
    path.write_bytes(path.read_bytes()[:size])
    fails(path, data_dir, "not a tar archive, or a damaged one")
