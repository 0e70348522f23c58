"""Test that arbitrary changes of settings give valid settings or a one-line error."""

import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from lab import Lab, Muon
from properties import property_test

from cifar_jax.config import Config, Model, Optimizer, Paper
from cifar_jax.errors import UserError
from cifar_jax.settings.dotted import describe, differences, flatten, override, restore
from cifar_jax.settings.fields import Settings

PAPER = Paper(tables="1", test_accuracy=50.0, parameters=10)
CONFIG = Config(model=Model(name="net"), epochs=1, batch_size=8, optimizer=Optimizer(), paper=PAPER)
STARTS: list[Settings] = [CONFIG, Lab(arguments={"a": 1, "b": "c"}), Lab(optimizer=Muon())]
NAMES = sorted({row["name"] for cls in (Config, Lab) for row in describe(cls)} | {"arguments.a"})


def valid_or_refused(make: Callable[[], Any]) -> Any:
    """Return the settings from `make`, or None if `make` raises a one-line error.

    Assert that JSON can store the settings.
    """
    settings, message = None, ""
    try:
        settings = make()
    except UserError as error:
        message = str(error)
    if settings is None:
        assert len(message.splitlines()) == 1
        assert len(message) < 5000
        return None
    flat = flatten(settings)
    restored = restore(type(settings), json.loads(json.dumps(flat)))
    assert differences(flatten(restored), flat) == {}
    assert hash(restored)
    return settings


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
values = st.recursive(
    scalars | st.sampled_from(["sgd", "muon", "plateau", "none", "max", "digits"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(NAMES) | st.text(), inner),
    max_leaves=8,
)
texts = values.map(str) | values.map(json.dumps) | st.text() | st.characters().map(str)
names = st.sampled_from(NAMES) | st.sampled_from(NAMES).map(lambda name: name[:-1]) | st.text()
changes = st.tuples(names, texts).map("=".join) | st.text()


@property_test(start=st.sampled_from(STARTS), words=st.lists(changes, max_size=4))
def test_any_change_is_valid_or_refused(start: Settings, words: list[str]) -> None:
    changed = valid_or_refused(lambda: override(start, words))
    assert not isinstance(changed, Config) or changed.paper == PAPER


@property_test(
    start=st.sampled_from(STARTS),
    dropped=st.sets(st.sampled_from(NAMES)),
    added=st.dictionaries(names, values, max_size=3),
)
def test_any_flat_settings_are_valid_or_refused(
    start: Settings, dropped: set[str], added: dict[str, Any]
) -> None:
    flat = {name: value for name, value in flatten(start).items() if name not in dropped}
    valid_or_refused(lambda: restore(type(start), flat | added))


@property_test(
    fields=st.dictionaries(st.sampled_from([*Lab.model_fields, "absent"]), values, max_size=3)
)
def test_any_fields_are_valid_or_refused(fields: dict[str, Any]) -> None:
    valid_or_refused(lambda: Lab(**fields))
