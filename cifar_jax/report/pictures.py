"""Encode images for the report page as data URIs. No data set is downloaded."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from cifar_jax import data
from cifar_jax.errors import UserError
from cifar_jax.files import expand_home
from cifar_jax.report.answers import RunAnswers

BLUE, ORANGE = (0, 114, 178), (213, 94, 0)


class MissingImagesError(Exception):
    """Raised if the images of a run are not on this machine. The message gives the reason."""


def thumbnails(run: RunAnswers, split: str, images: Iterable[int]) -> list[str]:
    """Return images of a run's validation or test split as data URIs.

    Images of up to 48x48 pixels are PNG files. Larger images are shrunk to 96x96 pixels and become
    JPEG files.

    Args:
      run: predictions of the run. `run.labels` must be the labels of the data set.
      split: `validation` or `test`.
      images: positions in the split.

    Raises:
      MissingImagesError: the data set of the run is not on this machine, or has changed.
    """
    settings = run.run.settings
    name = settings.get("data.dataset", "cifar10")
    size = settings.get("data.image_size", data.DEFAULT_TARGET.size)
    crop = settings.get("data.center_crop", data.DEFAULT_TARGET.center_crop)
    skip = bool(settings.get("data.skip_bad_images"))
    dataset = _load(name, skip, data.Target(size, crop))
    if dataset.fingerprint != run.run.data_sha256:
        raise MissingImagesError(
            f"{dataset.name} on this machine has other images, or the same images in another order"
        )
    found = dataset.test
    if split == "validation":
        found = data.split_validation(dataset.train, len(run.labels))[1]
    if not np.array_equal(found.labels, run.labels):
        raise MissingImagesError(f"{dataset.name} on this machine has other labels")
    return [_thumbnail(found.images[image]) for image in images]


@lru_cache(maxsize=1)
def _load(name: str, skip_bad_images: bool, target: data.Target) -> data.Dataset:
    if not data.is_local(name):
        raise MissingImagesError(
            f"{name} is not on this machine: run `cifar-jax data prepare {name}`, then this report "
            "again"
        )
    folder = expand_home(name.removeprefix("folder:"))
    if name.startswith("folder:") and not folder.is_dir():
        raise MissingImagesError("the folder of images was moved or deleted")
    try:
        return data.load(name, skip_bad_images=skip_bad_images, target=target)
    except UserError as error:
        raise MissingImagesError(str(error)) from None


def heat_map(percent: np.ndarray) -> str:
    """Return a confusion matrix as a PNG file with one pixel per cell, as a data URI.

    Args:
      percent: percentage of each row's images, `[classes, classes]`. The opacity of a pixel
        increases with the square root of the percentage. The diagonal is blue, and the other pixels
        are orange.
    """
    pixels = np.zeros((*percent.shape, 4), np.uint8)
    pixels[..., :3] = ORANGE
    errors = percent.copy()
    np.fill_diagonal(errors, 0)
    pixels[..., 3] = 255 * np.sqrt(errors / (errors.max() or 1))
    diagonal = np.arange(len(percent))
    pixels[diagonal, diagonal, :3] = BLUE
    pixels[diagonal, diagonal, 3] = 255 * np.sqrt(np.diag(percent) / 100)
    return png(pixels)


def _thumbnail(pixels: np.ndarray) -> str:
    if max(pixels.shape) <= 48:
        return png(pixels)
    from PIL import Image

    image, file = Image.fromarray(np.ascontiguousarray(pixels)), io.BytesIO()
    image.thumbnail((96, 96))
    image.save(file, "JPEG", quality=80, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def png(pixels: np.ndarray) -> str:
    """Return an image as a data URI.

    Args:
      pixels: uint8 `[height, width, channels]`, with three or four channels.
    """
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
