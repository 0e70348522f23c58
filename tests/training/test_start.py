"""Test the checks at the start of training: processes, initial weights and code."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
from flax import linen as nn
from short_runs import Recorder, files, killed_at, train
from tiny import DATASET, TINY

from cifar_jax import devices, distributed, models, runtime
from cifar_jax.catalog import CustomParts
from cifar_jax.config import Config
from cifar_jax.errors import UserError
from cifar_jax.runs import environment
from cifar_jax.runs.schemas import Device, Result
from cifar_jax.training import start
from cifar_jax.training.freezing import Pretrained

Make = Callable[..., Config]
pytestmark = pytest.mark.usefixtures("tiny")


class Mine(nn.Module):
    """A dense layer on the first pixel values, which compiles fast."""

    num_classes: int = 10
    values: int = 8

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        return nn.Dense(self.num_classes, name="head")(x.reshape(len(x), -1)[:, : self.values])


class Typed(Mine):
    """The network `Mine` with a field for the compute type."""

    dtype: Any = None


@pytest.fixture(scope="module")
def small(make_config: Make) -> Config:
    return make_config(**TINY | {"model__name": "mine", "epochs": 2})


@pytest.fixture(scope="module")
def pretrained(make_config: Make) -> Config:
    """Config that starts from stored weights. Tests supply the weights as `load_weights`."""
    settings = TINY | {"model__name": "mine", "epochs": 2}
    return make_config(**settings, train__init_from="pretrained")


def run(config: Config, folder: Path, recorder: Recorder | None = None, **fields: Any) -> Result:
    return train(config, folder, recorder, **{"custom": CustomParts(model=Mine)} | fields)


def second_epoch() -> Recorder:
    """Return a recorder that kills the run in epoch 2. The run then has one checkpoint."""
    return killed_at("[EPOCH 002 | IT 00002]")


def weights(seed: int) -> Pretrained:
    variables = models.init_variables(Mine(len(DATASET.classes)), jax.random.key(seed))
    return Pretrained(variables, tuple(DATASET.classes))


def defined(folder: Path, source: bytes, values: int = 8, **modules: str) -> CustomParts:
    """Return custom parts as if the experiment file `mine.py` had defined the network."""
    return CustomParts(
        model=Mine(values=values), file=folder / "mine.py", source=source, modules=modules
    )


@pytest.mark.parametrize(
    "name", ["seed", "optimizer.lr", "--fresh", "data.dataset", "module helper", "jax"]
)
def test_processes_with_different_settings_are_refused(
    small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    allgather = distributed.allgather

    def other_process(value: Any) -> list[Any]:
        if isinstance(value, dict) and name in value:
            return [value, value | {name: "other"}]
        return allgather(value)

    monkeypatch.setattr(distributed, "allgather", other_process)
    with pytest.raises(UserError, match=rf"the processes have different .*{name}"):
        run(small, tmp_path / "run", custom=CustomParts(model=Mine, modules={"helper": "a"}))
    assert not (tmp_path / "run").exists()


def test_folder_that_is_not_shared_is_refused(
    small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allgather = distributed.allgather
    monkeypatch.setattr(
        distributed,
        "allgather",
        lambda value: [value, False] if value is True else allgather(value),
    )
    with pytest.raises(UserError, match="not the same folder in all processes"):
        run(small, tmp_path / "run")
    assert not (tmp_path / "run/log.txt").exists()


def test_an_unreadable_commit_is_one_line_of_the_log(
    small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(small, tmp_path / "run", second_epoch())
    monkeypatch.setattr(environment, "git_commit", lambda *code: (None, "fatal: another owner"))
    run(small, tmp_path / "run", recorder := Recorder())
    (line,) = [line for line in recorder.lines if "git commit" in line]
    assert line.endswith("so changes of the code are unknown: fatal: another owner")


def test_initial_weights_are_needed_only_until_the_first_checkpoint(
    pretrained: Config, tmp_path: Path
) -> None:
    def missing() -> Pretrained:
        raise UserError("no run or export")

    with pytest.raises(UserError, match="no run or export"):
        run(pretrained, tmp_path / "run", load_weights=missing)
    assert not (tmp_path / "run").exists()
    with pytest.raises(KeyboardInterrupt):
        run(
            pretrained,
            tmp_path / "run",
            second_epoch(),
            load_weights=lambda: weights(1),
        )
    resumed = run(pretrained, tmp_path / "run", load_weights=missing)
    whole = run(pretrained, tmp_path / "whole", load_weights=lambda: weights(1))
    assert resumed.params_sha256 == whole.params_sha256


def test_other_initial_weights_are_refused(pretrained: Config, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(pretrained, folder, killed_at(" starts from"), load_weights=lambda: weights(1))
    with pytest.raises(UserError, match=r"the weights in .*pretrained have changed"):
        run(pretrained, folder, load_weights=lambda: weights(2))
    again = run(pretrained, folder, load_weights=lambda: weights(2), fresh=True)
    other = run(pretrained, tmp_path / "other", load_weights=lambda: weights(2))
    assert again.params_sha256 == other.params_sha256


@pytest.mark.parametrize("fresh", [False, True])
def test_initial_weights_of_another_network_write_nothing(
    pretrained: Config, tmp_path: Path, fresh: bool
) -> None:
    folder = tmp_path / "run"
    if fresh:
        run(pretrained, folder, load_weights=lambda: weights(1))
    before = files(tmp_path)
    other = Pretrained({"params": {"another": weights(1).variables["params"]["head"]}}, ("a",))
    with pytest.raises(UserError, match="another network"):
        run(pretrained, folder, load_weights=lambda: other, fresh=fresh)
    assert files(tmp_path) == before


@pytest.mark.parametrize("changed", ["mine.py", "helper"])
def test_changed_code_is_reported(small: Config, tmp_path: Path, changed: str) -> None:
    folder = tmp_path / "run"
    old = defined(tmp_path, b"MODEL = 1", helper="1")
    new = defined(tmp_path, b"MODEL = 2", helper="1")
    if changed == "helper":
        new = defined(tmp_path, b"MODEL = 1", helper="2")
    with pytest.raises(KeyboardInterrupt):
        run(small, folder, second_epoch(), custom=old)
    recorder = Recorder()
    run(small, folder, recorder, custom=new)
    (line,) = [line for line in recorder.lines if line.startswith("these files changed since")]
    assert changed in line
    assert (folder / "code.py").read_bytes() == new.source


def test_changed_network_that_does_not_fit_the_checkpoint_is_refused(
    small: Config, tmp_path: Path
) -> None:
    folder, wider = tmp_path / "run", defined(tmp_path, b"MODEL = 2", values=9)
    with pytest.raises(KeyboardInterrupt):
        run(
            small,
            folder,
            second_epoch(),
            custom=defined(tmp_path, b"MODEL = 1"),
        )
    before = files(folder)
    with pytest.raises(UserError, match=r"mine\.py.*--fresh"):
        run(small, folder, custom=wider)
    assert {name: content for name, content in files(folder).items() if name in before} == before
    recorder = Recorder()
    run(small, folder, recorder, custom=wider, fresh=True)
    assert " starts: " in recorder.lines[0]


@pytest.mark.parametrize(
    ("platform", "precision", "text"),
    [
        ("cpu", None, ""),
        ("gpu", None, " in float32 (matrix products: default)"),
        ("tpu", "highest", " in float32 (matrix products: highest)"),
    ],
)
def test_first_line_names_the_precision_of_an_accelerator(
    small: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    platform: str,
    precision: str | None,
    text: str,
) -> None:
    monkeypatch.setattr(start, "_device", lambda _: Device(platform=platform, kind="X1", count=1))
    recorder = killed_at(" starts: ")
    with jax.default_matmul_precision(precision), pytest.raises(KeyboardInterrupt):
        run(small, tmp_path, recorder)
    assert recorder.lines[0].endswith(f"test images, on 1 × X1{text}; {tmp_path}")


@pytest.mark.parametrize(
    ("precision", "flags", "warns"),
    [("bfloat16", (), True), ("bfloat16", ("amx_bf16",), False), ("float32", (), False)],
)
def test_bfloat16_is_slower_on_a_cpu_without_units(
    make_config: Make,
    tmp_path: Path,
    monkeypatch,
    precision: str,
    flags: tuple[str, ...],
    warns: bool,
) -> None:
    processor = runtime.Processor("test", frozenset(flags))
    monkeypatch.setattr(runtime, "processor", lambda: processor)
    monkeypatch.setattr(devices, "has_onednn", lambda: True)
    settings = TINY | {"model__name": "mine", "epochs": 1}
    config, recorder = make_config(**settings, train__precision=precision), Recorder()
    run(config, tmp_path / "run", recorder, custom=CustomParts(model=Typed))
    lines = [line for line in recorder.lines if "bfloat16 is slower than float32" in line]
    assert len(lines) == warns
