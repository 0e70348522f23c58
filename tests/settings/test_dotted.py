"""Test access to settings by dotted name, in lists, unions, optional groups and dictionaries."""

import json
from typing import Any

import pytest
from lab import Average, Lab, Lookahead, Muon, Phase, Sgd

from cifar_jax.errors import UserError, nearest
from cifar_jax.settings.dotted import (
    as_text,
    describe,
    differences,
    flatten,
    override,
    part,
    restore,
)

ARGUMENTS = {"beta1": 0.9, "steps": 3, "nesterov": True, "mode": "fast"}
FULL = Lab(
    optimizer=Muon(lr=0.3, arguments={"rank": 2}),
    phases=(Phase(epochs=2, size=24), Phase(epochs=1)),
    weights=Lookahead(every=2),
    arguments=ARGUMENTS,
    note="mine",
    remark="kept",
)


def test_flat_settings_are_json_by_dotted_name() -> None:
    flat = flatten(FULL)
    assert json.loads(json.dumps(flat)) == flat
    assert flat["optimizer.arguments.rank"] == 2
    assert flat["phases"] == [{"epochs": 2, "size": 24}, {"epochs": 1, "size": 32}]
    assert flat["average"] is None
    assert flat["weights.name"] == "lookahead"
    assert {name: flat[f"arguments.{name}"] for name in ARGUMENTS} == ARGUMENTS
    assert not any("arguments" in name for name in flatten(Lab()))
    assert "remark" not in flat
    assert restore(Lab, flat) == FULL.model_copy(update={"remark": "no setting"})


def test_settings_can_be_keys_and_cannot_change() -> None:
    assert {FULL: 1}[override(FULL, [])] == 1
    with pytest.raises(ValueError, match="frozen"):
        FULL.note = "other"  # pyright: ignore


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["sizes=[16, 24]"], {"sizes": (16, 24)}),
        (['phases=[{"epochs": 3}]'], {"phases": (Phase(epochs=3),)}),
        (["average.decay=0.5"], {"average": Average(decay=0.5)}),
        (['average={"decay": 0.1}', "average=none"], {"average": None}),
        (["average=none", "average.decay=0.1"], {"average": Average(decay=0.1)}),
        (["weights.every=2", "weights.name=lookahead"], {"weights": Lookahead(every=2)}),
        (["optimizer.momentum=0.5"], {"optimizer": Sgd(momentum=0.5)}),
        (["optimizer.lr=1", "optimizer.name=muon"], {"optimizer": Muon(lr=1.0)}),
        # Another optimizer keeps the value of `lr`.
        (["optimizer.name=muon"], {"optimizer": Muon(lr=0.1)}),
        (["arguments.beta1=1"], {"arguments": ARGUMENTS | {"beta1": 1.0}}),
        (["arguments.steps=4"], {"arguments": ARGUMENTS | {"steps": 4}}),
        (["arguments.nesterov=0"], {"arguments": ARGUMENTS | {"nesterov": False}}),
        (["arguments.mode=1"], {"arguments": ARGUMENTS | {"mode": "1"}}),
        (["note=2", "note=none"], {"note": None}),
        (["note=a=b"], {"note": "a=b"}),
    ],
)
def test_override_sets_every_kind_of_field(changes: list[str], expected: dict[str, Any]) -> None:
    start: dict[str, Any] = {"remark": "kept", "arguments": ARGUMENTS}
    changed = override(Lab(**start), changes)
    assert changed == Lab(**(start | expected))
    assert list(map(type, changed.arguments.values())) == [float, int, bool, str]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["sizes"], "--set sizes: expected key=value"),
        (["sizes="], "--set sizes=: not valid JSON; expected a list such as [16]"),
        (["sizes=16"], "--set sizes=16: expected a list such as [16]"),
        (["sizes=[16, 2.5]"], "sizes[1] is 2.5, but it must be a whole number"),
        (["sizes=" + "[" * 100_000], "not valid JSON; expected a list"),
        (["phases=[3]"], "phases[0] is 3, but it must be an object {epochs, size}"),
        (["phases=[{epochs: 3}]"], 'expected a list such as [{"epochs": 16, "size": 16}]'),
        (['phases=[{"epochs": 0}]'], "phases[0].epochs is 0, but it must be a whole number >= 1"),
        (['phases=[{"epochs": 2, "sise": 64}]'], "'phases[0].sise'; did you mean phases[0].size?"),
        (['phases=[{"size": 16}]'], "phases[0].epochs is missing"),
        (
            ['phases=[{"epoch": 1}]'],
            "[0].epochs is missing, and there is no setting 'phases[0].epoch'; did you mean phases",
        ),
        (["phases.0.size=16"], "no setting 'phases.0.size'"),
        (
            ["optimizer.lr=1", "optimizer.name=adam"],
            "optimizer.name=adam: expected one of",
        ),
        (["optimizer.steps=1"], "no setting 'optimizer.steps'"),
        (["optimizer=sgd"], "no setting 'optimizer'; did you mean optimizer.name?"),
        (["average=yes"], "expected an object {decay} or none"),
        (["weights=muon"], "write --set weights.name=muon, --set weights.name=lookahead or --set"),
        (
            ["weights.every=5"],
            "weights.every needs weights.name, one of muon, lookahead: add --set weights.name=muon",
        ),
        (["arguments.beta2=1"], "no setting 'arguments.beta2'; did you mean arguments.beta1?"),
        (["arguments.x=1"], "'arguments.x'; add it to arguments in the experiment file first"),
        (['arguments={"beta1": 1}'], "no setting 'arguments'; did you mean arguments.beta1?"),
        (["arguments.beta1=none"], "expected a number"),
        (["arguments.beta1=nan"], "expected a number"),
        (["arguments.steps=0.5"], "expected a whole number"),
        (["remark=x"], "no setting 'remark'"),
        (["average.decay=0.5", "weights.name=muon"], "exclude each other"),
    ],
)
def test_invalid_changes_are_refused_in_one_line(changes: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        override(Lab(arguments=ARGUMENTS), changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "values", "message"),
    [
        (
            Lab,
            {"phases": [{"epochs": "2"}]},
            "phase.epochs is '2', but it must be a whole number >= 1",
        ),
        (Lab, {"arguments": {"a": None}}, "it must be true or false, a whole"),
        (Lab, {"arguments": {"a.b": 1}}, "arguments: 'a.b' is not a valid name"),
        (Lab, {"arguments": {"\r": None}}, r"arguments.'\r' is None"),
        (Lab, {"arguments": {1: 1}}, "arguments[1] is 1, but it must be text"),
        (Lab, {"arguments": [1]}, "arguments is [1], but it must be named values"),
        (
            restore,
            {"optimizer.name": "adam"},
            "name is 'adam', but it must be one of sgd, muon",
        ),
        (restore, {"optimizer.name": "muon", "optimizer.momentum": 0}, "'optimizer.momentum'"),
        (restore, {"average": None, "average.decay": 0.1}, "no setting 'average.decay'"),
        (restore, {"phases": [{"size": 8}]}, "phases[0].epochs is missing"),
        (restore, {"sizes": {"a": 1}}, "it must be a list"),
        (restore, {"note": 1}, "note is 1, but it must be text or none"),
    ],
)
def test_invalid_values_are_refused(make: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        restore(Lab, values) if make is restore else Lab(**values)
    assert message in str(error.value)


def test_restore_completes_settings_and_accepts_any_argument() -> None:
    assert restore(Lab, {"optimizer.name": "sgd", "arguments.new": 1}) == Lab(arguments={"new": 1})


def test_part_separates_the_identity_from_runtime_settings() -> None:
    changed = override(FULL, ["workers=3"])
    runtime, identity = (part(changed, runtime_only=flag) for flag in (True, False))
    assert runtime == {"workers": 3}
    assert differences(identity | runtime, flatten(FULL)) == {"workers": (3, None)}
    assert differences({"a": 1}, {"c": 3}) == {"a": (1, None), "c": (None, 3)}


def test_describe_has_every_setting_with_its_condition() -> None:
    rows = describe(Lab)
    assert json.loads(json.dumps(rows)) == rows
    by_name = {(row["name"], row.get("when")): row for row in rows}
    assert by_name["optimizer.name", None]["type"] == "one of sgd, muon"
    assert by_name["optimizer.lr", "optimizer.name=sgd"]["description"] == "Learning rate."
    assert by_name["optimizer.steps", "optimizer.name=muon"]["default"] == 5
    assert by_name["average", None]["default"] is None
    assert by_name["average.decay", None]["type"] == "a number >= 0 and < 1"
    assert [row["default"] for row in rows if row["name"] == "arguments"] == [{}]
    assert by_name["workers", None]["type"] == "a whole number >= 1, or none"
    assert [row["name"] for row in rows if not row["identity"]] == ["workers"]
    assert ("remark", None) not in by_name


def test_nearest_suggests_only_similar_names() -> None:
    names = ["cat", "group.rate", "optimizer.lr", "resnet18-sgd"]
    for name in ("lr", "optimiser.lr", "model.arguments.lr"):
        assert nearest(name, names) == "; did you mean optimizer.lr?"
    assert nearest("resnet18-sdg", names) == "; did you mean resnet18-sgd?"
    assert nearest("car", names) == nearest("optimizer.zz", names) == nearest("x", []) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [(64.0, "64"), (0.1, "0.1"), (3, "3"), (True, "true"), (None, "none"), ("sgd", "sgd")],
)
def test_values_are_shown_as_set_takes_them(value: Any, text: str) -> None:
    assert as_text(value) == text
