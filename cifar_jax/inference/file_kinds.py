"""Recognize the kind of a file, to explain why no weights can be read from it."""

import zipfile
from pathlib import Path

_TORCH_MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19"
"""Bytes near the start of every file in the old format of `torch.save`."""
_UNPACK = "unpack it and name the file with the weights"
_SAVE = "save the weights with torch.save or as safetensors"
_TEXTS = {
    b"version https://git-lfs": "a Git LFS pointer without the content: run `git lfs pull`",
    b"<": "a web page, not weights: download the weights again, and log in if that is needed",
    b"{": "a JSON file, not weights: name the file with the weights",
    b"[": "a JSON file, not weights: name the file with the weights",
}
"""Descriptions of text files without weights, by the first characters of the file."""
_STARTS = {
    b"\x89HDF": f"an HDF5 file, such as Keras writes: {_SAVE}",
    b"\x93NUMPY": f"a NumPy array: {_SAVE}",
    b"\x1f\x8b": f"compressed with gzip: {_UNPACK}",
    b"BZh": f"compressed with bzip2: {_UNPACK}",
    b"\xfd7zXZ": f"compressed with xz: {_UNPACK}",
    b"\x28\xb5\x2f\xfd": f"compressed with zstd: {_UNPACK}",
    b"7z\xbc\xaf": f"a 7z archive: {_UNPACK}",
    b"Rar!": f"a RAR archive: {_UNPACK}",
    b"GGUF": f"a GGUF file: {_SAVE}",
    b"\x80": f"a Python pickle, but not a file of torch.save: {_SAVE}",
}
"""Descriptions of unsupported binary files, by the first bytes of the file."""


def is_safetensors(path: Path) -> bool:
    """Return whether a file begins like a safetensors file: 8 bytes with a size, then JSON."""
    start = _read_start(path)
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 40


def is_torch_file(path: Path) -> bool:
    """Return whether the content of a file looks like the output of `torch.save`."""
    return _TORCH_MAGIC in _read_start(path)[:32] or any(
        name.endswith("data.pkl") for name in _zip_members(path)
    )


def describe_other_file(path: Path) -> str | None:
    """Describe a file without readable weights, and advise the user.

    The result is None for a safetensors file, a file of `torch.save`, or a file of unknown kind.
    """
    start = _read_start(path)
    if is_safetensors(path) or is_torch_file(path):
        return None
    if not start.strip(b"\0"):
        return "empty: download or save it again"
    if path.suffix == ".onnx":
        return f"an ONNX file: {_SAVE}"
    if start[257:262] == b"ustar":
        return f"a tar archive: {_UNPACK}"
    # StableHLO exports are also zip archives, but do not begin with `PK`.
    if start.startswith(b"PK") and (members := _zip_members(path)):
        more = ", …" if len(members) > 3 else ""
        return f"a zip archive with {', '.join(members[:3])}{more}: {_UNPACK}"
    if b"\0" not in start:  # A file with a zero byte is a binary file, not a text file.
        start = start.lstrip(b"\xef\xbb\xbf \t\r\n")
        if kind := next((kind for text, kind in _TEXTS.items() if start.startswith(text)), None):
            return kind
    return next((kind for prefix, kind in _STARTS.items() if start.startswith(prefix)), None)


def _read_start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(512)


def _zip_members(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return []
