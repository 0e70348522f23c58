"""The networks against the paper's tables, and the defaults of PyTorch that they rest on."""

import math
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import InvalidRngError
from flax.traverse_util import flatten_dict, unflatten_dict

from cifar_jax import models
from cifar_jax.errors import UserError
from cifar_jax.models import layers

# Tables 3, 6, 9, 12, 14, 20 and 25; the paper has none for `net-inception` and `speednet`.
PARAMETERS = {
    "basic": 62_006,
    "net": 2_348_030,
    "net-bn-gap": 413_566,
    "net-attention": 521_646,
    "net-inception": 259_902,
    "resnet18": 11_173_962,
    "resnet10": 4_903_242,
    "resnet10-separable": 722_186,
    "speednet": 1_971_640,
}
WITH_DROPOUT = [name for name in PARAMETERS if name not in ("basic", "net", "speednet")]
NETS = ["net", "net-bn-gap", "net-attention", "net-inception"]
every_model = pytest.mark.parametrize("name", PARAMETERS)

# Compiling is most of what these tests cost, and how fast the program runs then does not matter.
quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def images(count: int) -> jax.Array:
    """What normalized images look like."""
    pixels = np.random.default_rng(0).standard_normal((count, *models.IMAGE_SHAPE))
    return jnp.asarray(pixels, jnp.float32)


def filled(shapes: Any) -> dict[str, Any]:
    """Variables of plausible size without the cost of compiling an initialization."""
    random = np.random.default_rng(0)

    def fill(path: tuple[str, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        match path[-1]:
            case "kernel":
                bound = 1 / math.sqrt(math.prod(leaf.shape[:-1]))
                array = random.uniform(-bound, bound, leaf.shape)
            case "scale" | "var":
                array = np.ones(leaf.shape)
            case _:
                array = np.zeros(leaf.shape)
        return jnp.asarray(array, leaf.dtype)

    return unflatten_dict({path: fill(path, leaf) for path, leaf in flatten_dict(shapes).items()})


def layer_shapes(name: str, **options: Any) -> dict[str, tuple[int, ...]]:
    """Output of every layer for one image, by dotted name, without the axis of the batch."""
    model = models.create(name, **options)

    def run(variables: Any, image: jax.Array) -> Any:
        return model.apply(variables, image, capture_intermediates=True, mutable=["intermediates"])[
            1
        ]["intermediates"]

    captured = jax.eval_shape(run, models.variable_shapes(model), images(1))
    return {
        ".".join(path[:-1]): outputs[-1].shape[1:]
        for path, outputs in flatten_dict(captured).items()
        if path[-1] == "__call__"
    }


NET_HEAD = {"fc1": (120,), "fc2": (84,), "fc3": (10,), "": (10,)}
BN_GAP = {
    **{"conv1": (32, 32, 64), "bn1": (32, 32, 64), "pool1": (16, 16, 64)},
    **{"conv2": (16, 16, 128), "bn2": (16, 16, 128), "pool2": (8, 8, 128)},
    **{"conv3": (8, 8, 256), "bn3": (8, 8, 256)},
    # "fc1, 256 Neurons" of the tables is the pooled vector.
    **{"global_avg_pool": (256,), "dropout": (256,)},
    **NET_HEAD,
}


def attention(stage: int, side: int, channels: int) -> dict[str, tuple[int, ...]]:
    inner = {"query": channels // 8, "key": channels // 8, "value": channels}
    return {f"attention{stage}": (side, side, channels)} | {
        f"attention{stage}.{name}": (side, side, width) for name, width in inner.items()
    }


def inception(name: str, side: int, channels: int) -> dict[str, tuple[int, ...]]:
    branches = ("1x1", "3x3_reduce", "3x3", "5x5_reduce", "5x5", "_pool")
    return {name: (side, side, channels)} | {
        f"{name}.branch{branch}_{layer}": (side, side, channels // 4)
        for branch in branches
        for layer in ("conv", "bn")
    }


def resnet(blocks: int, separable: bool) -> dict[str, tuple[int, ...]]:
    """Section 3.5 and Table 23: stages of 64, 128, 256 and 512 channels, 32 to 4 pixels wide."""
    shapes: dict[str, tuple[int, ...]] = {"conv1": (32, 32, 64), "bn1": (32, 32, 64)}
    stages = [(32, 64), (16, 128), (8, 256), (4, 512)]
    for stage, (side, channels) in enumerate(stages, start=1):
        for number in range(1, blocks + 1):
            block, changes = f"stage{stage}_block{number}", stage > 1 and number == 1
            inputs = channels // 2 if changes else channels
            names = ["", ".conv1", ".bn1", ".conv2", ".bn2"]
            names += [".shortcut_conv", ".shortcut_bn"] * changes
            shapes |= {block + name: (side, side, channels) for name in names}
            if separable:
                for conv, depth in (("conv1", inputs), ("conv2", channels)):
                    shapes[f"{block}.{conv}.depthwise"] = (side, side, depth)
                    shapes[f"{block}.{conv}.pointwise"] = (side, side, channels)
    return shapes | {"avg_pool": (512,), "dropout": (512,), "fc": (10,), "": (10,)}


def speednet(widths: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Two convolutions a stage, with the pooling between them."""
    shapes: dict[str, tuple[int, ...]] = {"conv1": (32, 32, 24)}
    for stage, width in enumerate(widths, start=1):
        before, after = 64 >> stage, 32 >> stage
        sides = {"conv1": before, "bn1": before, "pool": after, "conv2": after, "bn2": after}
        shapes |= {f"stage{stage}_{layer}": (side, side, width) for layer, side in sides.items()}
    return shapes | {"fc": (10,), "": (10,)}


LAYERS = {
    "basic": {  # Table 1
        **{"conv1": (28, 28, 6), "pool1": (14, 14, 6)},
        **{"conv2": (10, 10, 16), "pool2": (5, 5, 16)},
        **NET_HEAD,
    },
    "net": {  # Table 4
        **{"conv1": (32, 32, 64), "pool1": (16, 16, 64)},
        **{"conv2": (16, 16, 128), "pool2": (8, 8, 128), "conv3": (8, 8, 256)},
        **NET_HEAD,
    },
    "net-bn-gap": BN_GAP,  # Table 7
    "net-attention": {  # Table 10
        **BN_GAP,
        **attention(1, 32, 64),
        **attention(2, 16, 128),
        **attention(3, 8, 256),
    },
    "net-inception": {
        **{"conv1": (32, 32, 64), "bn1": (32, 32, 64), "pool1": (16, 16, 64)},
        **inception("inception2", 16, 128),
        **{"pool2": (8, 8, 128)},
        **inception("inception3", 8, 256),
        **{"global_avg_pool": (256,), "dropout": (256,)},
        **NET_HEAD,
    },
    "resnet18": resnet(2, separable=False),
    "resnet10": resnet(1, separable=False),
    "resnet10-separable": resnet(1, separable=True),  # Table 23
    "speednet": speednet((64, 256, 256)),
}


def test_the_registry_is_what_is_tested_here() -> None:
    assert list(models.MODELS) == list(PARAMETERS)
    assert {name: PARAMETERS[name] for name in models.PAPER_PARAMETERS} == models.PAPER_PARAMETERS


@every_model
def test_parameters_are_counted_as_in_the_paper(name: str) -> None:
    variables = models.variable_shapes(models.create(name))
    assert models.count_parameters(variables["params"]) == PARAMETERS[name]


@every_model
def test_every_layer_has_the_tables_output_size(name: str) -> None:
    assert layer_shapes(name) == LAYERS[name]


@every_model
def test_the_number_of_classes_is_an_option(name: str) -> None:
    assert layer_shapes(name, num_classes=7)[""] == (7,)


@every_model
def test_bfloat16_is_the_compute_type_only(name: str) -> None:
    model = models.create(name, dtype=jnp.bfloat16)
    variables = models.variable_shapes(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}

    def run(variables: Any, x: jax.Array) -> Any:
        return model.apply(variables, x, capture_intermediates=True, mutable=["intermediates"])

    logits, captured = jax.eval_shape(run, variables, images(1).astype(jnp.bfloat16))
    assert logits.dtype == jnp.float32
    outputs = flatten_dict(captured["intermediates"])
    assert outputs.pop(("__call__",))[0].dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {jnp.dtype("bfloat16")}


@every_model
def test_only_training_draws_random_numbers(name: str) -> None:
    """Without a key for dropout, evaluation runs, and training does where there is no dropout."""
    model = models.create(name)
    variables = models.variable_shapes(model)

    def run(train: bool) -> Any:
        apply = partial(model.apply, train=train, mutable=["batch_stats"])
        return jax.eval_shape(apply, variables, images(2))

    run(train=False)
    if name in WITH_DROPOUT:
        with pytest.raises(InvalidRngError):
            run(train=True)
    else:
        run(train=True)


@every_model
def test_gradients_are_finite_and_statistics_move_in_training_only(name: str) -> None:
    """One compilation a model, under strict promotion: no type changes by accident."""
    model = models.create(name)
    variables = filled(models.variable_shapes(model))
    x, labels = images(2), jnp.array([3, 7])

    def loss(params: Any, stats: Any) -> tuple[jax.Array, Any]:
        logits, updated = model.apply(
            {"params": params, "batch_stats": stats},
            x,
            train=True,
            rngs={"dropout": jax.random.key(0)},
            mutable=["batch_stats"],
        )
        return -jax.nn.log_softmax(logits)[jnp.arange(2), labels].mean(), updated

    def both(params: Any, stats: Any) -> tuple[Any, Any, Any]:
        grads, trained = jax.grad(loss, has_aux=True)(params, stats)
        _, evaluated = model.apply(
            {"params": params, "batch_stats": stats}, x, train=False, mutable=["batch_stats"]
        )
        return grads, trained.get("batch_stats", {}), evaluated.get("batch_stats", {})

    params, stats = variables["params"], variables.get("batch_stats", {})
    with jax.numpy_dtype_promotion("strict"):
        grads, trained, evaluated = quick_jit(both)(params, stats)
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, params)
    chex.assert_tree_all_finite(grads)
    for path, grad in flatten_dict(grads).items():
        if path[-1] == "kernel":  # biases before BatchNorm have none, nor has an attention's key
            assert jnp.abs(grad).max() > 0, path
    chex.assert_tree_all_finite(trained)
    chex.assert_trees_all_equal(evaluated, stats)
    assert bool(stats) == (name not in ("basic", "net"))
    for path, before in flatten_dict(stats).items():
        assert (flatten_dict(trained)[path] != before).any(), path


@pytest.mark.usefixtures("each_platform")
def test_running_statistics_are_pytorchs() -> None:
    """A tenth of the batch's mean and unbiased variance; the batch itself by the biased one."""
    x = np.random.default_rng(0).normal(3, 2, (4, 3, 3, 5)).astype(np.float32)
    layer = layers.BatchNorm()
    variables = layer.init(jax.random.key(0), jnp.asarray(x), train=True)
    chex.assert_trees_all_equal(
        variables["batch_stats"], {"mean": jnp.zeros(5), "var": jnp.ones(5)}
    )
    y, updated = layer.apply(variables, jnp.asarray(x), train=True, mutable=["batch_stats"])
    mean, biased, unbiased = x.mean((0, 1, 2)), x.var((0, 1, 2)), x.var((0, 1, 2), ddof=1)
    expected = {"mean": 0.1 * mean, "var": 0.9 + 0.1 * unbiased}
    chex.assert_trees_all_close(updated["batch_stats"], expected, rtol=1e-5)
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(biased + 1e-5), atol=1e-5)
    z = layer.apply(variables | updated, jnp.asarray(x), train=False)
    scaled = (x - expected["mean"]) / np.sqrt(expected["var"] + 1e-5)
    np.testing.assert_allclose(z, scaled, atol=1e-5)


@every_model
def test_kernels_and_biases_start_as_pytorchs_do(name: str) -> None:
    """U(±1/√fan_in), where PyTorch's fan-in is that of one group; BatchNorm at one and zero."""
    model = models.create(name)
    init = quick_jit(partial(models.init_variables, model))
    variables = init(jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(variables, models.variable_shapes(model))
    params = flatten_dict(variables["params"])
    drawn = set()
    for path, array in params.items():
        values = np.asarray(array)
        if (*path[:-1], "kernel") not in params:
            np.testing.assert_array_equal(values, path[-1] == "scale")
            continue
        kernel = params[(*path[:-1], "kernel")]
        bound = 1 / math.sqrt(math.prod(kernel.shape[:-1]))
        assert np.abs(values).max() <= bound * 1.000001, path
        assert values.size > 10_000 or len(np.unique(values)) > 0.9 * values.size, path
        if values.size >= 400:
            assert np.abs(values).max() > 0.97 * bound, path
            np.testing.assert_allclose(values.std(), bound / math.sqrt(3), rtol=0.1)
            np.testing.assert_allclose(values.mean(), 0, atol=4 * bound / math.sqrt(values.size))
        drawn.add(values.ravel()[0])
    convolutions_and_dense = sum(path[-1] == "kernel" for path in params)
    assert len(drawn) >= convolutions_and_dense  # no two layers drew the same
    for path, array in flatten_dict(variables.get("batch_stats", {})).items():
        np.testing.assert_array_equal(array, path[-1] == "var")
    chex.assert_trees_all_equal(init(jax.random.key(0)), variables)
    kernel = next(path for path in params if path[-1] == "kernel")
    other = flatten_dict(init(jax.random.key(1))["params"])
    assert (other[kernel] != params[kernel]).mean() > 0.99


@pytest.mark.parametrize("kind", ["max", "average", "strided-conv"])
@pytest.mark.parametrize("name", NETS)
def test_pooling_is_an_option_of_the_nets(name: str, kind: str) -> None:
    shapes = layer_shapes(name, pooling=kind)
    convolutions = {"pool1.conv": (16, 16, 64), "pool2.conv": (8, 8, 128)}
    assert shapes == LAYERS[name] | (convolutions if kind == "strided-conv" else {})
    extra = 64 * 64 * 4 + 64 + 128 * 128 * 4 + 128 if kind == "strided-conv" else 0
    variables = models.variable_shapes(models.create(name, pooling=kind))
    assert models.count_parameters(variables["params"]) == PARAMETERS[name] + extra


@pytest.mark.usefixtures("each_platform")
@pytest.mark.parametrize(("kind", "reduce"), [("max", np.max), ("average", np.mean)])
def test_pooling_takes_what_it_says_of_two_by_two_pixels(kind: Any, reduce: Any) -> None:
    x = np.random.default_rng(0).standard_normal((2, 6, 4, 3)).astype(np.float32)
    pooled = layers.Pool(kind).apply({}, jnp.asarray(x))
    expected = reduce(x.reshape(2, 3, 2, 2, 2, 3), axis=(2, 4))
    np.testing.assert_allclose(pooled, expected, atol=1e-6)


@pytest.mark.usefixtures("each_platform")
def test_normalizing_without_a_scale_is_normalizing_by_one() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(3, 2, (4, 3, 3, 5)), jnp.float32)
    with_it, without = layers.BatchNorm(), layers.BatchNorm(use_scale=False)
    variables = with_it.init(jax.random.key(0), x, train=True)
    del (fewer := dict(variables["params"]))["scale"]
    for train in (True, False):
        expected, _ = with_it.apply(variables, x, train=train, mutable=["batch_stats"])
        bare = {**variables, "params": fewer}
        y, _ = without.apply(bare, x, train=train, mutable=["batch_stats"])
        np.testing.assert_allclose(y, expected, rtol=1e-6)


def test_dropout_scales_what_it_keeps_and_rests_in_evaluation() -> None:
    x, key = jnp.ones((100, 50)), jax.random.key(0)
    layer = layers.Dropout(0.4)
    kept = np.asarray(layer.apply({}, x, train=True, rngs={"dropout": key}))
    np.testing.assert_allclose(np.unique(kept), [0, 1 / 0.6], rtol=1e-6)
    assert 0.55 < (kept > 0).mean() < 0.65
    np.testing.assert_array_equal(layer.apply({}, x, train=False), x)


@pytest.mark.usefixtures("each_platform")
def test_attention_mixes_positions_by_weights_that_sum_to_one() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 16)).astype(np.float32)
    layer = layers.SelfAttention()
    variables = filled(jax.eval_shape(layer.init, jax.random.key(0), x))
    y, state = layer.apply(variables, jnp.asarray(x), mutable=["intermediates"])
    (weights,) = state["intermediates"]["weights"]
    chex.assert_shape(weights, (2, 12, 12))
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)

    def project(name: str) -> np.ndarray:
        return x.reshape(2, 12, 16) @ np.asarray(variables["params"][name]["kernel"])[0, 0]

    query, key, value = project("query"), project("key"), project("value")
    scores = np.exp(query @ key.transpose(0, 2, 1))
    mixed = scores / scores.sum(-1, keepdims=True) @ value
    np.testing.assert_allclose(weights, scores / scores.sum(-1, keepdims=True), rtol=1e-4)
    np.testing.assert_allclose(y, x + mixed.reshape(x.shape), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet81", {}, "did you mean resnet18?"),
        ("vgg", {}, "there are basic, net"),
        ("basic", {"dropout": 0.5}, "model basic has no dropout"),
        ("net", {"dropout": 0.5}, "model net has no dropout"),
        ("resnet18", {"pooling": "max"}, "model resnet18 has no pooling"),
        ("net-attention", {"widths": 3}, "model net-attention has no widths"),
    ],
)
def test_unknown_models_and_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        models.create(name, **options)
    assert message in str(error.value)


@every_model
def test_options_that_are_none_keep_the_default(name: str) -> None:
    assert models.create(name, dropout=None, pooling=None) == models.create(name)


def variables_of(classes: int, seed: int) -> dict:
    return models.init_variables(models.create("basic", num_classes=classes), jax.random.key(seed))


def test_weights_are_taken_over_whole_where_the_classes_are_as_many() -> None:
    given = variables_of(10, 1)
    chex.assert_trees_all_equal(
        models.transfer(variables_of(10, 0), given)["params"], given["params"]
    )


def test_the_last_layer_begins_anew_where_the_classes_are_others() -> None:
    fresh, given = variables_of(3, 0), variables_of(10, 1)
    taken = models.transfer(fresh, given)["params"]
    chex.assert_trees_all_equal(taken["fc3"], fresh["params"]["fc3"])
    for layer in ("conv1", "conv2", "fc1", "fc2"):
        chex.assert_trees_all_equal(taken[layer], given["params"][layer])


def test_weights_of_another_network_are_refused() -> None:
    other = models.init_variables(models.create("net"), jax.random.key(0))
    with pytest.raises(UserError, match="of another network: they differ in params/conv1/bias"):
        models.transfer(variables_of(10, 0), other)


@pytest.mark.parametrize("side", [20, 24, 27, 32])
def test_speednet_takes_images_of_other_sizes(side: int) -> None:
    model = models.create("speednet")
    assert models.takes(model, side)
    variables = models.variable_shapes(model)
    for count in (1, 5):
        x = jax.ShapeDtypeStruct((count, side, side, 3), jnp.float32)
        assert jax.eval_shape(model.apply, variables, x).shape == (count, 10)
