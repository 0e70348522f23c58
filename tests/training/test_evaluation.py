"""Test evaluation with test-time augmentation against NumPy."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from cifar_jax import devices, models
from cifar_jax.training.evaluation import TTA, Outputs, apply_tta, compile_logits

COUNT, BATCH = 21, 8
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, 32, 32, 3), np.uint8)
MODEL = models.create("basic")
VARIABLES = models.init_variables(MODEL, jax.random.key(0))


def normalize(images: Any) -> jax.Array:
    return images.astype("float32") / 64 - 2


@jax.jit
def _apply(images: np.ndarray) -> Any:
    return MODEL.apply(VARIABLES, normalize(images), train=False)


def logits_of(images: np.ndarray) -> np.ndarray:
    return np.asarray(_apply(images))


def view(images: np.ndarray, shift: int, flip: bool) -> np.ndarray:
    """Return images moved down and right by `shift` pixels, and then mirrored if `flip` is True."""
    places = np.abs(np.arange(32) - shift)  # Reflection fills the border.
    places = np.where(places > 31, 62 - places, places)
    return images[:, places][:, :, places[::-1] if flip else places]


def expected(images: np.ndarray, tta: TTA) -> np.ndarray:
    """Return the weighted mean of the logits of all augmented views."""
    weights = {0: 0.5, tta.shift: 0.25, -tta.shift: 0.25} if tta.shift else {0: 1}
    flips = [False, True] if tta.flip else [False]
    return sum(
        weight / len(flips) * logits_of(view(images, shift, flip))
        for shift, weight in weights.items()
        for flip in flips
    )  # pyright: ignore


def evaluate(
    tta: TTA | None, *, device_count: int = 1, after_batch: Callable[[], None] = lambda: None
) -> Outputs:
    """Return the outputs of the compiled evaluation for all images."""
    return compile_logits(
        MODEL,
        VARIABLES,
        IMAGES,
        normalize=normalize,
        batch_size=BATCH,
        mesh=devices.make_mesh(BATCH, device_count),
        after_batch=after_batch,
        tta=tta,
    )(VARIABLES)


@pytest.mark.parametrize("tta", [None, TTA(), TTA(least_confident=0.5)])
def test_each_image_is_evaluated_once_without_augmentation(tta: TTA | None) -> None:
    calls = []
    outputs = evaluate(tta, after_batch=lambda: calls.append(1))
    assert outputs.logits.dtype == np.float32
    assert outputs.plain is outputs.logits
    np.testing.assert_allclose(outputs.logits, logits_of(IMAGES), atol=1e-5)
    np.testing.assert_array_equal(outputs.logits, evaluate(None).logits)
    assert len(calls) == 3  # 21 images make 3 batches of up to 8.


@pytest.mark.parametrize(
    ("tta", "batches", "device_count"),
    [(TTA(True), 6, 2), (TTA(shift=1), 9, 1), (TTA(shift=2), 9, 8), (TTA(True, 1), 18, 1)],
)
def test_logits_are_the_weighted_mean_of_the_views(
    tta: TTA, batches: int, device_count: int
) -> None:
    calls = []
    outputs = evaluate(tta, device_count=device_count, after_batch=lambda: calls.append(1))
    assert outputs.logits.dtype == np.float32
    np.testing.assert_allclose(outputs.logits, expected(IMAGES, tta), atol=1e-5)
    np.testing.assert_allclose(outputs.plain, logits_of(IMAGES), atol=1e-5)
    assert np.abs(outputs.logits - outputs.plain).max() > 1e-3
    assert len(calls) == batches


@pytest.mark.parametrize(
    ("fraction", "count", "device_count"), [(0.001, 1, 2), (0.34, 7, 1), (0.5, 10, 2), (1.0, 21, 1)]
)
def test_only_the_least_confident_images_get_more_views(
    fraction: float, count: int, device_count: int
) -> None:
    calls = []
    tta = TTA(flip=True, shift=1, least_confident=fraction)
    outputs = evaluate(tta, device_count=device_count, after_batch=lambda: calls.append(1))
    plain = logits_of(IMAGES)
    probabilities = np.sort(np.exp(plain) / np.exp(plain).sum(-1, keepdims=True))
    chosen = np.argsort(probabilities[:, -1] - probabilities[:, -2])[:count]
    others = np.setdiff1d(np.arange(COUNT), chosen)
    np.testing.assert_allclose(outputs.logits[chosen], expected(IMAGES[chosen], tta), atol=1e-5)
    np.testing.assert_array_equal(outputs.logits[others], outputs.plain[others])
    np.testing.assert_array_equal(outputs.plain, evaluate(None, device_count=device_count).logits)
    assert len(calls) == 3 + 5 * -(-count // BATCH)


def test_one_image_gets_the_same_views() -> None:
    tta = TTA(flip=True, shift=1, least_confident=0.2)
    outputs = apply_tta(logits_of, IMAGES[:1], tta)
    np.testing.assert_allclose(outputs.logits, expected(IMAGES[:1], tta), atol=1e-5)


def test_confidence_is_the_difference_of_the_two_largest_probabilities() -> None:
    logits = np.log(np.array([[0.49, 0.48, 0.03], [0.4, 0.3, 0.3]], np.float32))

    def fixed_logits(images: np.ndarray) -> np.ndarray:
        return logits if images is pair else np.zeros((len(images), 3), np.float32)

    pair = IMAGES[:2]
    outputs = apply_tta(fixed_logits, pair, TTA(flip=True, least_confident=0.5))
    np.testing.assert_array_equal(outputs.logits, [logits[0] / 2, logits[1]])
