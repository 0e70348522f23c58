"""Test the page of `cifar-jax serve` in a browser."""

import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest
import screen
from PIL import Image

from cifar_jax import models
from cifar_jax.data import cifar10
from cifar_jax.inference import exports
from cifar_jax.inference.load import load
from cifar_jax.inference.model import TrainedNetwork
from cifar_jax.inference.server import MAX_BYTES

pytestmark = pytest.mark.browser

Open = Callable[..., Any]
BAD_REQUEST = "status of 400"  # Chromium writes refused uploads to the console.


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[[object], str]]:
    """Function that starts `cifar-jax serve MODEL` and returns the address of the page."""
    servers = []

    def serve(model: object) -> str:
        words = [sys.executable, "-m", "cifar_jax", "serve", str(model), "--port", "0"]
        servers.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
        line = servers[-1].stdout.readline()
        return line.split(" is served at ")[1].split()[0].rstrip(".")

    yield serve
    for server in servers:
        server.terminate()
        server.communicate()


@pytest.fixture(scope="module")
def packaged(serve: Callable[[object], str]) -> str:
    """Address of the page for the packaged network `net-bn-gap`."""
    return serve("net-bn-gap")


@pytest.fixture(scope="module")
def attention(serve: Callable[[object], str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of the page for `net-attention` with random weights."""
    variables = models.init_variables(models.create("net-attention"), jax.random.key(0))
    card = load("net-bn-gap").card
    network = card.model.model_copy(update={"name": "net-attention"})
    card = card.model_copy(update={"model": network})
    file = tmp_path_factory.mktemp("serve") / "attention.safetensors"
    exports.export(TrainedNetwork(card, variables, file), "safetensors", file)
    return serve(file)


def upload(page: Any, content: bytes) -> None:
    file = {"name": "cat.jpg", "mimeType": "image/jpeg", "buffer": content}
    page.locator("#file").set_input_files(file)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def picture(pixels: np.ndarray) -> bytes:
    """Image file that shows `pixels`, with edges left and right that the network does not see."""
    file = io.BytesIO()
    Image.fromarray(np.pad(pixels, [(0, 0), (9, 9), (0, 0)])).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_uploaded_picture_is_classified(
    open_page: Open, packaged: str, picture: bytes, pixels: np.ndarray, width: int, scheme: str
) -> None:
    page = open_page(packaged, width, scheme)
    upload(page, picture)
    page.locator("#answer").wait_for()
    rows = [row.inner_text().split() for row in page.locator("#top .row").all()]
    probabilities = load("net-bn-gap").predict(pixels)[0]
    best = (-probabilities).argsort()[:5]
    assert [name for name, _, _ in rows] == [cifar10.CLASSES[i] for i in best]
    shown = [float(number) for _, number, _ in rows]
    np.testing.assert_allclose(shown, 100 * probabilities[best], atol=0.06)
    bars = [bar.bounding_box()["width"] for bar in page.locator(".fill").all()]
    assert bars == sorted(bars, reverse=True)
    crop = page.evaluate(
        """() => { const image = document.getElementById("crop");
        const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
        const context = canvas.getContext("2d"); context.drawImage(image, 0, 0);
        return [...context.getImageData(0, 0, canvas.width, canvas.height).data]; }"""
    )
    np.testing.assert_array_equal(np.reshape(crop, (32, 32, 4))[..., :3], pixels)
    assert not page.locator("#looks").is_visible()
    assert screen.overflow(page) <= 0
    assert screen.scheme(page) == scheme


@pytest.mark.parametrize("width", [400, 1200])
def test_attention_layers_show_where_they_look(
    open_page: Open, attention: str, picture: bytes, width: int
) -> None:
    page = open_page(attention, width)
    upload(page, picture)
    page.locator("#looks").wait_for()
    captions = page.locator("#maps figcaption").all_inner_texts()
    assert captions == ["attention1", "attention2", "attention3"]
    sources = {image.get_attribute("src") for image in page.locator("img").all()}
    assert len(sources) == 4  # The crop and three different maps.
    assert screen.overflow(page) <= 0


def test_bad_files_get_a_message_on_the_page(
    open_page: Open, packaged: str, picture: bytes
) -> None:
    page = open_page(packaged, 400, allowed=BAD_REQUEST)
    status, answer = page.locator("#status"), page.locator("#answer")
    for content, message in (
        (b"no image", "not an image"),
        (b"", "The file is empty."),
        (bytes(MAX_BYTES + 1), "The file is larger than 20 MB."),
        (picture[:100], "image"),
    ):
        upload(page, picture)
        answer.wait_for()
        upload(page, content)
        answer.wait_for(state="hidden")
        assert message in status.inner_text()
        assert "bad" in status.get_attribute("class")
        assert screen.overflow(page) <= 0
    upload(page, picture)
    answer.wait_for()
    assert status.inner_text() == ""


def test_pictures_are_dropped_and_pasted(open_page: Open, packaged: str, picture: bytes) -> None:
    page = open_page(packaged)
    for event, field in (("drop", "dataTransfer"), ("paste", "clipboardData")):
        page.evaluate(
            """([event, field, bytes]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "picture.png"));
            const Event = event === "drop" ? DragEvent : ClipboardEvent;
            document.dispatchEvent(new Event(event, {[field]: transfer, cancelable: true})); }""",
            [event, field, list(picture)],
        )
        page.locator("#answer").wait_for()
        page.evaluate("document.getElementById('answer').hidden = true")
