"""A local web page that classifies pictures with a trained model."""

from __future__ import annotations

import base64
import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from cifar_jax.data.images import read_image
from cifar_jax.errors import UserError
from cifar_jax.inference.attention_maps import compile_attention_maps
from cifar_jax.inference.model import Classifier, TrainedNetwork

MAX_BYTES = 20_000_000
"""Largest size of an uploaded image file, in bytes."""

PAGE = Path(__file__).with_name("page.html")
_TOP = 5


def application(model: Classifier, name: str) -> Starlette:
    """Return the web application for a trained model, after compiling the model.

    `GET /` returns the page. `POST /predict` takes the content of an image file, and returns a JSON
    object with the classes. If it fails, it returns an object with the field `error` and the status
    400 or 413.

    Args:
      model: the trained model.
      name: name of the model on the page.
    """
    page = PAGE.read_text(encoding="utf-8")
    facts = {
        "name": name,
        "network": model.card.model.name,
        "classes": list(model.classes),
        "max_bytes": MAX_BYTES,
    }
    attention_maps = compile_attention_maps(model) if isinstance(model, TrainedNetwork) else None
    lock = threading.Lock()  # A prediction uses all cores, so compute one at a time.

    def classify(pixels: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        with lock:
            maps = attention_maps(pixels) if attention_maps else {}
            probabilities = model.predict(pixels[None])[0]
            return probabilities, {layer: np.asarray(weights) for layer, weights in maps.items()}

    classify(np.zeros(model.card.input_shape, np.uint8))  # Compile before the first request.

    def answer(content: bytes) -> dict[str, Any]:
        pixels = read_image(content, "The file", model.card.white, model.target)
        probabilities, maps = classify(pixels)
        order = (-probabilities).argsort(kind="stable")[:_TOP]
        return {
            "top": [
                {"class": model.classes[i], "probability": float(probabilities[i])} for i in order
            ],
            "crop": _png(pixels),
            "attention": [
                {"layer": layer, "image": _png(_spotlight(pixels, weights))}
                for layer, weights in maps.items()
            ],
        }

    async def show(request: Request) -> Response:
        return HTMLResponse(page)

    async def describe(request: Request) -> Response:
        return JSONResponse(facts)

    async def predict(request: Request) -> Response:
        content = bytearray()
        async for chunk in request.stream():
            content += chunk
            if len(content) > MAX_BYTES:
                limit = f"The file is larger than {MAX_BYTES // 1_000_000} MB."
                return JSONResponse({"error": limit}, 413)
        if not content:
            return JSONResponse({"error": "The file is empty."}, 400)
        try:
            return JSONResponse(await run_in_threadpool(answer, bytes(content)))
        except UserError as error:
            return JSONResponse({"error": str(error)}, 400)

    routes = [
        Route("/", show),
        Route("/model", describe),
        Route("/predict", predict, methods=["POST"]),
    ]
    # Refuse other host names. Otherwise another web site could read predictions (DNS rebinding).
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    return Starlette(routes=routes, middleware=[hosts])


def _spotlight(pixels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return an image with its brightness scaled by the attention weight of each position."""
    height, width = pixels.shape[:2]
    rows = np.arange(height) * weights.shape[0] // height
    columns = np.arange(width) * weights.shape[1] // width
    light = (weights / weights.max())[rows][:, columns]
    return (pixels * (0.15 + 0.85 * light[..., None])).astype(np.uint8)


def _png(pixels: np.ndarray) -> str:
    """Return an image as the data URI of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
