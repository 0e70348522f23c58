"""Test the networks against the paper's tables, and the layers against PyTorch's defaults."""

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

# Parameter counts from tables 3, 6, 9, 12, 14, 20 and 25 of the paper. The paper does not contain
# `net-inception` and `speednet`.
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
FAST_TO_INITIALIZE = ["basic", "resnet10-separable"]
# ResNet10 is marked slow, because ResNet18 has the same kinds of layers.
every_model = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "resnet10")) for n in PARAMETERS]
)

# XLA's optimizations are off, because compilation dominates the time of these tests.
quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def images(count: int) -> jax.Array:
    """Return random normalized images, float32 `[count, 32, 32, 3]`."""
    pixels = np.random.default_rng(0).standard_normal((count, *models.IMAGE_SHAPE))
    return jnp.asarray(pixels, jnp.float32)


def filled(shapes: Any, seed: int = 0) -> dict[str, Any]:
    """Return random model variables. Unlike the model's `init`, this needs no compilation."""
    random = np.random.default_rng(seed)

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
    """Return the output shape of each layer, without the batch axis, by the layer's dotted name."""
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
    # The paper's tables call the output of global pooling "fc1, 256 Neurons".
    **{"global_avg_pool": (256,), "dropout": (256,)},
    **NET_HEAD,
}


def attention(stage: int, side: int, channels: int) -> dict[str, tuple[int, ...]]:
    inner = {"query": channels // 8, "key": channels // 8, "value": channels}
    return {f"attention{stage}": (side, side, channels)} | {
        f"attention{stage}.{name}": (side, side, width) for name, width in inner.items()
    }


# Output shapes of the layers from tables 1, 4, 7 and 10 of the paper.
LAYERS = {
    "basic": {
        **{"conv1": (28, 28, 6), "pool1": (14, 14, 6)},
        **{"conv2": (10, 10, 16), "pool2": (5, 5, 16)},
        **NET_HEAD,
    },
    "net": {
        **{"conv1": (32, 32, 64), "pool1": (16, 16, 64)},
        **{"conv2": (16, 16, 128), "pool2": (8, 8, 128), "conv3": (8, 8, 256)},
        **NET_HEAD,
    },
    "net-bn-gap": BN_GAP,
    "net-attention": {
        **BN_GAP,
        **attention(1, 32, 64),
        **attention(2, 16, 128),
        **attention(3, 8, 256),
    },
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_has_the_output_size_of_the_tables(name: str) -> None:
    assert layer_shapes(name) == LAYERS[name]


@every_model
def test_parameter_counts_equal_the_papers(name: str) -> None:
    variables = models.variable_shapes(models.create(name))
    assert models.count_parameters(variables["params"]) == PARAMETERS[name]
    assert models.PAPER_PARAMETERS.get(name, PARAMETERS[name]) == PARAMETERS[name]
    assert list(models.MODELS) == list(PARAMETERS)


@every_model
def test_bfloat16_is_used_only_for_computation(name: str) -> None:
    model = models.create(name, dtype=jnp.bfloat16, num_classes=7)
    variables = models.variable_shapes(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}

    def run(variables: Any, x: jax.Array) -> Any:
        return model.apply(variables, x, capture_intermediates=True, mutable=["intermediates"])

    logits, captured = jax.eval_shape(run, variables, images(1).astype(jnp.bfloat16))
    assert logits.shape == (1, 7)
    assert logits.dtype == jnp.float32
    outputs = flatten_dict(captured["intermediates"])
    assert outputs.pop(("__call__",))[0].dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {jnp.dtype("bfloat16")}


@every_model
def test_only_dropout_in_training_needs_random_keys(name: str) -> None:
    model = models.create(name)
    variables = models.variable_shapes(model)

    def run(train: bool) -> Any:
        apply = partial(model.apply, train=train, mutable=["batch_stats"])
        with jax.numpy_dtype_promotion("strict"):
            return jax.eval_shape(apply, variables, images(2))

    run(train=False)
    if name in WITH_DROPOUT:
        with pytest.raises(InvalidRngError):
            run(train=True)
    else:
        run(train=True)


@pytest.mark.slow
def test_speednet_has_gradients_and_new_statistics_in_training() -> None:
    """test_torch_parity.py tests the train steps of the other networks."""
    model = models.create("speednet")
    variables = filled(models.variable_shapes(model))
    x, labels = images(2), jnp.array([3, 7])

    def loss(variables: Any) -> tuple[jax.Array, Any]:
        logits, updated = model.apply(variables, x, train=True, mutable=["batch_stats"])
        return -jax.nn.log_softmax(logits)[jnp.arange(2), labels].mean(), updated

    grads, updated = quick_jit(jax.grad(loss, has_aux=True))(variables)
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, variables)
    chex.assert_tree_all_finite((grads, updated))
    for path, grad in flatten_dict(grads["params"]).items():
        assert jnp.abs(grad).max() > 0, path
    before = flatten_dict(variables["batch_stats"])
    for path, after in flatten_dict(updated["batch_stats"]).items():
        assert (after != before[path]).any(), path


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in FAST_TO_INITIALIZE))
        for name in PARAMETERS
    ],
)
def test_initialization_equals_pytorchs(name: str) -> None:
    """Weights are uniform in ±1/√fan_in. For a grouped convolution, fan_in counts one group."""
    model = models.create(name)
    init = quick_jit(partial(models.init_variables, model))
    variables = init(jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(variables, models.variable_shapes(model))
    params = flatten_dict(variables["params"])
    first_values = set()
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
        first_values.add(values.ravel()[0])
    assert len(first_values) >= sum(path[-1] == "kernel" for path in params)
    for path, array in flatten_dict(variables.get("batch_stats", {})).items():
        np.testing.assert_array_equal(array, path[-1] == "var")
    chex.assert_trees_all_equal(init(jax.random.key(0)), variables)
    for path, array in flatten_dict(init(jax.random.key(1))["params"]).items():
        if path[-1] == "kernel":
            assert (array != params[path]).mean() > 0.99, path


@pytest.mark.parametrize(
    ("name", "kind"),
    [("net", "average"), *((name, "strided-conv") for name in list(LAYERS)[1:])],
)
def test_pooling_is_an_option(name: str, kind: str) -> None:
    shapes = layer_shapes(name, pooling=kind)
    convolutions = {"pool1.conv": (16, 16, 64), "pool2.conv": (8, 8, 128)}
    assert shapes == LAYERS[name] | (convolutions if kind == "strided-conv" else {})
    extra = 64 * 64 * 4 + 64 + 128 * 128 * 4 + 128 if kind == "strided-conv" else 0
    variables = models.variable_shapes(models.create(name, pooling=kind))
    assert models.count_parameters(variables["params"]) == PARAMETERS[name] + extra


@pytest.mark.usefixtures("each_platform")
def test_batch_norm_updates_running_statistics_as_pytorch_does() -> None:
    """Running statistics use the unbiased variance. The biased variance normalizes the batch."""
    x = np.random.default_rng(0).normal(3, 2, (4, 3, 3, 5)).astype(np.float32)
    layer = layers.BatchNorm()
    variables = {
        "params": {"scale": jnp.ones(5), "bias": jnp.zeros(5)},
        "batch_stats": {"mean": jnp.zeros(5), "var": jnp.ones(5)},
    }
    y, updated = layer.apply(variables, jnp.asarray(x), train=True, mutable=["batch_stats"])
    mean, biased, unbiased = x.mean((0, 1, 2)), x.var((0, 1, 2)), x.var((0, 1, 2), ddof=1)
    expected = {"mean": 0.1 * mean, "var": 0.9 + 0.1 * unbiased}
    chex.assert_trees_all_close(updated["batch_stats"], expected, rtol=1e-5)
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(biased + 1e-5), atol=1e-5)
    z = layer.apply(variables | updated, jnp.asarray(x), train=False)
    scaled = (x - expected["mean"]) / np.sqrt(expected["var"] + 1e-5)
    np.testing.assert_allclose(z, scaled, atol=1e-5)

    without_scale = layers.BatchNorm(use_scale=False)
    variables = {"params": {"bias": jnp.zeros(5)}, "batch_stats": updated["batch_stats"]}
    chex.assert_trees_all_equal(without_scale.apply(variables, jnp.asarray(x), train=False), z)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet81", {}, "did you mean resnet18?"),
        ("vgg", {}, "choose from basic, net"),
        (
            "basic",
            {"dropout": 0.5},
            "model basic has no option dropout: remove the setting model.dropout",
        ),
        ("resnet18", {"pooling": "max"}, "model resnet18 has no option pooling"),
        (
            "net-attention",
            {"widths": 3},
            "has no option widths: remove the setting model.arguments.widths",
        ),
        ("basic", {"name": "x"}, "has no option name"),
    ],
)
def test_unknown_models_and_options_are_refused(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as error:
        models.create(name, **options)
    assert message in str(error.value)
    assert models.create("basic", dropout=None) == models.create("basic")


def variables_of(classes: int, seed: int) -> dict[str, Any]:
    return filled(models.variable_shapes(models.create("basic", num_classes=classes)), seed)


def test_transfer_keeps_the_initial_last_layer_for_other_classes() -> None:
    initial, pretrained = variables_of(3, 0), variables_of(10, 1)
    params = models.transfer(initial, pretrained)["params"]
    chex.assert_trees_all_equal(params["fc3"], initial["params"]["fc3"])
    for layer in ("conv1", "conv2", "fc1", "fc2"):
        chex.assert_trees_all_equal(params[layer], pretrained["params"][layer])
    same_classes = models.transfer(variables_of(10, 0), pretrained)
    chex.assert_trees_all_equal(same_classes["params"], pretrained["params"])


def test_weights_of_another_network_are_refused() -> None:
    shapes = models.variable_shapes(models.create("basic"))
    other = models.variable_shapes(models.create("net"))
    with pytest.raises(UserError, match=r"from another network \(params/conv1/bias, .* differ"):
        models.transfer(shapes, other)
    with pytest.raises(UserError, match="a parameter that the network lacks: params/conv3/bias"):
        models.match_variables(other, shapes, "the file")
    with pytest.raises(UserError, match="lack params/conv3/bias"):
        models.match_variables(shapes, other, "the file")
    more = models.variable_shapes(models.create("basic", num_classes=3))
    with pytest.raises(UserError, match=r"fc3/bias is float32 \[3\], .* float32 \[10"):
        models.match_variables(more, shapes, "the file")
    assert models.match_variables(shapes, shapes, "the file") == shapes


def test_speednet_uses_the_tanh_form_of_gelu_unless_the_exact_form_is_chosen() -> None:
    for exact in (False, True):
        model = models.create("speednet", exact_gelu=exact)
        program = str(jax.make_jaxpr(model.apply)(models.variable_shapes(model), images(1)))
        assert ("erf" in program, "tanh" in program) == (exact, not exact)


@pytest.mark.parametrize("side", [20, 27])
def test_speednet_accepts_images_of_other_sizes(side: int) -> None:
    model = models.create("speednet")
    assert models.accepts_size(model, side)
    variables = models.variable_shapes(model)
    for count in (1, 5):
        x = jax.ShapeDtypeStruct((count, side, side, 3), jnp.float32)
        assert jax.eval_shape(model.apply, variables, x).shape == (count, 10)


def test_relu_before_the_sum_as_in_table_23() -> None:
    """The first block of the network, computed with `jax.lax` only."""
    name, block = "resnet10-separable", "stage1_block1"
    model = models.create(name, relu_before_sum=True, dropout=0.0)
    variables = filled(models.variable_shapes(model))
    _, captured = model.apply(
        variables, images(2), capture_intermediates=True, mutable=["intermediates"]
    )
    layers = captured["intermediates"]
    x = jax.nn.relu(layers["bn1"]["__call__"][0])
    params, statistics = variables["params"][block], variables["batch_stats"][block]

    def separable(y: jax.Array, number: int) -> jax.Array:
        kernels, bn = params[f"conv{number}"], params[f"bn{number}"]
        for kind, groups, padding in (("depthwise", 64, 1), ("pointwise", 1, 0)):
            y = jax.lax.conv_general_dilated(
                *(y, kernels[kind]["kernel"], (1, 1), [(padding, padding)] * 2),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=groups,
            )
        running = statistics[f"bn{number}"]
        y = (y - running["mean"]) / jnp.sqrt(running["var"] + 1e-5)
        return jax.nn.relu(y * bn["scale"] + bn["bias"])

    expected = x + separable(separable(x, 1), 2)
    assert 0.2 < float((expected == x).mean()) < 0.9  # The second ReLU has negative inputs.
    np.testing.assert_allclose(layers[block]["__call__"][0], expected, rtol=1e-4, atol=1e-5)
    names = layer_shapes(name, relu_before_sum=True).keys() - layer_shapes(name).keys()
    assert names == {f"stage{stage}_block1.relu2" for stage in (1, 2, 3, 4)}
