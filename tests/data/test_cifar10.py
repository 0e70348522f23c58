"""Test the import of the official CIFAR-10 archive to a TensorFlow Datasets (tfds) folder."""

import gc
import json
import pickle
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from cifar_jax import data
from cifar_jax.data import cifar10
from cifar_jax.data.dataset import Arrays
from cifar_jax.errors import UserError


def assert_nothing_left(data_dir: Path) -> None:
    assert not data_dir.exists() or list(data_dir.iterdir()) == []


def assert_refused(path: Path, data_dir: Path, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        data.import_path(path, data_dir)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert_nothing_left(data_dir)


@pytest.mark.parametrize("form", ["archive", "folder", "parent"])
def test_import_reads_back_equal(
    form: str, images: Arrays, archive: Path, batches: Path, data_dir: Path
) -> None:
    path = {"archive": archive, "folder": batches, "parent": batches.parent}[form]
    assert data.import_path(path) == data_dir / "cifar10" / "3.0.2"
    assert [p.name for p in data_dir.iterdir()] == ["cifar10"]

    builder = tfds.builder("cifar10", data_dir=data_dir)
    assert builder.info.features["label"].names == list(images.classes)
    dataset = data.load("cifar10")
    assert dataset.classes == images.classes
    for name, original, split in (
        ("train", images.train, dataset.train),
        ("test", images.test, dataset.test),
    ):
        records = list(builder.as_data_source(name))
        ids = [int(record["id"].removeprefix(f"{name}_".encode())) for record in records]
        assert sorted(ids) == list(range(len(original.labels)))
        assert ids != sorted(ids), "tfds shuffles the records"
        np.testing.assert_array_equal([r["image"] for r in records], original.images[ids])
        np.testing.assert_array_equal([r["label"] for r in records], original.labels[ids])
        np.testing.assert_array_equal(split.images, original.images[ids])
        np.testing.assert_array_equal(split.labels, original.labels[ids])


def test_metadata_equal_those_of_stock_tfds(prepared: Path) -> None:
    from tensorflow_datasets.image_classification import cifar

    info = json.loads((prepared / "dataset_info.json").read_text())
    assert (info["name"], info["version"]) == ("cifar10", str(cifar.Cifar10.VERSION))
    assert info["fileFormat"] == "array_record"
    assert info["moduleName"] == "tensorflow_datasets.image_classification.cifar"
    assert sorted(p.name for p in prepared.iterdir()) == [
        "cifar10-test.array_record-00000-of-00001",
        "cifar10-train.array_record-00000-of-00001",
        "dataset_info.json",
        "features.json",
        "label.labels.txt",
    ]


def test_a_prepared_folder_is_never_overwritten(
    prepared: Path, archive: Path, data_dir: Path
) -> None:
    times = {p: p.stat().st_mtime_ns for p in prepared.iterdir()}
    for attempt in (lambda: data.import_path(archive), data.prepare):
        with pytest.raises(UserError, match=f"already prepared in {prepared}"):
            attempt()
    assert {p: p.stat().st_mtime_ns for p in prepared.iterdir()} == times
    assert [p.name for p in data_dir.iterdir()] == ["cifar10"]


def test_other_files_are_refused(archive: Path, batches: Path, data_dir: Path) -> None:
    changed = batches.with_name("changed.tar.gz")
    changed.write_bytes(archive.read_bytes()[:-1] + b"?")
    assert_refused(changed, data_dir, r"not the official CIFAR-10: its SHA-256 differs")
    empty = batches.with_name("images")
    (empty / "train" / "cat").mkdir(parents=True)
    assert_refused(empty, data_dir, "data_batch_1 is missing.*data.dataset=folder:PATH")
    assert_refused(empty, data_dir, "it contains train")
    other = batches.with_name("other.tar.gz")
    with tarfile.open(other, "w:gz") as tar:
        tar.add(batches / "data_batch_1", "cifar-100-python/train")
    assert_refused(other, data_dir, "its first file is cifar-100-python/train")
    (batches / "data_batch_3").unlink()
    assert_refused(batches, data_dir, "data_batch_3 is missing")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        data.import_path(batches / "nowhere", data_dir)


def test_a_changed_batch_is_never_unpickled(batches: Path, data_dir: Path) -> None:
    class Touch:
        def __reduce__(self):
            return Path.touch, (batches / "executed",)

    (batches / "test_batch").write_bytes(pickle.dumps({b"data": Touch()}))
    assert_refused(batches, data_dir, "the MD5 of test_batch differs")
    assert not (batches / "executed").exists()


def test_failure_while_writing_leaves_nothing(
    batches: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="No space left on device"):
        data.import_path(batches, data_dir)
    assert_nothing_left(data_dir)


@pytest.fixture
def server(archive: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Serve the synthetic archive from a local web server. Downloads use this server."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Handler, directory=str(archive.parent))
    ) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/{archive.name}"
        monkeypatch.setattr(cifar10, "ARCHIVE", cifar10.ARCHIVE._replace(url=url))
        yield
        server.shutdown()
    # Close the sockets that pooch leaves open after failed downloads.
    gc.collect()


@pytest.mark.usefixtures("server")
def test_load_downloads_a_missing_data_set(
    images: Arrays, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = data.load("cifar10")
    assert sorted(dataset.train.labels) == sorted(images.train.labels)
    assert [p.name for p in data_dir.iterdir()] == ["cifar10"]
    output = capsys.readouterr()
    assert f"CIFAR-10 is not in {data_dir} yet: downloading it from http://" in output.err
    assert output.out == ""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("problem", ["missing", "changed", "unreachable"])
def test_a_failed_download_gives_a_one_line_error(
    problem: str, archive: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    match problem:
        case "missing":
            archive.unlink()
            expected = "404"
        case "changed":
            archive.write_bytes(b"not an archive")
            expected = "does not match the known hash"
        case _:
            url = "http://127.0.0.1:9/archive.tar.gz"
            monkeypatch.setattr(cifar10, "ARCHIVE", cifar10.ARCHIVE._replace(url=url))
            expected = "Connection refused"
    with pytest.raises(UserError, match=expected) as caught:
        data.load("cifar10")
    message = str(caught.value)
    assert "\n" not in message
    for advice in ("data prepare", "data import PATH", "--set data.dataset=digits"):
        assert advice in message
    assert_nothing_left(data_dir)
