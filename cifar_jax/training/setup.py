"""Build the setup of a run from its config: data, plan, network, optimizer and devices."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from cifar_jax import config as configs
from cifar_jax import devices, distributed, models
from cifar_jax.catalog import CustomParts
from cifar_jax.config import Config
from cifar_jax.data import Dataset, Split, Target, load, split_validation
from cifar_jax.errors import UserError, counted
from cifar_jax.models import initialization
from cifar_jax.training import (
    averaging,
    batches,
    custom_parts,
    freezing,
    losses,
    optimizers,
    plan,
    rng,
    schedules,
)
from cifar_jax.training import step as steps
from cifar_jax.training.evaluation import scale_count
from cifar_jax.training.freezing import Pretrained
from cifar_jax.training.plan import Plan
from cifar_jax.training.step import LossFn, StepSpec, TrainState

WHITENING_IMAGES = 5000
"""Number of 32×32 training images that determine the whitening filters, as in airbench."""


class Setup(NamedTuple):
    """All parts of a run that do not change during training, such as the data and the network."""

    config: Config
    custom: CustomParts
    dataset: Dataset
    train: Split
    validation: Split
    """Images and labels that are held out for validation. It may be empty."""
    plan: Plan
    spec: StepSpec
    mesh: Mesh


def build_setup(
    config: Config,
    custom: CustomParts | None = None,
    *,
    dataset: Dataset | None = None,
    available: Sequence[Any] | None = None,
) -> Setup:
    """Return the setup of a run, after checking the config against the data and the devices.

    Args:
      config: the settings.
      custom: custom parts that the experiment file defines.
      dataset: the images and labels. None: load the data set that the config names.
      available: devices that the run may use. None: all devices.

    Raises:
      UserError: the model or data set is unknown, data is missing, a batch is larger than the
        training set, the number of devices does not divide the batch size, or a setting does not
        fit the network.
    """
    custom = custom or CustomParts()
    # Check everything that needs no data before the data set is loaded, and maybe downloaded.
    custom_parts.check(config, custom)
    _check_network(config, make_model(config, custom))
    sizes = [phase.batch_size or config.batch_size for phase in config.phases]
    mesh = devices.make_mesh(math.gcd(config.batch_size, *sizes), config.train.devices, available)
    if dataset is None:
        dataset = load_dataset(config)
    held_out = dataset.validation_images
    if held_out is None:
        held_out = config.data.validation
    train, validation = split_validation(dataset.train, held_out)
    if (count := config.data.train_images) is not None:
        if count > len(train.labels):
            raise UserError(
                f"data.train_images is {count:,}, but {config.data.dataset} has only "
                f"{counted(len(train.labels), 'training image')} after the validation split: lower "
                "data.train_images"
            )
        train = Split(*(array[:count] for array in train))
    run_plan = plan.make(config, len(train.labels), dataset.image_shape[0])
    for variant in run_plan.variants:
        if variant.batch_size > len(train.labels):
            better = plan.suggested_batch_size(len(train.labels))
            setting, remedy = "batch_size", f"lower it, such as --set batch_size={better}"
            if variant.batch_size != config.batch_size:
                setting, remedy = "the batch_size of a phase", "lower it in phases"
            raise UserError(
                f"{setting} is {variant.batch_size:,}, but {config.data.dataset} has only "
                f"{counted(len(train.labels), 'training image')} after the validation split: "
                f"{remedy}"
            )
    if config.averaging and config.averaging.every > run_plan.steps:
        raise UserError(
            f"averaging.every is {config.averaging.every:,}, but the run has only "
            f"{counted(run_plan.steps, 'step')}, so the average would never be updated: lower "
            "averaging.every"
        )
    _check_validation(config, len(validation.labels))
    model = make_model(config, custom, num_classes=len(dataset.classes))
    spec = _make_spec(config, custom, model, _make_loss(config, train, dataset.classes))
    custom_parts.check_optimizer(config, custom, spec)
    return Setup(
        config=config,
        custom=custom,
        dataset=dataset,
        train=train,
        validation=validation,
        plan=run_plan,
        spec=spec,
        mesh=mesh,
    )


def load_dataset(config: Config) -> Dataset:
    """Load the data set that a config names, with the image size of the config."""
    settings = config.data
    return load(
        settings.dataset,
        skip_bad_images=settings.skip_bad_images,
        target=Target(settings.image_size, settings.center_crop),
    )


def make_model(config: Config, custom: CustomParts, **options: Any) -> nn.Module:
    """Return the network that the config describes."""
    settings = config.model
    options |= {"dropout": settings.dropout, "pooling": settings.pooling, **settings.arguments}
    return models.create(
        settings.name,
        custom_model(config, custom),
        dtype=jnp.dtype(config.train.precision),
        **options,
    )


def custom_model(config: Config, custom: CustomParts) -> models.CustomModel | None:
    """Return the experiment file's network, or None if the run uses a network of the package."""
    if custom.model is None or config.model.name in models.MODELS:
        return None
    return models.CustomModel(
        custom.model, config.model.name, custom.file, custom.source, config.data.image_size
    )


def _check_network(config: Config, model: nn.Module) -> None:
    """Raise UserError if parameter groups, frozen layers, whitening or image sizes are invalid."""
    plan.validate_sizes(config, model)
    params = models.variable_shapes(model, config.data.image_size)["params"]
    optimizers.validate_groups(params, config.optimizer, config.param_groups)
    freezing.frozen(model, config.train.freeze, config.data.image_size)
    channels = models.IMAGE_SHAPE[2]
    if config.init.whitening:
        layer, name = initialization.first_convolution({"params": params})
        inputs = params[layer][name].shape[2]
        if inputs != channels:
            raise UserError(
                f"init.whitening needs a first convolution with {channels} input channels, and "
                f"{layer} has {inputs}: turn init.whitening off, or choose another model"
            )


def _check_validation(config: Config, images: int) -> None:
    """Raise UserError if a setting needs validation images, but there are none."""
    settings = config.train
    needing = [f"train.early_stopping={settings.early_stopping}"] * bool(settings.early_stopping)
    needing += [f"train.best_by={settings.best_by}"] * (settings.best_by != "accuracy")
    if needing and not images:
        raise UserError(
            f"{needing[0]} needs validation images, and none are held out: set data.validation, "
            "such as --set data.validation=0.1"
        )


def _make_loss(config: Config, train: Split, classes: Sequence[str]) -> LossFn:
    """Return the training loss, with the class weights of the config."""
    weights, smoothing = config.loss.class_weights, config.loss.label_smoothing
    if weights is None:
        return partial(losses.cross_entropy, smoothing=smoothing)
    if weights == "balanced":
        counts = np.bincount(train.labels, minlength=len(classes))
        if not counts.all():
            raise UserError(
                f"loss.class_weights=balanced needs a training image of each class, and "
                f"{classes[int(counts.argmin())]} has none: give the weights as a list"
            )
        weights = losses.balanced_weights(counts)
    if len(weights) != len(classes):
        raise UserError(
            f"loss.class_weights has {counted(len(weights), 'weight')}, but {config.data.dataset} "
            f"has {counted(len(classes), 'class', 'classes')}: give one weight for each class"
        )
    array = jnp.asarray(weights, jnp.float32)
    return partial(losses.weighted_cross_entropy, weights=array, smoothing=smoothing)


def _make_spec(config: Config, custom: CustomParts, model: nn.Module, loss: LossFn) -> StepSpec:
    fixed = freezing.frozen(model, config.train.freeze, config.data.image_size)
    frozen = fixed.params
    if config.init.whitening:
        shapes = models.variable_shapes(model, config.data.image_size)
        frozen = frozenset({"/".join(initialization.first_convolution(shapes))})
    match config.averaging:
        case configs.Ema(decay=decay, every=every):
            average = averaging.Ema(decay, every)
        case configs.Lookahead(decay=decay, every=every, power=power):
            average = averaging.Lookahead(decay, every, power)
        case _:
            average = None
    return StepSpec(
        model=model,
        optimizer=optimizers.make_optimizer(
            config.optimizer, config.param_groups, custom.optimizer, config.clip_norm
        ),
        schedule=schedules.make(config.schedule, custom.schedule),
        loss=loss,
        averaging=average,
        frozen=frozen,
        frozen_norms=fixed.norms,
    )


def initial_state(setup: Setup, seed: int, pretrained: Pretrained | None = None) -> TrainState:
    """Return the state before the first step, on the devices.

    Args:
      setup: the setup of the run.
      seed: seed of the initial weights.
      pretrained: trained network to start from. None: random weights. If its classes differ, the
        last layer is reinitialized.

    Raises:
      UserError: `pretrained` does not fit the network, or its last layer would be both
        reinitialized and frozen.
    """
    replicated = devices.replicated(setup.mesh)
    settings = setup.config.init
    make_state = jax.jit(partial(random_state, setup), out_shardings=replicated)
    state = make_state(rng.make_streams(seed).init, learning_rates(setup.config))
    if pretrained is not None:
        changed = freezing.start_variables(
            setup.spec.model,
            state.variables,
            pretrained,
            setup.dataset.classes,
            setup.dataset.image_shape[0],
            setup.spec.frozen,
        )
    elif settings.dirac or settings.whitening:
        changed = jax.device_get(state.variables)
        if settings.dirac:
            changed = initialization.dirac(changed)
        if settings.whitening:
            count = scale_count(WHITENING_IMAGES, setup.dataset.image_shape[0])
            images = batches.normalize(setup.train.images[:count], setup.dataset)
            changed = initialization.whitened(changed, images)
        # Rounding may differ between processes, so all processes use the values of process 0.
        changed = distributed.broadcast_arrays(changed)
    else:
        return state
    placed = devices.put(changed, replicated)
    averaged = averaging.init(placed) if setup.spec.averaging else {}
    # A custom optimizer may keep the initial parameters, so its state is made again.
    make_opt_state = jax.jit(
        lambda params: setup.spec.optimizer.init(jax.tree.map(jnp.copy, params)),
        out_shardings=replicated,
    )
    opt_state = make_opt_state(placed["params"])
    return state._replace(**placed, averaged=averaged, opt_state=opt_state)


def learning_rates(config: Config) -> np.ndarray:
    """Return the base learning rates of the default optimizer and of each group.

    The result is float32 `[1 + groups]`.
    """
    groups = [group.optimizer.lr for group in config.param_groups]
    return np.array([config.optimizer.lr, *groups], np.float32)


def random_state(setup: Setup, key: jax.Array, rates: jax.Array | np.ndarray) -> TrainState:
    """Return the initial state with random weights. Call this inside `jax.jit`.

    Whitening, Dirac filters and pretrained weights are not applied yet.
    """
    variables = models.init_variables(setup.spec.model, key, setup.dataset.image_shape[0])
    return steps.init_state(variables, setup.spec, rates)
