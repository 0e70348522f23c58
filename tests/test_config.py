"""Settings: what `--set` accepts and refuses, and that the experiments say what the paper says."""

import json
from pathlib import Path

import pytest

from cifar_jax import catalog
from cifar_jax.config import (
    Config,
    Data,
    Model,
    Optimizer,
    Schedule,
    Train,
    describe,
    differences,
    execution,
    flatten,
    from_flat,
    identity,
    override,
)
from cifar_jax.errors import UserError

# Of runs that commit 97d1dfc made.
STORED = sorted((Path(__file__).parent / "fixtures/configs_97d1dfc").glob("*.json"))
EXECUTION = {
    **{"train.steps_per_call": 3, "train.eval_batch_size": 3, "train.log_every": 3},
    **{"train.keep_checkpoints": 3, "train.checkpoint_minutes": 3.0, "train.on_nan": "restore"},
    "train.devices": 3,
}
CONFIG = Config(model=Model(name="net"), epochs=1, batch_size=8, optimizer=Optimizer())

# Tables 1–25 and section 3.5: tables, model, epochs, lr, batch, optimizer, weight decay, schedule,
# augmented, test accuracy, parameters. In the paper's order.
PAPER = {
    "basic": ("1–3", "basic", 20, 1e-3, 8, "sgd", 0, "constant", False, 62.06, 62_006),
    "net": ("4–6", "net", 100, 1e-3, 8, "sgd", 0, "constant", False, 77.91, 2_348_030),
    "net-bn-gap": (
        *("7–9", "net-bn-gap", 50, 1e-3, 8, "sgd", 0, "constant", False, 82.14, 413_566),
    ),
    "net-attention": (
        *("10–12", "net-attention", 50, 1e-3, 8, "sgd", 0, "plateau", False, 81.77, 521_646),
    ),
    "resnet18-sgd": (
        *("13–14", "resnet18", 135, 1e-3, 8, "sgd", 5e-4, "constant", True, 90.92, 11_173_962),
    ),
    "resnet18-adam": (
        *("15–16", "resnet18", 135, 1e-3, 8, "adam", 0, "constant", True, 89.66, 11_173_962),
    ),
    "resnet18-adam-lr1e-4": (
        *("17–18", "resnet18", 100, 1e-4, 128, "adam", 0, "constant", True, 91.27, 11_173_962),
    ),
    "resnet10": (
        *("19–20", "resnet10", 135, 1e-4, 128, "adam", 0, "constant", True, 90.03, 4_903_242),
    ),
    "resnet10-plateau": (
        *("21–22", "resnet10", 135, 1e-4, 128, "adam", 0, "plateau", True, 92.09, 4_903_242),
    ),
    "resnet10-separable": (
        *("23–25", "resnet10-separable", 135, 1e-4, 128, "adam", 0, "constant", True),
        *(90.68, 722_186),
    ),
}


@pytest.mark.parametrize("name", PAPER)
def test_experiment_has_the_papers_settings(name: str) -> None:
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
    assert c.data.validation == 2000  # 3.2 logs `IT 06000`: 6,000 steps of 8 are 48,000 images
    assert c.data.train_images is None
    assert c.train.precision == "float32"
    assert (c.schedule.patience, c.schedule.factor, c.schedule.threshold) == (5, 0.5, 1e-4)
    if c.optimizer.name == "sgd":
        assert c.optimizer.momentum == 0.9
    else:
        assert (c.optimizer.beta1, c.optimizer.beta2, c.optimizer.eps) == (0.9, 0.999, 1e-8)
    if name not in ("basic", "net"):
        assert c.model.dropout == 0.5


@pytest.mark.parametrize("name", PAPER)
def test_flat_settings_survive_json(name: str) -> None:
    config = catalog.load(name).config
    flat = flatten(config)
    assert flatten(from_flat(json.loads(json.dumps(flat)))) == flat


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("epochs=2", 2),
        ("batch_size = 16", 16),
        ("optimizer.lr=3e-4", 3e-4),
        ("optimizer.lr=1", 1.0),
        ("optimizer.name=adamw", "adamw"),
        ("data.flip=true", True),
        ("data.flip=0", False),
        ("data.train_images=100", 100),
        ("data.train_images=none", None),
        ("model.dropout=0.1", 0.1),
        ("model.dropout=None", None),
        ("model.pooling=average", "average"),
        ("model.pooling=none", None),
        ("model.name=basic", "basic"),
        ("train.devices=2", 2),
        ("schedule.name=one-cycle", "one-cycle"),
    ],
)
def test_override_is_typed(setting: str, value: object) -> None:
    name = setting.partition("=")[0].strip()
    found = flatten(override(CONFIG, [setting]))[name]
    assert found == value
    assert type(found) is type(value)


def test_overrides_apply_in_order_and_leave_the_rest() -> None:
    changed = override(CONFIG, ["epochs=2", "optimizer.lr=0.1", "epochs=3", "optimizer.momentum=0"])
    assert differences(flatten(CONFIG), flatten(changed)) == {
        "epochs": (1, 3),
        "optimizer.lr": (1e-3, 0.1),
        "optimizer.momentum": (0.9, 0.0),
    }


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("epochs", "expected key=value"),
        ("epoch=2", "did you mean epochs?"),
        ("lr=0.1", "did you mean optimizer.lr?"),
        ("optimizer.learning_rate=0.1", "no field 'optimizer.learning_rate'"),
        ("optimiser.lr=0.1", "did you mean optimizer.lr?"),
        ("model=net", "did you mean model.name?"),
        ("paper.test_accuracy=99", "no field 'paper.test_accuracy'"),
        ("zzzzz=1", "no field 'zzzzz'"),
        ("epochs=two", "expected a whole number"),
        ("epochs=2.5", "expected a whole number"),
        ("epochs=", "expected a whole number"),
        ("epochs=none", "expected a whole number"),
        ("optimizer.lr=fast", "expected a number"),
        ("optimizer.lr=nan", "expected a finite number"),
        ("optimizer.lr=inf", "expected a finite number"),
        ("optimizer.lr=1e999", "expected a finite number"),
        ("optimizer.lr=true", "expected a number"),
        ("epochs=true", "expected a whole number"),
        ("epochs=[1]", "expected a whole number"),
        ("optimizer.name=Adam", "expected one of sgd, adam, adamw"),
        ("model.pooling=min", "expected one of max, average, strided-conv"),
        ("data.flip=perhaps", "expected true or false"),
        ("epochs=0", "epochs must be at least 1, not 0"),
        ("batch_size=0", "batch_size must be at least 1, not 0"),
        ("model.dropout=1", "model.dropout must be in [0, 1)"),
        ("optimizer.lr=0", "optimizer.lr must be positive"),
        ("optimizer.momentum=1", "optimizer.momentum must be in [0, 1)"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay must be at least 0, not -1"),
        ("schedule.factor=1", "schedule.factor must be in (0, 1)"),
        ("schedule.patience=-1", "schedule.patience must be at least 0"),
        ("schedule.warmup=0", "schedule.warmup must be in (0, 1)"),
        ("data.validation=-0.1", "data.validation must be at least 0, not -0.1"),
        ("data.train_images=0", "data.train_images must be at least 1"),
        ("data.crop_padding=17", "data.crop_padding must be in 0..16"),
        ("train.steps_per_call=0", "train.steps_per_call must be at least 1"),
        ("train.devices=0", "train.devices must be at least 1"),
    ],
)
def test_bad_override_names_the_field(setting: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        override(CONFIG, [setting])
    assert message in str(error.value)
    assert setting.partition("=")[0] in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Optimizer(name="sdg"), "optimizer.name"),  # pyright: ignore
        (lambda: Optimizer(lr="0.1"), "optimizer.lr must be a number, not '0.1'"),  # pyright: ignore
        (lambda: Optimizer(lr=float("nan")), "optimizer.lr must be a finite number, not nan"),
        (lambda: Optimizer(momentun=0.9), "'optimizer.momentun'; did you mean momentum?"),  # pyright: ignore
        (lambda: Data(flip=1), "data.flip must be true or false or one of alternating, not 1"),  # pyright: ignore
        (lambda: Model(name=None), "model.name"),  # pyright: ignore
        (lambda: Model(name="net", pooling="min"), "model.pooling"),  # pyright: ignore
        (lambda: Schedule(name="exponential"), "schedule.name"),  # pyright: ignore
        (lambda: Data(flip="yes"), "data.flip"),  # pyright: ignore
        (lambda: Data(train_images=2.5), "data.train_images"),  # pyright: ignore
        (lambda: Train(precision="float16"), "train.precision"),  # pyright: ignore
        (lambda: Config(model="net", epochs=1, batch_size=8, optimizer=Optimizer()), "model"),  # pyright: ignore
        (
            lambda: Config(
                model=Model(name="net"), epochs=True, batch_size=8, optimizer=Optimizer()
            ),
            "epochs",
        ),
    ],
)
def test_settings_in_a_file_are_typed_too(make, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_whole_numbers_do_for_numbers() -> None:
    lr = Optimizer(lr=1).lr
    assert (lr, type(lr)) == (1.0, float)


def test_a_config_is_frozen_and_can_be_a_key() -> None:
    assert {CONFIG: 1}[override(CONFIG, [])] == 1
    with pytest.raises(ValueError, match="frozen"):
        CONFIG.epochs = 3  # pyright: ignore


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_a_run_of_an_earlier_version_is_the_experiments_own(path: Path) -> None:
    stored = json.loads(path.read_text())
    config = from_flat(stored["config"])
    now = flatten(config)
    assert {name: now[name] for name in stored["config"]} == stored["config"]
    later = {name: value for name, value in now.items() if name not in stored["config"]}
    assert later == {name: flatten(CONFIG)[name] for name in later}  # nothing that is new is on
    assert {"train.init_from", "param_groups", "averaging", "data.crop_fill"} <= later.keys()
    ours = catalog.load(stored["experiment"]).config
    if path.stem == "net-attention":  # with the validation images of that time
        ours = override(ours, ["data.validation=0.1"])
    assert differences(identity(stored["config"]), identity(ours)) == {}


def test_how_a_run_is_carried_out_is_not_what_it_is() -> None:
    elsewhere = override(CONFIG, [f"{name}={value}" for name, value in EXECUTION.items()])
    assert differences(identity(CONFIG), identity(elsewhere)) == {}
    assert execution(elsewhere) == EXECUTION
    assert identity(CONFIG) | execution(CONFIG) == flatten(CONFIG)
    assert "train.precision" in identity(CONFIG)


def test_a_run_that_does_not_know_a_setting_is_completed() -> None:
    flat = flatten(CONFIG)
    assert from_flat({n: v for n, v in flat.items() if not n.startswith("schedule.")}) == CONFIG
    assert identity({n: v for n, v in flat.items() if n != "train.devices"}) == identity(CONFIG)
    with pytest.raises(UserError, match="epochs is missing"):
        from_flat({n: v for n, v in flat.items() if n != "epochs"})


def test_every_setting_says_what_it_means() -> None:
    rows = {row["name"]: row for row in describe()}
    assert [n for n in rows if not n.startswith("averaging.")] == list(flatten(CONFIG))
    for name, row in rows.items():
        assert row["description"], f"{name} has no docstring"
    assert rows["optimizer.name"]["type"] == "one of sgd, adam, adamw, muon"
    assert rows["model.dropout"]["type"] == "a number, in [0, 1), or none"
    assert rows["optimizer.lr"]["default"] == 1e-3
    assert "default" not in rows["epochs"]


def test_a_setting_from_another_version_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"optimizer\.amsgrad"):
        from_flat(flatten(CONFIG) | {"optimizer.amsgrad": True})


def test_differences_name_what_is_absent() -> None:
    assert differences({"a": 1, "b": 2}, {"b": 2, "c": 3}) == {"a": (1, None), "c": (None, 3)}
