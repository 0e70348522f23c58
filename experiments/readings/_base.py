"""The function that all variants of the paper's experiments use."""

from collections.abc import Mapping
from typing import Any

from cifar_jax import catalog, config


def vary(experiment: str, changes: Mapping[str, Any]) -> config.Config:
    """Return the config of an experiment of the paper with changed settings.

    Args:
      experiment: name of the experiment.
      changes: values of the changed settings, by dotted name.
    """
    settings = config.flatten(catalog.load(experiment).config)
    return config.from_flat({**settings, **changes}).model_copy(update={"varies": experiment})
