"""Downloading the official archive, from servers that are what servers are."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import synthetic_cifar as synthetic

from cifar_jax import data
from cifar_jax.data.cifar10 import download, facts
from cifar_jax.data.dataset import Decoded
from cifar_jax.errors import UserError


def assert_nothing_left(data_dir: Path) -> None:
    assert not data_dir.exists() or list(data_dir.iterdir()) == []


@pytest.fixture
def archive(images: Decoded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """It is taken to be the official one, and is at a file's address until a server has it."""
    path = synthetic.pack(synthetic.write_python(tmp_path / "server", images))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(facts, "ARCHIVE_URL", path.as_uri())
    monkeypatch.setattr(facts, "OFFICIAL_ARCHIVES", {digest: path.name})
    monkeypatch.setattr(download, "_PAUSES", (0.01, 0.02))
    monkeypatch.setattr(download, "_TIMEOUT", 0.3)
    return path


Answer = Callable[[BaseHTTPRequestHandler, bytes, int], None]


class Served:
    """What was asked of a server that answers its n-th request in the n-th way."""

    def __init__(self, content: bytes, answers: list[Answer]) -> None:
        self.starts: list[int] = []
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = self.headers.get("Range", "bytes=0-")
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                served.starts.append(start)
                answers[min(len(served.starts), len(answers)) - 1](self, content, start)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False


Serve = Callable[..., Served]


@pytest.fixture
def serve(archive: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    running: list[Served] = []

    def start(*answers: Answer) -> Served:
        served = Served(archive.read_bytes(), list(answers))
        port = served.server.server_address[1]
        monkeypatch.setattr(facts, "ARCHIVE_URL", f"http://127.0.0.1:{port}/{archive.name}")
        threading.Thread(target=served.server.serve_forever, daemon=True).start()
        running.append(served)
        return served

    yield start
    for served in running:
        served.server.shutdown()
        served.server.server_close()


def headers(handler: BaseHTTPRequestHandler, content: bytes, start: int) -> None:
    handler.send_response(206 if start else 200)
    if start:
        handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    handler.send_header("Content-Length", str(len(content) - start))
    handler.end_headers()


def whole(handler: BaseHTTPRequestHandler, content: bytes, start: int) -> None:
    headers(handler, content, start)
    handler.wfile.write(content[start:])


def cut(handler: BaseHTTPRequestHandler, content: bytes, start: int) -> None:
    """A quarter, and the connection ends."""
    headers(handler, content, start)
    handler.wfile.write(content[start : start + len(content) // 4])


def stalled(handler: BaseHTTPRequestHandler, content: bytes, start: int) -> None:
    """A quarter, and silence."""
    cut(handler, content, start)
    handler.wfile.flush()
    time.sleep(1)


def silent(handler: BaseHTTPRequestHandler, content: bytes, start: int) -> None:
    time.sleep(1)


def without_ranges(handler: BaseHTTPRequestHandler, content: bytes, start: int) -> None:
    whole(handler, content, 0)


def says(code: int) -> Answer:
    return lambda handler, content, start: handler.send_error(code)


def damaged(handler: BaseHTTPRequestHandler, content: bytes, start: int) -> None:
    whole(handler, content[:-1] + b"?", start)


def test_prepare(archive: Path, data_dir: Path) -> None:
    result = data.prepare(data_dir)
    assert result.counts == {"train": 20, "test": 4}
    assert result.official is not None
    assert [p.name for p in data_dir.iterdir()] == ["cifar10"]


def test_load_prepares_what_is_absent(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(data.load("cifar10").train.labels) == 20
    shown = capsys.readouterr()
    assert "is not in" in shown.err
    assert "downloading" in shown.err
    assert shown.out == ""


def test_another_machine_may_have_been_faster(
    archive: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lock is not seen where only the folder is shared."""
    from cifar_jax.data.cifar10 import prepared

    def late(folder: Path) -> None:
        data.prepare(folder)
        data.prepare(folder)  # refuses, since it is there

    monkeypatch.setattr(prepared, "prepare", late)
    assert len(data.load("cifar10").train.labels) == 20


@pytest.mark.parametrize("broken", [cut, stalled])
def test_it_goes_on_where_it_stopped(
    broken: Answer, serve: Serve, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served = serve(broken, broken, silent, broken, whole)
    assert data.prepare().official is not None
    quarter = archive.stat().st_size // 4
    assert served.starts == [0, quarter, 2 * quarter, 2 * quarter, 3 * quarter]
    told = capsys.readouterr().err
    assert told.count("trying again") == 4
    assert ("stalled" if broken is stalled else "was cut") in told


def test_server_that_sends_no_rests(serve: Serve) -> None:
    served = serve(cut, without_ranges)
    assert data.prepare().official is not None
    assert len(served.starts) == 2


def test_server_that_knows_no_such_range(serve: Serve) -> None:
    served = serve(cut, says(416), whole)
    assert data.prepare().official is not None
    assert served.starts[-1] == 0


@pytest.mark.parametrize("passing", [says(503), says(429), silent])
def test_passing_trouble_before_anything_came(passing: Answer, serve: Serve) -> None:
    serve(passing, passing, whole)
    assert data.prepare().official is not None


@pytest.mark.parametrize(
    ("answers", "requests", "match"),
    [
        ([cut, silent], 3, r"could not be downloaded \(the server stalled \(timed out\)\)"),
        ([silent], 3, r"the server stalled \(timed out\)"),
        ([says(503)], 3, "the server says 503"),
        ([says(404)], 1, "the server says 404 Not Found"),
        ([damaged], 1, "what came is not the official archive: SHA-256"),
        ([cut, damaged], 2, "what came is not the official archive: SHA-256"),
    ],
)
def test_it_gives_up_in_one_line(
    answers: list[Answer], requests: int, match: str, serve: Serve, data_dir: Path
) -> None:
    served = serve(*answers)
    with pytest.raises(UserError, match=match) as caught:
        data.load("cifar10")
    assert len(served.starts) == requests
    message = str(caught.value)
    assert "cifar-jax data prepare" in message
    assert "cifar-jax data import PATH" in message
    assert "--set data.dataset=digits" in message
    assert "\n" not in message
    assert_nothing_left(data_dir)


def test_server_that_never_ends(
    serve: Serve, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_MAX_BYTES", 1000)
    served = serve(whole)
    with pytest.raises(UserError, match="it is larger than"):
        data.prepare()
    assert len(served.starts) == 1


def test_without_a_network_it_soon_says_so(
    archive: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "ARCHIVE_URL", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    monkeypatch.setattr(download, "_PAUSES", (60.0,))
    with pytest.raises(UserError, match="Connection refused"):
        data.load("cifar10")
    assert_nothing_left(data_dir)


def test_no_room_for_the_archive(
    archive: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download, "_fetch", full)
    with pytest.raises(UserError, match=r"cannot be written: No space left .* set TMPDIR"):
        data.prepare()
    assert_nothing_left(data_dir)
