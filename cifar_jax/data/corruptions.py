"""Read CIFAR-10-C: corrupted test images, with one file per kind of corruption.

D. Hendrycks and T. Dietterich, arXiv:1903.12261, https://zenodo.org/records/2535967. The file of a
corruption holds the test images five times, with severity 1 first and severity 5 last.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cifar_jax.data import arrays
from cifar_jax.data.dataset import Labeled
from cifar_jax.data.images import DEFAULT_TARGET, Target
from cifar_jax.errors import UserError, counted

SEVERITIES = 5
BENCHMARK = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
"""The 15 corruptions of the benchmark. Published results are means over these corruptions.
CIFAR-10-C also has four extra corruptions, which the paper reserves for validation."""


class Corruption(NamedTuple):
    """A kind of corruption, and the images of each severity from 1 to 5."""

    name: str
    severities: tuple[Labeled, ...]


def read(folder: Path, target: Target = DEFAULT_TARGET) -> Iterator[Corruption]:
    """Yield the corruptions of a folder. The benchmark's corruptions come first.

    All files are checked before the first corruption is yielded. `labels.npy` holds the labels of
    one severity, or of all five severities.

    Raises:
      UserError: the folder or its files are missing, or the lengths of the files do not match.
    """
    folder = folder.expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: name the unpacked folder CIFAR-10-C")
    files = {path.stem: path for path in sorted(folder.glob("*.npy"))}
    labels_path = files.pop("labels", None)
    if labels_path is None or not files:
        missing = "labels.npy" if labels_path is None else "file NAME.npy with images"
        raise UserError(
            f"{folder} has no {missing}: CIFAR-10-C has labels.npy, and one file for each "
            "corruption"
        )
    labels = arrays.labels_of(arrays.load_npy(labels_path), str(labels_path))
    pixels = {name: arrays.load_npy(path) for name, path in files.items()}
    for name, images in pixels.items():
        count = len(images) if images.ndim else 0
        if not count or count % SEVERITIES or count not in (len(labels), SEVERITIES * len(labels)):
            raise UserError(
                f"{files[name]} has {counted(count, 'image')}, but {labels_path} has "
                f"{counted(len(labels), 'label')}: the number of images must be five times the "
                "number of labels, or the same number and divisible by 5"
            )
    first = [name for name in BENCHMARK if name in files]
    for name in [*first, *(name for name in files if name not in BENCHMARK)]:
        each = len(pixels[name]) // SEVERITIES
        repeated = np.resize(labels, SEVERITIES * each)
        parts = [slice(start, start + each) for start in range(0, SEVERITIES * each, each)]
        yield Corruption(
            name,
            tuple(
                Labeled(
                    f"{files[name]}, severity {severity}",
                    arrays.images_of(pixels[name][part], str(files[name]), target),
                    repeated[part],
                    None,
                )
                for severity, part in enumerate(parts, 1)
            ),
        )
