"""Files that appear whole or not at all, and errors that name the file."""

import errno
import os
from pathlib import Path

import pytest

from cifar_jax.errors import UserError
from cifar_jax.runs.files import naming, read_json, write_bytes, write_json


def test_json_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]
    assert read_json(path) == {"a": 1}


def test_what_a_file_says_can_be_read_by_a_person(tmp_path: Path) -> None:
    """And what is no UTF-8 in it, such as a path, comes back as it was."""
    value = {"schlüssel": "± 0.5", "path": "x\udcff"}
    write_json(tmp_path / "a.json", value)
    assert (tmp_path / "a.json").read_text() == (
        '{\n  "schlüssel": "± 0.5",\n  "path": "x\\udcff"\n}\n'
    )
    assert read_json(tmp_path / "a.json") == value


def test_a_write_that_fails_names_its_file_and_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    write_bytes(path, b"old")

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # as `write` has it: without a name

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as refused:
        write_bytes(path, b"new")
    assert refused.value.filename == str(path)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == {path: b"old"}


def test_an_error_keeps_the_name_that_it_has(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as refused, naming(tmp_path):
        (tmp_path / "absent").read_bytes()
    assert refused.value.filename == str(tmp_path / "absent")


def test_json_that_the_system_does_not_let_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{tmp_path} cannot be read: .*Is a directory"):
        read_json(tmp_path)
