"""Image classifiers for CIFAR-10 in JAX and Flax.

The package contains the ten experiments of the paper “A New Classifier Based on CIFAR10 Data Set”.
The names in `__all__` are the public API. All other names may change without notice.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flax import linen as nn

    from cifar_jax.callbacks import Callback
    from cifar_jax.catalog import CustomParts
    from cifar_jax.config import Config
    from cifar_jax.errors import UserError
    from cifar_jax.inference.model import Classifier
    from cifar_jax.runs.schemas import Result

    __version__: str

__all__ = [
    "Callback",
    "Classifier",
    "Config",
    "Result",
    "UserError",
    "__version__",
    "load",
    "train",
]

_HOMES = {
    "Callback": "cifar_jax.callbacks",
    "Classifier": "cifar_jax.inference.model",
    "Config": "cifar_jax.config",
    "Result": "cifar_jax.runs.schemas",
    "UserError": "cifar_jax.errors",
}
"""Maps each public class to its module. The module is imported when the class is first used, which
keeps `import cifar_jax` fast."""


def train(
    config: Config | str,
    workdir: str | Path,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
    *,
    custom: CustomParts | None = None,
) -> Result:
    """Train a network in a run folder and return the result.

    An unfinished run in the folder is resumed. A finished run is not trained again: its stored
    result is returned.

    Like the command `cifar-jax train`, this function configures JAX, shows progress and saves
    checkpoints. Call it before other JAX functions. Otherwise JAX may be configured too late, and a
    warning is printed.

    Args:
      config: the settings of the run, or the name or path of an experiment file.
      workdir: the run folder. It is created if it does not exist.
      seed: random seed.
      callbacks: objects whose methods are called during training; see
        `cifar_jax.callbacks.Callback`.
      custom: custom network, optimizer, schedule or augmentation. Used only if `config` is a
        `Config`.

    Returns:
      The result of the run. For example, `result.test_accuracy` is the test accuracy in percent.

    Raises:
      cifar_jax.errors.UserError: the settings contradict each other, do not fit the data, or differ
        from the settings of the run in `workdir`. Also raised if the loss becomes NaN or infinite.
      KeyboardInterrupt: Ctrl-C interrupted the run. Call `train` again with the same arguments to
        resume it.
    """
    import signal

    from cifar_jax import catalog, runtime
    from cifar_jax.config import Config, changes
    from cifar_jax.errors import Stopped
    from cifar_jax.files import local_path

    workdir = local_path(workdir)
    runtime.set_up()

    from cifar_jax.inference.load import weights_loader
    from cifar_jax.models import check_custom_name
    from cifar_jax.training.request import RunRequest
    from cifar_jax.training.train import train

    overrides: dict[str, Any] = {}
    if isinstance(config, Config):
        experiment = config.model.name
        if experiment in catalog.names():
            overrides = changes(catalog.load(experiment).config, config)
        else:  # The settings may be changed ones of an experiment of the paper.
            config = config.model_copy(update={"paper": None})
    else:
        found = catalog.load(str(config))
        experiment, config, custom = found.name, found.config, found.custom
    custom = custom or catalog.CustomParts()
    if custom.model is not None:
        check_custom_name(config.model.name, custom.file)
    request = RunRequest(
        experiment=experiment,
        config=config,
        seed=seed,
        workdir=workdir,
        custom=custom,
        overrides=overrides,
        load_weights=weights_loader(config),
        extend=True,
    )
    try:
        result = train(request, callbacks)
        assert result, "the request evaluates the test images"
        return result
    except Stopped as stopped:
        if stopped.signum == signal.SIGINT:
            raise KeyboardInterrupt(str(stopped)) from None
        raise


def load(
    path: str | Path, *, best: bool = False, model: nn.Module | type[nn.Module] | None = None
) -> Classifier:
    """Return a trained model from a run folder, an exported file or a packaged network.

    The method `predict` of the model returns probabilities `[N, classes]`. The methods `predict`,
    `logits` and `features` accept a path, a Pillow image, an array or a list of images. The
    attribute `classes` holds the class names. The attribute `card` describes the model. Loading
    needs neither the training images nor the optimizer.

    Args:
      path: a run folder, an exported file, or the name of a packaged network, such as `net-bn-gap`.
      best: load the checkpoint of the best epoch instead of the last one.
      model: the class or an instance of the network, if the network is not part of the package.
        Code that is stored in a run folder is never executed.

    Raises:
      cifar_jax.errors.UserError: `path` does not exist or is damaged, or `model` is missing or is
        not the network that was trained.
    """
    # Import slow modules only when `load` is called, to keep `import cifar_jax` fast.
    from cifar_jax.inference.load import load
    from cifar_jax.models.custom import CustomModel

    return load(path, best=best, custom=None if model is None else CustomModel(model))


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("cifar-jax")
    raise AttributeError(f"module 'cifar_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
