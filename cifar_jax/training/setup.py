"""A config made concrete: the data, the recipe, the devices, and the state to begin with."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from cifar_jax import config as configs
from cifar_jax import devices, distributed, models
from cifar_jax.config import Config
from cifar_jax.data import Dataset, Split, load, split_validation
from cifar_jax.errors import UserError
from cifar_jax.models import initialization
from cifar_jax.training import averaging, batches, losses, optimizers, plan, schedules
from cifar_jax.training import step as steps
from cifar_jax.training.plan import Plan, StepVariant
from cifar_jax.training.step import StepSpec, TrainState

WHITENING_IMAGES = 5000
"""As airbench has it."""


class Setup(NamedTuple):
    """A config made concrete: checked against the data and the devices, nothing computed yet."""

    config: Config
    dataset: Dataset
    train: Split
    validation: Split
    plan: Plan
    stages: tuple[StepVariant, ...]
    """The plan's, and under `train.max_minutes` those that another plan of the run may have."""
    recipe: StepSpec
    mesh: Mesh


def workload(
    config: Config,
    *,
    own: models.CustomModel | None = None,
    dataset: Dataset | None = None,
    available: Sequence[Any] | None = None,
) -> Setup:
    """Load the data and check that the settings fit it and the devices.

    Args:
      config: what the run is.
      own: the model, where the config names none of the package's.
      dataset: instead of the one that the config names.
      available: devices to choose from, instead of all that there are.

    Raises:
      UserError: unknown model or data set, data that is not there, a batch larger than the data, or
        devices that do not divide it.
    """
    settings = config.data
    # What needs no data is checked before the data is loaded, which may take a download.
    _check_network(config, own)
    sizes = [phase.batch_size or config.batch_size for phase in config.phases]
    mesh = devices.make_mesh(math.gcd(config.batch_size, *sizes), config.train.devices, available)
    dataset = load(settings.dataset) if dataset is None else dataset
    train, validation = split_validation(dataset.train, settings.validation)
    if settings.train_images is not None:
        if settings.train_images > len(train.labels):
            raise UserError(
                f"data.train_images={settings.train_images}, but {settings.dataset} has "
                f"{len(train.labels)} training images beside the validation images"
            )
        train = Split(*(array[: settings.train_images] for array in train))
    planned = plan.make(config, len(train.labels), models.IMAGE_SHAPE[0])
    stages = planned.stages
    if config.train.max_minutes:
        possible = plan.possible_stages(config, models.IMAGE_SHAPE[0])
        stages = tuple(dict.fromkeys((*stages, *possible)))
    for stage in stages:
        if stage.batch_size > len(train.labels):
            raise UserError(
                f"batch_size {stage.batch_size} is larger than the {len(train.labels)} training "
                "images"
            )
    return Setup(
        config=config,
        dataset=dataset,
        train=train,
        validation=validation,
        plan=planned,
        stages=stages,
        recipe=_recipe(config, _network(config, own, num_classes=len(dataset.classes))),
        mesh=mesh,
    )


def check_beginning(config: Config, own: models.CustomModel | None = None) -> None:
    """See that no part is in vain, before a run begins and its data is loaded. One that did begin
    so goes on, and is read.

    Raises:
      UserError: a part is.
    """
    if config.init.dirac and config.train.init_from:
        raise UserError(
            "init.dirac makes weights to begin with, and train.init_from brings others: leave one "
            "of them out"
        )
    params = models.variable_shapes(_network(config, own))["params"]
    optimizers.check(params, config.optimizer, config.param_groups)
    optimizers.validate_group_use(params, config.optimizer, config.param_groups)


def check_average(config: Config, steps: int, *, over: bool = False) -> None:
    """See that a run of so many steps comes to an average, or has come to one if it is `over`.

    Raises:
      UserError: it does not.
    """
    if config.averaging and config.averaging.every > steps:
        raise UserError(
            f"averaging.every is {config.averaging.every}, and the run has {steps} steps: its "
            "average would be the weights that it begins with; lower averaging.every"
            + (", and begin anew (--fresh)" if over else "")
        )


def _network(config: Config, own: models.CustomModel | None, **options: Any) -> nn.Module:
    model, dtype = config.model, jnp.dtype(config.train.precision)
    options |= {"dropout": model.dropout, "pooling": model.pooling}
    return models.create(model.name, own, dtype=dtype, **options)


def _check_network(config: Config, own: models.CustomModel | None) -> None:
    """See that the network has the parameters and takes the images that the recipe is for.

    Raises:
      UserError: it is not so.
    """
    model = _network(config, own)
    params = models.variable_shapes(model)["params"]
    optimizers.check(params, config.optimizer, config.param_groups)
    if config.init.whitening:
        layer, name = initialization.first_convolution({"params": params})
        takes, channels = params[layer][name].shape[2], models.IMAGE_SHAPE[2]
        if takes != channels:
            raise UserError(
                f"init.whitening is for the convolution that takes the images, of {channels} "
                f"channels, and {layer} takes {takes}: leave it out, or choose another model"
            )
    for size in {phase.image_size or models.IMAGE_SHAPE[0] for phase in config.phases}:
        if not models.accepts_size(model, size):
            raise UserError(
                f"{config.model.name} takes images of {models.IMAGE_SHAPE[0]} pixels only, and a "
                f"phase has {size}: leave image_size out, or choose a network with global average "
                "pooling"
            )


def _recipe(config: Config, model: nn.Module) -> StepSpec:
    frozen = []
    if config.init.whitening:
        shapes = models.variable_shapes(model)
        frozen.append("/".join(initialization.first_convolution(shapes)))
    rule = None
    match config.averaging:
        case configs.Ema(decay=decay, every=every):
            rule = averaging.Ema(decay, every)
        case configs.Lookahead(decay=decay, every=every, power=power):
            rule = averaging.Lookahead(decay, every, power)
    return StepSpec(
        model=model,
        tx=optimizers.make_optimizer(config.optimizer, config.param_groups, frozen),
        schedule=schedules.make(config.schedule),
        loss=partial(losses.cross_entropy, smoothing=config.loss.label_smoothing),
        averaging=rule,
    )


def init_state(workload: Setup, seed: int, initial: Mapping[str, Any] | None = None) -> TrainState:
    """The state that a run of that seed begins with, on the devices.

    Args:
      workload: the run's.
      seed: of the fresh variables.
      initial: variables to begin with instead, but for a last layer of other classes.

    Raises:
      UserError: `initial` is of another network.
    """
    key, _, _ = random_keys(seed)
    replicated = devices.replicated(workload.mesh)
    init, settings = partial(fresh_state, workload), workload.config.init
    state = jax.jit(init, out_shardings=replicated)(key, learning_rates(workload.config))
    if initial is not None:
        variables = models.transfer(state.variables, initial)
    elif settings.dirac or settings.whitening:
        variables = jax.device_get(state.variables)
        if settings.dirac:
            variables = initialization.dirac(variables)
        if settings.whitening:
            images = batches.normalize(workload.train.images[:WHITENING_IMAGES], workload.dataset)
            variables = initialization.whitened(variables, images)
        # One process's arithmetic for all, which may have other processors.
        variables = distributed.broadcast_arrays(variables)
    else:
        return state
    placed = devices.put(variables, replicated)
    averaged = averaging.init(placed) if workload.recipe.averaging else {}
    return state._replace(**placed, averaged=averaged)


def learning_rates(config: Config) -> np.ndarray:
    """float32 `[1 + groups]`. No program has them in it, so that another compiles nothing anew."""
    groups = [group.optimizer.lr for group in config.param_groups]
    return np.array([config.optimizer.lr, *groups], np.float32)


def fresh_state(workload: Setup, key: jax.Array, rates: jax.Array | np.ndarray) -> TrainState:
    """The state before the first step, of the networks' own initialization; for jit."""
    variables = models.init_variables(workload.recipe.model, key)
    return steps.init_state(variables, workload.recipe, rates)


def random_keys(seed: int) -> tuple[jax.Array, ...]:
    """Of initialization, of the epochs' orders, and of what is random in a step."""
    return tuple(jax.random.split(jax.random.key(seed), 3))
