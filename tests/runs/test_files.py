"""Test that files are written atomically, and that errors name the file."""

import errno
import json
import os
from pathlib import Path

import pytest

from cifar_jax.files import write_bytes, write_json


def test_a_failed_dump_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]
    assert json.loads(path.read_text()) == {"a": 1}


def test_json_is_readable_and_keeps_names_that_are_not_utf8(tmp_path: Path) -> None:
    value = {"schlüssel": "± 0.5", "path": "x\udcff"}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text()
    assert text == '{\n  "schlüssel": "± 0.5",\n  "path": "x\\udcff"\n}\n'
    assert json.loads(text) == value


def test_a_failed_write_names_its_file_and_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    write_bytes(path, b"old")

    def fail(file: int) -> None:
        # This error names no file, like the errors of `os.write`.
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left") as error:
        write_bytes(path, b"new")
    assert error.value.filename == str(path)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == {path: b"old"}


def test_a_write_to_a_missing_folder_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "absent" / "result.json"
    with pytest.raises(FileNotFoundError) as error:
        write_bytes(path, b"new")
    assert error.value.filename == str(path)
