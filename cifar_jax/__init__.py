"""The ten experiments of “A New Classifier Based on CIFAR10 Data Set” in JAX and Flax.

Public API: `train`, `load`, `Config`, `Callback`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flax import linen as nn

    from cifar_jax.callbacks import Callback
    from cifar_jax.catalog import CustomParts
    from cifar_jax.config import Config
    from cifar_jax.inference.model import Classifier
    from cifar_jax.runs.schemas import Result

__all__ = ["Callback", "Config", "load", "train"]


def train(
    config: Config | str,
    workdir: str | Path,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
    *,
    custom: CustomParts | None = None,
) -> Result:
    """Train a run in a folder, resume it, or return its result if it is finished.

    This does what `cifar-jax train` does: it configures JAX, shows the progress and saves
    checkpoints. Call it before JAX is used for the first time; otherwise it says what could not be
    configured.

    Args:
      config: the settings, or the name or path of an experiment.
      workdir: the run folder.
      seed: random seed.
      callbacks: called during the training; see `cifar_jax.callbacks.Callback`.
      custom: custom network, optimizer, schedule or augmentation, if `config` is a `Config`.

    Returns:
      The result, such as `result.test_accuracy` in percent.

    Raises:
      cifar_jax.errors.UserError: settings do not fit each other, the data or the folder, or the
        loss diverged.
      KeyboardInterrupt: the run was interrupted. It is saved; the same call resumes it.
    """
    import signal

    from cifar_jax import catalog, runtime
    from cifar_jax.errors import Stopped

    runtime.set_up()

    from cifar_jax.training.request import RunRequest
    from cifar_jax.training.train import train

    if isinstance(config, str):
        found = catalog.load(config)
        experiment, config, custom = found.name, found.config, found.custom
    else:
        experiment = config.model.name
    request = RunRequest(
        experiment=experiment,
        config=config,
        seed=seed,
        workdir=Path(workdir),
        custom=custom or catalog.CustomParts(),
        load_weights=weights_loader(config),
        extend=True,
    )
    try:
        return train(request, callbacks)
    except Stopped as stopped:
        if stopped.signum == signal.SIGINT:
            raise KeyboardInterrupt(str(stopped)) from None
        raise


def load(
    path: str | Path, *, best: bool = False, model: nn.Module | type[nn.Module] | None = None
) -> Classifier:
    """Return the trained model in a run folder, an exported file, or a packaged network.

    Its `predict` takes uint8 images `[N, 32, 32, 3]` or image files, and returns probabilities
    `[N, classes]`; `classes` names them and `card` describes the model. Neither the training images
    nor the optimizer are needed.

    Args:
      path: the run folder or file, or a name such as `net-bn-gap`.
      best: load the checkpoint with the best validation accuracy instead of the last.
      model: the network, as a class or an instance, if it is a custom one. The copy of its code in
        a run folder is never executed.

    Raises:
      cifar_jax.errors.UserError: nothing is there, it is damaged, or `model` is missing or wrong.
    """
    # Imported here so that importing the package is fast.
    from cifar_jax.inference.load import load
    from cifar_jax.models.custom import CustomModel

    return load(path, best=best, custom=None if model is None else CustomModel(model))


def weights_loader(config: Config) -> Callable[[], Mapping[str, Any]] | None:
    """Return a function that loads the variables that `train.init_from` names, if it is set."""
    if (source := config.train.init_from) is None:
        return None
    from cifar_jax.inference.load import weights

    return partial(weights, source)


def __getattr__(name: str) -> Any:
    # Imported on demand, so that importing the package is fast.
    if name == "Callback":
        from cifar_jax.callbacks import Callback

        return Callback
    if name == "Config":
        from cifar_jax.config import Config

        return Config
    raise AttributeError(f"module 'cifar_jax' has no attribute {name!r}")
