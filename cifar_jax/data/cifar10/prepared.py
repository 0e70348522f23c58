"""How a run gets hold of CIFAR-10."""

import hashlib
import os
from pathlib import Path

from cifar_jax.data import cache, tfds_folder
from cifar_jax.data.cifar10 import facts
from cifar_jax.data.cifar10.download import prepare
from cifar_jax.data.cifar10.tfds_write import check_target
from cifar_jax.data.progress import notice
from cifar_jax.errors import UserError


def source(data_dir: Path) -> cache.Source:
    """The prepared folder as a source; where there is none, it is downloaded and prepared first.

    Raises UserError, naming the ways out, if it cannot be downloaded.
    """
    path = facts.folder(data_dir)
    if not os.path.exists(path):  # noqa: PTH110 - Path.exists raises where a name is too long
        check_target(data_dir)
        place = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:12]
        # Two processes that start at once: the second finds what the first has prepared.
        with cache.locked(f"prepare-{place}"):
            if not path.exists():
                notice(
                    f"CIFAR-10 is not in {data_dir} yet: downloading it from {facts.ARCHIVE_URL}"
                )
                try:
                    prepare(data_dir)
                except UserError:
                    if not path.exists():
                        raise
                    # A process on another machine, which sees no lock of this one, was faster.
    return tfds_folder.source(path)
