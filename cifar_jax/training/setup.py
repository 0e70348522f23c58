"""Build the setup of a run from its config, such as the data, the network and the optimizer."""

import math
from collections.abc import Callable, Mapping, Sequence
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
from cifar_jax.errors import UserError, counted, one_line
from cifar_jax.models import initialization
from cifar_jax.training import averaging, batches, losses, optimizers, plan, rng, schedules
from cifar_jax.training import step as steps
from cifar_jax.training.evaluation import scale_count
from cifar_jax.training.plan import Plan
from cifar_jax.training.step import StepSpec, TrainState

WHITENING_IMAGES = 5000
"""Number of 32×32 training images from which the whitening filters are computed, as in airbench."""


class Setup(NamedTuple):
    """All parts of a run, such as data and network. They do not change during training."""

    config: Config
    custom: CustomParts
    dataset: Dataset
    train: Split
    validation: Split
    """Images and labels held out for validation. Empty if none are held out."""
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
    # First check everything that needs no data, because loading may start a download.
    _check_custom(config, custom)
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
            raise UserError(
                f"batch_size is {variant.batch_size:,}, but {config.data.dataset} has only "
                f"{counted(len(train.labels), 'training image')} after the validation split: lower "
                "batch_size"
            )
    if config.averaging and config.averaging.every > run_plan.steps:
        raise UserError(
            f"averaging.every is {config.averaging.every:,}, but the run has only "
            f"{counted(run_plan.steps, 'step')}, so the average would never be updated: lower "
            "averaging.every"
        )
    model = make_model(config, custom, num_classes=len(dataset.classes))
    return Setup(
        config=config,
        custom=custom,
        dataset=dataset,
        train=train,
        validation=validation,
        plan=run_plan,
        spec=_make_spec(config, custom, model),
        mesh=mesh,
    )


def load_dataset(config: Config) -> Dataset:
    """Load the data set that the config names, in the size that the config names."""
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


def _check_custom(config: Config, custom: CustomParts) -> None:
    """Raise if a custom part is missing, or if an argument of `MODEL` has a reserved name."""
    for name in config.model.arguments:
        if name in ("num_classes", "dtype", "dropout", "pooling"):
            raise UserError(f"model.arguments.{name} is set by the package: remove it")
    rules = [config.optimizer, *(group.optimizer for group in config.param_groups)]
    missing = []
    if any(rule.name == "custom" for rule in rules) and custom.optimizer is None:
        missing.append(("optimizer.name", "OPTIMIZER"))
    if config.schedule.name == "custom" and custom.schedule is None:
        missing.append(("schedule.name", "SCHEDULE"))
    for setting, name in missing:
        raise UserError(
            f"{setting}=custom needs {name} in your own experiment file: define it there, or "
            f"choose another {setting}"
        )
    for rule in rules:
        if rule.name == "custom" and custom.optimizer:
            made = _call_custom(custom, "OPTIMIZER", partial(custom.optimizer, **rule.arguments))
            if not (hasattr(made, "init") and hasattr(made, "update")):
                raise UserError(
                    f"{_custom_file(custom)}: OPTIMIZER returns an object of type "
                    f"{type(made).__name__}: it must return an optax.GradientTransformation"
                )
    if config.schedule.name == "custom":
        factor = _call_custom(
            custom,
            "SCHEDULE",
            lambda: jax.eval_shape(
                schedules.make(config.schedule, custom.schedule),
                schedules.StepInfo(*(jax.ShapeDtypeStruct((), jnp.int32),) * 3),
            ),
        )
        if factor.shape:
            raise UserError(
                f"{_custom_file(custom)}: SCHEDULE returns an array of shape "
                f"{list(factor.shape)}: it must return one number"
            )
    if custom.augmentation:
        shape = models.image_shape(config.data.image_size)
        images = jax.ShapeDtypeStruct((config.batch_size, *shape), jnp.uint8)
        augment = partial(custom.augmentation, **config.data.arguments)
        changed = _call_custom(
            custom,
            "AUGMENTATION",
            lambda: jax.eval_shape(augment, rng.make_streams(0).augment, images),
        )
        if getattr(changed, "shape", None) != images.shape:
            returned = getattr(changed, "shape", None)
            what = f"the shape {list(returned)}" if returned else f"{type(changed).__name__}"
            raise UserError(
                f"{_custom_file(custom)}: AUGMENTATION returns {what} for images of shape "
                f"{list(images.shape)}: it must keep the shape"
            )
        if changed.dtype != images.dtype:
            raise UserError(
                f"{_custom_file(custom)}: AUGMENTATION returns {changed.dtype} for uint8 images: "
                "it must return uint8 pixels between 0 and 255"
            )


def _call_custom(custom: CustomParts, name: str, function: Callable[[], Any]) -> Any:
    """Return `function()`, with any exception of the experiment file as a UserError."""
    try:
        return function()
    except Exception as error:  # The code of the user may raise anything.
        raise UserError(
            f"{_custom_file(custom)}: {name} fails when it is called: "
            f"{one_line(error, custom.file)}"
        ) from error


def _custom_file(custom: CustomParts) -> str:
    return str(custom.file or "the experiment file")


def _check_network(config: Config, model: nn.Module) -> None:
    """Raise if the parameter groups, whitening or the image sizes do not fit the network."""
    plan.validate_sizes(config, model)
    params = models.variable_shapes(model, config.data.image_size)["params"]
    optimizers.validate_groups(params, config.optimizer, config.param_groups)
    channels = models.IMAGE_SHAPE[2]
    if config.init.whitening:
        layer, name = initialization.first_convolution({"params": params})
        inputs = params[layer][name].shape[2]
        if inputs != channels:
            raise UserError(
                f"init.whitening needs a first convolution with {channels} input channels, and "
                f"{layer} has {inputs}: turn init.whitening off, or choose another model"
            )


def _make_spec(config: Config, custom: CustomParts, model: nn.Module) -> StepSpec:
    frozen = frozenset()
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
            config.optimizer, config.param_groups, custom.optimizer
        ),
        schedule=schedules.make(config.schedule, custom.schedule),
        loss=partial(losses.cross_entropy, smoothing=config.loss.label_smoothing),
        averaging=average,
        frozen=frozen,
    )


def initial_state(
    setup: Setup, seed: int, variables: Mapping[str, Any] | None = None
) -> TrainState:
    """Return the state before the first step, on the devices.

    Args:
      setup: the setup of the run.
      seed: seed of the initial weights.
      variables: pretrained variables to start from. None: random weights. If the number of classes
        differs, the last layer is reinitialized.

    Raises:
      UserError: `variables` belong to another network.
    """
    replicated = devices.replicated(setup.mesh)
    settings = setup.config.init
    make_state = jax.jit(partial(random_state, setup), out_shardings=replicated)
    state = make_state(rng.make_streams(seed).init, learning_rates(setup.config))
    if variables is not None:
        changed = models.transfer(state.variables, variables)
    elif settings.dirac or settings.whitening:
        changed = jax.device_get(state.variables)
        if settings.dirac:
            changed = initialization.dirac(changed)
        if settings.whitening:
            count = scale_count(WHITENING_IMAGES, setup.dataset.image_shape[0])
            images = batches.normalize(setup.train.images[:count], setup.dataset)
            changed = initialization.whitened(changed, images)
        # Rounding may differ between processes, so all of them use the values of process 0.
        changed = distributed.broadcast_arrays(changed)
    else:
        return state
    placed = devices.put(changed, replicated)
    averaged = averaging.init(placed) if setup.spec.averaging else {}
    return state._replace(**placed, averaged=averaged)


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
