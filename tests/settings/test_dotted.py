"""Settings by dotted name: lists, alternatives, absent groups, and runs of earlier versions."""

import json
from typing import Any

import pytest
from lab import Average, Ema, Lab, Lookahead, Muon, Phase, Sgd

from cifar_jax.errors import UserError
from cifar_jax.settings.dotted import describe, flatten, override, part, restore

FULL = Lab(
    optimizer=Muon(lr=0.3),
    phases=(Phase(epochs=2, size=24), Phase(epochs=1)),
    weights=Ema(decay=0.5),
    note="mine",
    remark="kept",
)


def test_what_is_stored_is_json_by_dotted_name() -> None:
    flat = flatten(FULL)
    assert json.loads(json.dumps(flat)) == flat
    assert flat["optimizer.name"] == "muon"
    assert flat["optimizer.rounds"] == 5
    assert flat["phases"] == [{"epochs": 2, "size": 24}, {"epochs": 1, "size": 32}]
    assert flat["average"] is None
    assert flat["weights.decay"] == 0.5
    assert "remark" not in flat
    assert restore(Lab, flat) == FULL.model_copy(update={"remark": "no setting"})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["sizes=[16, 24]"], {"sizes": (16, 24)}),
        (["sizes=[]"], {"sizes": ()}),
        (['phases=[{"epochs": 3}]'], {"phases": (Phase(epochs=3),)}),
        (["average.decay=0.5"], {"average": Average(decay=0.5)}),
        (["rest=none"], {"rest": None}),
        (["rest=none", "rest.decay=0.1"], {"rest": Average(decay=0.1)}),
        (['rest={"decay": 0.1}'], {"rest": Average(decay=0.1)}),
        (["weights.name=ema", "weights.decay=0.9"], {"weights": Ema(decay=0.9)}),
        (["weights.every=2", "weights.name=lookahead"], {"weights": Lookahead(every=2)}),
        (["optimizer.momentum=0.5"], {"optimizer": Sgd(momentum=0.5)}),
        (["optimizer.name=muon", "optimizer.lr=1"], {"optimizer": Muon(lr=1.0)}),
        (["optimizer.lr=1", "optimizer.name=muon"], {"optimizer": Muon(lr=1.0)}),
        (["optimizer.name=muon"], {"optimizer": Muon(lr=0.1)}),  # what both have is kept
        (["note=none"], {"note": None}),
        (["note=2"], {"note": "2"}),
        (["note=a=b"], {"note": "a=b"}),
    ],
)
def test_override_reaches_every_field(changes: list[str], expected: dict[str, Any]) -> None:
    assert override(Lab(remark="kept"), changes) == Lab(remark="kept", **expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["sizes=16"], "--set sizes=16: expected a list (a whole number each)"),
        (["sizes=[16"], "expected a list"),
        (["sizes=[16, 2.5]"], "sizes.1 must be a whole number, not 2.5"),
        (["sizes=" + "[" * 100_000], "expected a list"),
        (["phases=[3]"], "phases.0 must be Phase(…), not 3"),
        (['phases=[{"epochs": 2}, {"epochs": 0}]'], "phases.1.epochs must be at least 1, not 0"),
        (['phases=[{"epochs": 2, "size": 64}]'], "phases.0.size must be in 8..32, not 64"),
        (['phases=[{"epochs": 2, "sise": 64}]'], "'phases.0.sise'; did you mean size?"),
        (['phases=[{"size": 16}]'], "phases.0.epochs is missing"),
        (["phases.0.size=16"], "no field 'phases.0.size'"),
        (["optimizer.name=adam"], "optimizer.name=adam: expected one of sgd, muon"),
        (["optimizer.name=adam", "optimizer.lr=1"], "optimizer.name=adam: expected one of"),
        (["optimizer.lr=1", "optimizer.name=adam"], "optimizer.name=adam: expected one of"),
        (["optimizer.lr=-1"], "optimizer.lr must be positive, not -1.0"),
        (["optimizer.name=muon", "optimizer.momentum=0"], "no field 'optimizer.momentum'"),
        (["optimizer=sgd"], "no field 'optimizer'; did you mean optimizer."),
        (["average=yes"], "expected Average(…) or none"),
        (["average.decay=2"], "average.decay must be in [0, 1), not 2.0"),
        (["weights=ema"], "expected weights.name=ema or weights.name=lookahead or none"),
        (["weights.decay=0.5"], "weights.name is missing: it must be one of ema, lookahead"),
        (["average.decay=0.5", "weights.name=ema"], "exclude each other"),
        (["remark=x"], "no field 'remark'"),
        (["is_root=x"], "no field 'is_root'"),
    ],
)
def test_a_fault_is_told_with_its_place(changes: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        override(Lab(), changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_list_in_a_file_may_be_written_as_one() -> None:
    assert Lab(sizes=[1, 2]).sizes == (1, 2)  # pyright: ignore
    with pytest.raises(UserError, match=r"phase\.epochs must be a whole number"):
        Lab(phases=[{"epochs": "2"}])  # pyright: ignore


def test_a_run_before_a_setting_has_what_the_code_did_then() -> None:
    old = restore(Lab, {"optimizer.name": "sgd", "optimizer.lr": 0.1})
    assert old.smoothing == 0.0
    assert isinstance(old.optimizer, Sgd)
    assert old.optimizer.nesterov is False
    assert old.rest is None
    assert old.sizes == (32,)
    assert restore(Lab, flatten(FULL) | {"smoothing": 0.1}).smoothing == 0.1
    assert override(old, ["sizes=[8]"]).smoothing == 0.0


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"optimizer.name": "adam", "optimizer.lr": 1}, "optimizer.name must be one of sgd, muon"),
        ({"optimizer.name": ["sgd"]}, "optimizer.name must be one of sgd, muon"),
        ({"optimizer.lr": 1, "optimizer.name": "muon", "optimizer.momentum": 0}, "momentum"),
        ({"average": None, "average.decay": 0.1}, "'average'"),
        ({"a" * 200: 1}, "version does not know"),
        ({"sizes": {"a": 1}}, "sizes must be a list"),
        ({"note": 1}, "note must be text or none, not 1"),
    ],
)
def test_what_this_version_does_not_take_is_named(stored: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        restore(Lab, stored)
    assert message in str(error.value)


def test_identity_and_execution_share_out_the_settings() -> None:
    changed = override(FULL, ["workers=3"])
    assert part(changed, execution=True) == {"workers": 3}
    assert part(changed, execution=False) == part(FULL, execution=False)
    assert part(changed, execution=True) | part(changed, execution=False) == flatten(changed)


def test_every_setting_is_described_with_its_alternative() -> None:
    rows = describe(Lab)
    assert json.loads(json.dumps(rows)) == rows
    found = {(row["name"], row.get("when")): row for row in rows}
    assert found["optimizer.name", None]["type"] == "one of sgd, muon"
    assert found["optimizer.name", None]["default"] == "sgd"
    assert found["optimizer.lr", "optimizer.name=sgd"]["description"] == "Rate."
    assert found["optimizer.rounds", "optimizer.name=muon"]["default"] == 5
    assert found["average", None]["default"] is None
    assert found["average.decay", None]["type"] == "a number, in [0, 1)"
    assert found["rest", None]["default"] == {"decay": 0.5}
    assert found["workers", None] == {
        "name": "workers",
        "type": "a whole number, at least 1, or none",
        "default": None,
        "description": "",
        "identity": False,
    }
    assert ("remark", None) not in found
