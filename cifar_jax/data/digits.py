"""The `digits` data set: 1,797 handwritten digits, which ship with the package.

The digits are the test set of "Optical Recognition of Handwritten Digits" (E. Alpaydin and
C. Kaynak, 1998, UCI Machine Learning Repository, https://doi.org/10.24432/C50P49; license CC BY
4.0), in the version that scikit-learn distributes. `digits.npz` holds the images, uint8
`[1797, 8, 8]` in 0..16, and the labels.

The images are scaled to 0..255, resized to 32×32 by bilinear interpolation, and repeated over three
channels. Then they are sorted by class with a stable sort. Every fifth image is a test image. This
gives 360 test images and 1,437 training images.
"""

from pathlib import Path

import numpy as np

from cifar_jax.data.cache import Source
from cifar_jax.data.dataset import Arrays, Split

CLASSES = tuple("0123456789")


def source() -> Source:
    """Return the digits as a `cache.Source`."""
    return Source(name="digits", entry="digits", signature="digits-1", decode=decode)


def decode() -> Arrays:
    """Return the digits as 32×32 RGB images, split into training and test images."""
    from PIL import Image

    with np.load(Path(__file__).with_name("digits.npz")) as file:
        pixels, labels = file["images"], file["labels"].astype(np.int32)
    small = np.round(pixels * (255 / 16)).astype(np.uint8)
    large = [
        np.asarray(Image.fromarray(i).resize((32, 32), Image.Resampling.BILINEAR)) for i in small
    ]
    images = np.repeat(np.stack(large)[..., None], 3, axis=-1)

    test = np.sort(np.argsort(labels, kind="stable")[::5])
    # Shuffle the training images, which are ordered by writer. Otherwise the last images, which are
    # held out for validation, would come from few writers. Every version of NumPy gives the same
    # order with `RandomState`.
    train = np.random.RandomState(0).permutation(np.setdiff1d(np.arange(len(labels)), test))
    return Arrays(CLASSES, Split(images[train], labels[train]), Split(images[test], labels[test]))
