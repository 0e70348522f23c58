"""Test-time augmentation against views made one pixel at a time."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from cifar_jax import devices, models
from cifar_jax.training.evaluation import TTA, apply_tta, compile_logits

COUNT, BATCH = 21, 8
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, 32, 32, 3), np.uint8)
MODEL = models.create("basic")
VARIABLES = models.init_variables(MODEL, jax.random.key(0))


def normalize(images: jax.Array) -> jax.Array:
    return images.astype("float32") / 64 - 2


@partial(jax.jit, static_argnums=1)
def _apply(images: np.ndarray, train: bool) -> Any:
    return MODEL.apply(VARIABLES, normalize(images), train=train)


def plain(images: np.ndarray) -> np.ndarray:
    return np.asarray(_apply(images, False))


def seen(images: np.ndarray, *, flip: bool = False, by: int = 0) -> np.ndarray:
    """Pixel by pixel: what was at (y, x) is at (y + by, x + by), then mirrored."""

    def reflected(place: int) -> int:
        return -place if place < 0 else 62 - place if place > 31 else place

    made = np.empty_like(images)
    for y in range(32):
        for x in range(32):
            column = 31 - x if flip else x
            made[:, y, column] = images[:, reflected(y - by), reflected(x - by)]
    return made


def expected(images: np.ndarray, views: TTA) -> np.ndarray:
    def mirror_mean(by: int) -> np.ndarray:
        found = plain(seen(images, by=by))
        return (found + plain(seen(images, by=by, flip=True))) / 2 if views.flip else found

    mean = mirror_mean(0)
    if views.shift:
        mean = mean / 2 + (mirror_mean(views.shift) + mirror_mean(-views.shift)) / 4
    return mean


def compiled(
    views: TTA | None, *, on: int = 1, after_batch: Callable[[], None] = lambda: None
) -> np.ndarray:
    return compile_logits(
        MODEL,
        VARIABLES,
        IMAGES,
        normalize=normalize,
        batch_size=BATCH,
        mesh=devices.make_mesh(BATCH, on),
        after_batch=after_batch,
        tta=tta,
    )(VARIABLES)


@pytest.mark.parametrize("views", [None, TTA(), TTA(least_confident=0.5)])
def test_without_views_each_image_is_seen_once(views: TTA | None) -> None:
    calls = []
    found = compiled(views, after_batch=lambda: calls.append(1))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, plain(IMAGES), atol=1e-5)
    np.testing.assert_array_equal(found, compiled(None))
    assert len(calls) == 3  # 21 images in batches of 8


@pytest.mark.parametrize("on", [1, 2, 8])
@pytest.mark.parametrize(
    ("views", "batches"),
    [(TTA(flip=True), 6), (TTA(shift=1), 9), (TTA(shift=2), 9), (TTA(True, 1), 18)],
)
def test_logits_are_the_mean_of_what_is_seen(views: TTA, batches: int, on: int) -> None:
    calls = []
    found = compiled(views, on=on, after_batch=lambda: calls.append(1))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected(IMAGES, views), atol=1e-5)
    assert np.abs(found - plain(IMAGES)).max() > 1e-3
    assert len(calls) == batches


@pytest.mark.parametrize(("share", "count"), [(0.001, 1), (0.34, 7), (0.5, 10), (1.0, 21)])
@pytest.mark.parametrize("on", [1, 2])
def test_of_the_unsure_images_only(share: float, count: int, on: int) -> None:
    calls = []
    views = TTA(flip=True, shift=1, least_confident=share)
    found = compiled(views, on=on, after_batch=lambda: calls.append(1))
    logits = plain(IMAGES)
    odds = np.sort(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))
    unsure = np.argsort(odds[:, -1] - odds[:, -2])[:count]
    sure = np.setdiff1d(np.arange(COUNT), unsure)
    np.testing.assert_allclose(found[unsure], expected(IMAGES[unsure], views), atol=1e-5)
    np.testing.assert_array_equal(found[sure], compiled(None, on=on)[sure])
    assert len(calls) == 3 + 5 * -(-count // BATCH)


def test_of_one_image_and_of_a_function_that_is_no_network() -> None:
    """Exports are seen through the same views."""
    views = TTA(flip=True, shift=1, least_confident=0.2)
    np.testing.assert_allclose(
        apply_tta(plain, IMAGES[:1], views), expected(IMAGES[:1], views), atol=1e-5
    )


def test_an_unsure_image_is_one_between_two_classes() -> None:
    """Not one whose largest probability is the smallest."""
    logits = np.log(np.array([[0.49, 0.48, 0.03], [0.4, 0.3, 0.3]], np.float32))

    def logits_of(images: np.ndarray) -> np.ndarray:
        return logits if images is pair else np.zeros((len(images), 3), np.float32)

    pair = IMAGES[:2]
    found = apply_tta(logits_of, pair, TTA(flip=True, least_confident=0.5))
    np.testing.assert_array_equal(found, [logits[0] / 2, logits[1]])
