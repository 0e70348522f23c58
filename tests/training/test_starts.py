"""What a start holds itself to before it trains, and what it tells in its first lines."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import pytest
from flax import linen as nn
from short_runs import Spy, files, raise_it, train
from tiny import DATASET, TINY

from cifar_jax import distributed, models
from cifar_jax.config import Config
from cifar_jax.errors import UserError
from cifar_jax.models import CustomModel
from cifar_jax.training import fit

Make = Callable[..., Config]
pytestmark = pytest.mark.usefixtures("tiny")


class Mine(nn.Module):
    """A dense layer on a few of the values: no network of the package's, and compiled at once."""

    num_classes: int = 10
    values: int = 8

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        return nn.Dense(self.num_classes, name="head")(x.reshape(len(x), -1)[:, : self.values])


@pytest.fixture(scope="module")
def small(make_config: Make) -> Config:
    return make_config(**TINY | {"model__name": "mine", "epochs": 2})


@pytest.fixture(scope="module")
def given(make_config: Make) -> Config:
    """The same, beginning with weights that a test hands over."""
    settings = TINY | {"model__name": "mine", "epochs": 2}
    return make_config(**settings, train__init_from="given")


def start(config: Config, folder: Path, display: Spy | None = None, **run: Any) -> dict[str, Any]:
    return train(config, folder, display, **{"own": CustomModel(Mine)} | run)


def weights(seed: int) -> Mapping[str, Any]:
    return models.init_variables(Mine(len(DATASET.classes)), jax.random.key(seed))


def defined(folder: Path, source: bytes, values: int = 8) -> CustomModel:
    """The network as a file defines it; what is in the file only has to differ."""
    return CustomModel(Mine(values=values), "mine", folder / "mine.py", source)


# Processes


@pytest.mark.parametrize(
    ("seen", "elsewhere", "told"),
    [
        (DATASET.fingerprint, "f" * 64, "the processes have different images of tiny"),
        (True, False, "is not the same folder in every process"),
    ],
    ids=["images", "folder"],
)
def test_processes_that_see_different_things_are_refused(
    small: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seen: Any,
    elsewhere: Any,
    told: str,
) -> None:
    """Of a second process there is only its answer."""
    allgather = distributed.allgather
    monkeypatch.setattr(
        distributed,
        "allgather",
        lambda value: [value, elsewhere] if value == seen else allgather(value),
    )
    with pytest.raises(UserError, match=told):
        start(small, tmp_path / "run")
    assert not (tmp_path / "run/log.txt").exists()


# Weights to begin with


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1)])
def test_weights_to_begin_with_are_held_to_those_of_the_first_start(
    given: Config, tmp_path: Path, first: int, second: int
) -> None:
    """Whichever has the greater digest."""
    begun = Spy(" begins with the weights of given: ", raise_it(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        start(given, tmp_path, begun, initial=lambda: weights(first))
    with pytest.raises(UserError, match=f"given has other weights than {tmp_path} was begun with"):
        start(given, tmp_path, initial=lambda: weights(second))


def test_a_fresh_start_begins_with_the_weights_that_it_is_given(
    given: Config, tmp_path: Path
) -> None:
    """A checkpoint would make them needless, but the one that is there is about to be deleted."""
    first = start(given, tmp_path / "run", initial=lambda: weights(1))
    again = start(given, tmp_path / "run", initial=lambda: weights(2), fresh=True)
    expected = start(given, tmp_path / "other", initial=lambda: weights(2))
    assert again["params_sha256"] == expected["params_sha256"] != first["params_sha256"]


@pytest.mark.parametrize("fresh", [False, True])
def test_weights_of_another_network_to_begin_with_write_nothing(
    given: Config, tmp_path: Path, fresh: bool
) -> None:
    folder = tmp_path / "run"
    if fresh:
        start(given, folder, initial=lambda: weights(1))
    before = files(tmp_path)
    other = {"params": {"another": weights(1)["params"]["head"]}}
    with pytest.raises(UserError, match="of another network"):
        start(given, folder, initial=lambda: other, fresh=fresh)
    assert files(tmp_path) == before


# A model that is defined otherwise


def test_a_model_that_is_defined_otherwise_goes_on_from_what_is_not_damaged(
    small: Config, tmp_path: Path
) -> None:
    """Whether the newest weights would fit cannot be known, and need not be."""
    folder = tmp_path / "run"
    before, after = (defined(tmp_path, source) for source in (b"MODEL = 1", b"MODEL = 2"))
    with pytest.raises(KeyboardInterrupt):
        start(small, folder, Spy("epoch 2/", raise_it(KeyboardInterrupt())), own=before)
    (folder / "checkpoints/8/default/manifest.ocdbt").write_bytes(b"")
    start(small, folder, display := Spy(), own=after)
    assert "goes on from step 4" in display.lines[0]
    assert display.lines[1].startswith(f"{tmp_path / 'mine.py'} defines the model otherwise than")
    assert display.lines[1].endswith("; model.py in its folder is renewed")
    assert display.lines[2].startswith("the checkpoint of step 8 is damaged (")
    assert display.lines[2].endswith(f"set aside as {folder / 'checkpoints/damaged-8'}")
    assert (folder / "model.py").read_bytes() == b"MODEL = 2"


def test_weights_that_do_not_fit_are_in_nobodys_way_once_the_run_begins_anew(
    small: Config, tmp_path: Path
) -> None:
    folder, wider = tmp_path / "run", defined(tmp_path, b"MODEL = 2", values=9)
    killed = Spy("epoch 1/", raise_it(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        start(small, folder, killed, own=defined(tmp_path, b"MODEL = 1"))
    before = files(folder)
    told = r"mine\.py defines the model otherwise .*: its checkpoint has .*; .* or --fresh"
    with pytest.raises(UserError, match=told):
        start(small, folder, own=wider)
    assert files(folder) == before
    start(small, folder, display := Spy(), own=wider, fresh=True)
    assert " begins: " in display.lines[0]
    assert not [line for line in display.lines if "otherwise" in line]


# The first line


@pytest.mark.parametrize(
    ("platform", "precision", "told"),
    [
        ("cpu", None, ""),
        ("gpu", None, " in float32, products in default precision"),
        ("tpu", "highest", " in float32, products in highest precision"),
        ("METAL", None, " in float32, products in default precision"),
    ],
)
def test_the_first_line_tells_in_what_an_accelerator_computes(
    small: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    platform: str,
    precision: str | None,
    told: str,
) -> None:
    device = {"platform": platform, "kind": "X1", "count": 1}
    monkeypatch.setattr(fit, "_device", lambda workload: device)
    display = Spy(" begins: ", raise_it(KeyboardInterrupt()))
    with jax.default_matmul_precision(precision), pytest.raises(KeyboardInterrupt):
        start(small, tmp_path, display)
    assert display.lines[0].endswith(f"images, on 1 × X1{told}; {tmp_path}")
