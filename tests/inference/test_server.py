import base64
import io
import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import uvicorn
from PIL import Image

from cifar_jax.inference.attention_maps import compile_attention_maps
from cifar_jax.inference.load import load
from cifar_jax.inference.model import TrainedNetwork
from cifar_jax.inference.server import MAX_BYTES, _spotlight, application


@pytest.fixture(scope="module")
def network(make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory):
    return load(make_run(tmp_path_factory.mktemp("runs") / "attention", "net-attention"))


@pytest.fixture(scope="module")
def send(network) -> Iterator[Callable[..., tuple[int, Any]]]:
    """Function that sends a request to a running server.

    The function returns the HTTP status, and the content of the reply as text or as a JSON object.
    """
    server = uvicorn.Server(uvicorn.Config(application(network, "my run"), log_level="error"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

        def send(path: str, content: bytes | None = None, **headers: str) -> tuple[int, Any]:
            request = urllib.request.Request(url + path, content, headers)
            try:
                with urllib.request.urlopen(request, timeout=120) as reply:
                    status, text = reply.status, reply.read().decode()
            except urllib.error.HTTPError as error:
                status, text = error.code, error.read().decode()
            return status, json.loads(text) if text.startswith("{") else text

        yield send
        server.should_exit = True
        thread.join()


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pixels_of(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_a_picture_is_classified_as_by_predict(network, send) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    status, answer = send("/predict", png(pixels))
    assert status == 200
    probabilities = network.predict(pixels[None])[0]
    assert len(answer["top"]) == 5
    assert answer["top"][0]["class"] == network.classes[probabilities.argmax()]
    assert answer["top"][0]["probability"] == pytest.approx(probabilities.max(), abs=1e-5)
    np.testing.assert_array_equal(pixels_of(answer["crop"]), pixels)
    assert [m["layer"] for m in answer["attention"]] == ["attention1", "attention2", "attention3"]
    assert pixels_of(answer["attention"][2]["image"]).shape == (32, 32, 3)
    assert send("/model")[1]["name"] == "my run"
    assert "Drop a picture here" in send("/")[1]


def test_the_size_of_an_attention_map_need_not_divide_the_size_of_the_image() -> None:
    pixels = np.full((50, 50, 3), 200, np.uint8)
    weights = np.ones((12, 12), np.float32)
    weights[0, 0] = 2
    light = _spotlight(pixels, weights)
    assert light.shape == pixels.shape
    assert (light[:4, :4] == 200).all()
    assert (light[6:, 6:] < 200).all()


def test_attention_map_equals_a_direct_computation(network) -> None:
    """The expected map of the first layer is the mean of softmax(query @ key.T)."""
    assert isinstance(network, TrainedNetwork)
    image = np.random.default_rng(1).integers(0, 255, (32, 32, 3), np.uint8)
    maps = compile_attention_maps(network)(image)
    assert {name: m.shape for name, m in maps.items()} == {
        "attention1": (32, 32),
        "attention2": (16, 16),
        "attention3": (8, 8),
    }
    assert all(m.sum() == pytest.approx(1, abs=1e-4) for m in maps.values())
    inputs = network.normalize(jnp.asarray(image)[None])
    _, state = network.module.apply(
        network.variables, inputs, train=False, capture_intermediates=True
    )
    layer = state["intermediates"]["attention1"]
    query, key = (layer[name]["__call__"][0].reshape(1024, -1) for name in ("query", "key"))
    expected = jax.nn.softmax(query @ key.T, axis=1).mean(0).reshape(32, 32)
    np.testing.assert_allclose(maps["attention1"], expected, rtol=1e-4)


def test_bad_uploads_get_a_message(send) -> None:
    for content, status, message in (
        (b"text", 400, "not an image"),
        (b"", 400, "is empty"),
        (bytes(MAX_BYTES + 1), 413, "larger than 20 MB"),
    ):
        code, reply = send("/predict", content)
        assert code == status
        assert message in reply["error"]
    assert send("/", host="example.com")[0] == 400


def test_a_port_in_use_is_refused(call: Callable[..., tuple[int, str, str]]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, _, error = call("serve", "basic", "--port", port)
    assert code == 2
    assert f"port {port} cannot be used" in error
