"""Read CIFAR-10-C, the test images of CIFAR-10 with 19 kinds of corruption.

The data set is by D. Hendrycks and T. Dietterich, arXiv:1903.12261,
https://zenodo.org/records/2535967. Each corruption is one file. It holds the test images five
times, with severity 1 first and severity 5 last.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cifar_jax.data import arrays
from cifar_jax.data.dataset import Labeled
from cifar_jax.data.images import DEFAULT_TARGET, Target
from cifar_jax.errors import UserError, counted
from cifar_jax.files import expand_home

SEVERITIES = 5
BENCHMARK = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
"""The 15 corruptions of the benchmark. Published results are means over these corruptions.
CIFAR-10-C also has four extra corruptions, which its authors reserve for validation."""


class Corruption(NamedTuple):
    """One kind of corruption, with the corrupted images of severities 1 to 5."""

    name: str
    severities: tuple[Labeled, ...]


def read(folder: Path, target: Target = DEFAULT_TARGET) -> Iterator[Corruption]:
    """Yield the corruptions in a folder. The corruptions of the benchmark come first.

    All files are checked before the first corruption is yielded. The file `labels.npy` holds the
    labels for one severity, or for all five severities.

    Raises:
      UserError: the folder or its files are missing, or the lengths of the files do not match.
    """
    folder = expand_home(folder)
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
    is_repeated = np.array_equal(
        labels, np.resize(labels[: len(labels) // SEVERITIES], len(labels))
    )
    for name, images in pixels.items():
        count = len(images) if images.ndim else 0
        is_valid = count == SEVERITIES * len(labels) or (is_repeated and count == len(labels))
        if not count or count % SEVERITIES or not is_valid:
            raise UserError(
                f"{files[name]} has {counted(count, 'image')}, but {labels_path} has "
                f"{counted(len(labels), 'label')}: five images for each label are needed, or "
                "labels.npy must repeat its labels for the five severities"
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
