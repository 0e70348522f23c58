"""Whatever is asked for: valid settings, or one line for a person."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import strategies as st
from lab import Lab, Muon
from properties import holds

from cifar_jax import config
from cifar_jax.config import Config, Data, Model, Optimizer, Paper, Schedule, Train
from cifar_jax.errors import UserError
from cifar_jax.settings.dotted import describe, differences, flatten, override, part, restore
from cifar_jax.settings.fields import Settings

S = TypeVar("S", bound=Settings)

CONFIG = Config(
    model=Model(name="net"),
    epochs=1,
    batch_size=8,
    optimizer=Optimizer(),
    paper=Paper(tables="1", test_accuracy=50.0, parameters=10),
)
STARTS: list[Settings] = [CONFIG, Lab(), Lab(optimizer=Muon(), average=None)]
NAMES = sorted({row["name"] for cls in (Config, Lab) for row in describe(cls)})


def made_or_refused(make: Callable[[], S]) -> S | None:
    """What `make` makes; None where it refuses in one line."""
    try:
        return make()
    except UserError as error:
        refusal = str(error)
    assert len(refusal.splitlines()) == 1
    assert len(refusal) < 5000
    return None


def keeps_its_value_as_json(made: Settings) -> bool:
    flat = flatten(made)
    read = restore(type(made), json.loads(json.dumps(flat)))
    return differences(flatten(read), flat) == {} and hash(read) is not None


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["sgd", "muon", "plateau", "none", "max", "digits"])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(NAMES) | st.text(), inner),
    max_leaves=8,
)
texts = values.map(str) | values.map(json.dumps) | st.text() | st.characters().map(str)
names = st.sampled_from(NAMES) | st.sampled_from(NAMES).map(lambda name: name[:-1]) | st.text()
changes = st.tuples(names, texts).map("=".join) | st.text()


@holds(start=st.sampled_from(STARTS), words=st.lists(changes, max_size=4))
def test_what_is_set_is_valid_or_refused_in_one_line(start: Settings, words: list[str]) -> None:
    if made := made_or_refused(lambda: override(start, words)):
        assert keeps_its_value_as_json(made)
        assert not isinstance(made, Config) or made.paper == CONFIG.paper


@holds(
    start=st.sampled_from(STARTS),
    dropped=st.sets(st.sampled_from(NAMES)),
    added=st.dictionaries(names, values, max_size=3),
)
def test_what_is_stored_is_read_or_refused_in_one_line(
    start: Settings, dropped: set[str], added: dict[str, Any]
) -> None:
    stored = {name: value for name, value in flatten(start).items() if name not in dropped}
    if made := made_or_refused(lambda: restore(type(start), stored | added)):
        assert keeps_its_value_as_json(made)
        for name, value in added.items():
            assert flatten(made).get(name, value) == value


@holds(
    cls=st.sampled_from([Model, Optimizer, Schedule, Data, Train, Paper, Config, Lab]),
    fields=st.data(),
)
def test_a_group_is_valid_or_refused_in_one_line(
    cls: type[Settings], fields: st.DataObject
) -> None:
    own = st.sampled_from([*cls.model_fields, "absent"])
    asked = fields.draw(st.dictionaries(own, values, max_size=3))
    if made := made_or_refused(lambda: cls(**asked)):
        assert isinstance(made, cls)


positive = st.integers(1, 10**6)
below_one = st.floats(0, 1, exclude_max=True)
within = st.floats(0, 1, exclude_min=True, exclude_max=True)
optional = st.none() | positive
configs = st.builds(
    Config,
    model=st.builds(
        Model,
        name=st.text(),
        dropout=st.none() | below_one,
        pooling=st.sampled_from(["max", "average", "strided-conv", None]),
    ),
    epochs=positive,
    batch_size=positive,
    optimizer=st.builds(
        Optimizer,
        name=st.sampled_from(["sgd", "adam", "adamw"]),
        lr=st.floats(0, exclude_min=True, allow_infinity=False) | positive,
        momentum=below_one,
        weight_decay=st.floats(0, 1e300),
    ),
    schedule=st.builds(Schedule, factor=within, patience=st.integers(0), warmup=within),
    data=st.builds(
        Data,
        dataset=st.text(),
        validation=st.floats(0, 1e6) | positive,
        train_images=optional,
        crop_padding=st.integers(0, 16),
        flip=st.booleans(),
    ),
    train=st.builds(Train, devices=optional, steps_per_call=optional, log_every=positive),
)


@holds(made=configs)
def test_a_config_survives_its_storing_its_writing_and_its_setting(made: Config) -> None:
    flat = flatten(made)
    assert config.from_flat(json.loads(json.dumps(flat))) == made
    assert eval(repr(made), dict(vars(config))) == made
    assert part(made, execution=True) | part(made, execution=False) == flat
    # Text is stripped of blanks around it, as a shell's words may have them.
    words = [f"{name}={value}" for name, value in flat.items()]
    expected = {n: v.strip() if isinstance(v, str) else v for n, v in flat.items()}
    assert flatten(override(CONFIG, words)) == expected
