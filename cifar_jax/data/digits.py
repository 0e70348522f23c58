"""The `digits` data set: 1,797 handwritten digits, which ship with the package.

`digits.npz` holds the test set of "Optical Recognition of Handwritten Digits" (E. Alpaydin and
C. Kaynak, 1998, UCI Machine Learning Repository, https://doi.org/10.24432/C50P49; license CC BY
4.0) as scikit-learn distributes it: images uint8 `[1797, 8, 8]` in 0..16, and labels.

Images are scaled to 0..255, resized to 32×32 (bilinear) and repeated over three channels. After a
stable sort by class every fifth image is a test image: 360, which leaves 1,437 to train on.
"""

from pathlib import Path

import numpy as np

from cifar_jax.data.cache import Source
from cifar_jax.data.dataset import Arrays, Split

CLASSES = tuple("0123456789")


def source() -> Source:
    """Return the digits as a source."""
    return Source(name="digits", entry="digits", signature="digits-1", decode=decode)


def decode() -> Arrays:
    """Return the digits in the shape of CIFAR-10, with a fixed split."""
    from PIL import Image

    with np.load(Path(__file__).with_name("digits.npz")) as file:
        pixels, labels = file["images"], file["labels"].astype(np.int32)
    small = np.round(pixels * (255 / 16)).astype(np.uint8)
    large = [
        np.asarray(Image.fromarray(i).resize((32, 32), Image.Resampling.BILINEAR)) for i in small
    ]
    images = np.repeat(np.stack(large)[..., None], 3, axis=-1)

    test = np.sort(np.argsort(labels, kind="stable")[::5])
    # The images are ordered by writer. Shuffling spreads the writers over the validation images,
    # which are the last training images. RandomState never changes its streams.
    train = np.random.RandomState(0).permutation(np.setdiff1d(np.arange(len(labels)), test))
    return Arrays(CLASSES, Split(images[train], labels[train]), Split(images[test], labels[test]))
