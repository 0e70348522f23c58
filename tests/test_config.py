"""Test the settings of a run, and that the experiments have the paper's settings."""

import json

import pytest

from cifar_jax import catalog
from cifar_jax.config import (
    Config,
    Model,
    Optimizer,
    ParamGroup,
    describe,
    differences,
    flatten,
    from_flat,
    identity,
    override,
    runtime_settings,
)
from cifar_jax.errors import UserError

RULE = Optimizer(name="custom", arguments={"b1": 0.9})
CONFIG = Config(
    model=Model(name="mine", arguments={"width": 4}),
    epochs=1,
    batch_size=8,
    optimizer=RULE,
    param_groups=(ParamGroup(parameters="*/bias", optimizer=RULE),),
)

# From tables 1–25 and section 3.5 of the paper. The fields are: table numbers, model, epochs,
# learning rate, batch size, optimizer, weight decay, schedule, whether images are augmented, test
# accuracy in percent, number of parameters.
SGD, ADAM = ("sgd", 0, "constant"), ("adam", 0, "constant")
PAPER = {
    "basic": ("1–3", "basic", 20, 1e-3, 8, *SGD, False, 62.06, 62_006),
    "net": ("4–6", "net", 100, 1e-3, 8, *SGD, False, 77.91, 2_348_030),
    "net-bn-gap": ("7–9", "net-bn-gap", 50, 1e-3, 8, *SGD, False, 82.14, 413_566),
    "net-attention": (
        *("10–12", "net-attention", 50, 1e-3, 8, "sgd", 0, "plateau", False, 81.77, 521_646),
    ),
    "resnet18-sgd": (
        *("13–14", "resnet18", 135, 1e-3, 8, "sgd", 5e-4, "constant", True, 90.92, 11_173_962),
    ),
    "resnet18-adam": ("15–16", "resnet18", 135, 1e-3, 8, *ADAM, True, 89.66, 11_173_962),
    "resnet18-adam-lr1e-4": ("17–18", "resnet18", 100, 1e-4, 128, *ADAM, True, 91.27, 11_173_962),
    "resnet10": ("19–20", "resnet10", 135, 1e-4, 128, *ADAM, True, 90.03, 4_903_242),
    "resnet10-plateau": (
        *("21–22", "resnet10", 135, 1e-4, 128, "adam", 0, "plateau", True, 92.09, 4_903_242),
    ),
    "resnet10-separable": (
        *("23–25", "resnet10-separable", 135, 1e-4, 128, *ADAM, True, 90.68, 722_186),
    ),
}


@pytest.mark.parametrize("name", PAPER)
def test_an_experiment_has_the_papers_settings(name: str) -> None:
    c = catalog.load(name).config
    assert c.paper is not None
    augmented = c.data.flip
    assert PAPER[name] == (
        *(c.paper.tables, c.model.name, c.epochs, c.optimizer.lr, c.batch_size, c.optimizer.name),
        *(c.optimizer.weight_decay, c.schedule.name, augmented),
        *(c.paper.test_accuracy, c.paper.parameters),
    )
    assert c.data.crop_padding == (4 if augmented else 0)
    assert c.data.dataset == "cifar10"
    assert c.data.validation == 2000
    assert c.data.train_images is None
    assert c.train.precision == "float32"
    assert (c.schedule.patience, c.schedule.factor, c.schedule.threshold) == (5, 0.5, 1e-4)
    if c.optimizer.name == "sgd":
        assert c.optimizer.momentum == 0.9
    else:
        assert (c.optimizer.beta1, c.optimizer.beta2, c.optimizer.eps) == (0.9, 0.999, 1e-8)
    if name not in ("basic", "net"):
        assert c.model.dropout == 0.5


@pytest.mark.parametrize("name", catalog.names())
def test_settings_survive_json_and_override(name: str) -> None:
    config = catalog.load(name).config
    flat = flatten(config)
    restored = from_flat(json.loads(json.dumps(flat)))
    assert restored.model_copy(update={"paper": config.paper, "varies": config.varies}) == config
    changes = [f"{n}={json.dumps(v) if isinstance(v, list) else v}" for n, v in flat.items()]
    basic = catalog.load("basic").config
    # `--set` can only change arguments that the experiment file contains.
    model = basic.model.model_copy(update={"arguments": config.model.arguments})
    assert flatten(override(basic.model_copy(update={"model": model}), changes)) == flat


def test_arguments_of_custom_parts_are_settings() -> None:
    assert from_flat(json.loads(json.dumps(flatten(CONFIG)))) == CONFIG
    changed = override(CONFIG, ["optimizer.arguments.b1=1", "model.arguments.width=8"])
    assert differences(identity(CONFIG), identity(changed)) == {
        "model.arguments.width": (4, 8),
        "optimizer.arguments.b1": (0.9, 1.0),
    }


@pytest.mark.parametrize("value", [True, False, "alternating"])
def test_override_reads_every_type_of_a_union(value: bool | str) -> None:
    assert override(CONFIG, [f"data.flip = {value}"]).data.flip is value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("epoch=2", "did you mean epochs?"),
        ("lr=0.1", "did you mean optimizer.lr?"),
        ("optimiser.lr=0.1", "did you mean optimizer.lr?"),
        ("paper.test_accuracy=99", "no setting 'paper.test_accuracy'"),
        ("epochs=2.5", "expected a whole number"),
        ("epochs=true", "expected a whole number"),
        ("optimizer.lr=true", "expected a number > 0"),
        ("optimizer.name=Adam", "expected one of sgd, adam, adamw"),
        ("data.flip=perhaps", "expected true or false or alternating"),
        ("model.dropout=1", "model.dropout is 1, but it must be a number >= 0 and < 1, or none"),
    ],
)
def test_an_invalid_override_is_refused(change: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        override(CONFIG, [change])
    assert message in str(error.value)
    assert change.partition("=")[0] in str(error.value)


def test_runtime_settings_are_not_part_of_the_identity() -> None:
    names = ["steps_per_call", "eval_batch_size", "log_every", "keep_checkpoints", "devices"]
    values: dict[str, float] = {"data.skip_bad_images": True}
    values |= {f"train.{name}": 3 for name in [*names, "checkpoint_minutes"]}
    changed = override(CONFIG, [f"{name}={value}" for name, value in values.items()])
    assert runtime_settings(changed) == values
    assert identity(changed) == identity(CONFIG)
    assert "train.precision" in identity(CONFIG)


def test_every_setting_is_described() -> None:
    rows = {row["name"]: row for row in describe()}
    for name, row in rows.items():
        assert row["description"], f"{name} has no docstring"
    plain = Config(model=Model(name="net"), epochs=1, batch_size=8, optimizer=Optimizer())
    others = [n for n in rows if not n.startswith("averaging.") and not n.endswith(".arguments")]
    assert others == list(flatten(plain))
    assert rows["optimizer.lr"]["default"] == 1e-3
    assert rows["optimizer.arguments"]["default"] == {}
    assert "default" not in rows["epochs"]
