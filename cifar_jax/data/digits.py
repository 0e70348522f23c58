"""The embedded data set: scikit-learn's 1,797 handwritten digits in CIFAR-10's shape.

It needs no download. Each 8×8 image's values 0..16 become 0..255, Pillow's bilinear interpolation
resizes it to 32×32, and it is repeated over three channels. Of the images sorted by class (within a
class in scikit-learn's order) every fifth is a test image: 360, which leaves 1,437 to train on.
"""

import numpy as np

from cifar_jax.data.cache import Source
from cifar_jax.data.dataset import Decoded, Split

CLASSES = tuple("0123456789")


def source() -> Source:
    """The digits; they never change, so neither does the signature."""
    return Source(name="digits", entry="digits", signature="digits-1", decode=decode)


def decode() -> Decoded:
    """The digits as uint8 ``[N, 32, 32, 3]`` with their fixed split."""
    from PIL import Image
    from sklearn.datasets import load_digits

    pixels, targets = load_digits(return_X_y=True)
    labels = np.asarray(targets, np.int32)
    small = np.round(np.asarray(pixels).reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    large = [
        np.asarray(Image.fromarray(i).resize((32, 32), Image.Resampling.BILINEAR)) for i in small
    ]
    images = np.repeat(np.stack(large)[..., None], 3, axis=-1)

    test = np.sort(np.argsort(labels, kind="stable")[::5])
    # scikit-learn's order runs from writer to writer: without a shuffle the last training images,
    # which validation holds out, would be those of a few writers. RandomState's streams are frozen.
    train = np.random.RandomState(0).permutation(np.setdiff1d(np.arange(len(labels)), test))
    return Decoded(CLASSES, Split(images[train], labels[train]), Split(images[test], labels[test]))
