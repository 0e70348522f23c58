"""Test schedules, clipping, class weights, the best epoch and early stopping.

Expected values come from PyTorch or are written in the test.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from short_runs import Recorder, assert_same_run, killed_at, result_of, rows_of, train
from tiny import DATASET, TINY

from cifar_jax.config import Config, Optimizer, Schedule
from cifar_jax.errors import UserError
from cifar_jax.logits import balanced_accuracy
from cifar_jax.runs import best_epoch
from cifar_jax.runs.checkpoints import Checkpoints
from cifar_jax.runs.schemas import MetricsRow
from cifar_jax.training import losses, schedules
from cifar_jax.training.optimizers import make_optimizer
from cifar_jax.training.schedules import StepInfo
from cifar_jax.training.setup import build_setup

Make = Callable[..., Config]
pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch", reason="needs the extra `torch`")


def torch_rates(torch: Any, scheduler: Callable[[Any], Any], count: int) -> list[float]:
    """Return the learning rates of the first `count` updates with a PyTorch scheduler."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    rates, schedule = [], scheduler(optimizer)
    for _ in range(count):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_warmup_cosine_equals_pytorch(torch: Any) -> None:
    from torch.optim import lr_scheduler as ours

    schedule = schedules.make(Schedule(name="warmup-cosine", warmup=0.2, start=0.1, end=0.05))
    rates = jax.vmap(lambda step: schedule(StepInfo(step, 0, 50)))(jnp.arange(50))
    expected = torch_rates(
        torch,
        lambda optimizer: ours.SequentialLR(
            optimizer,
            [
                ours.LinearLR(optimizer, 0.1, total_iters=10),
                ours.CosineAnnealingLR(optimizer, 40, eta_min=0.05),
            ],
            milestones=[10],
        ),
        50,
    )
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


def test_milestones_equal_pytorch(torch: Any) -> None:
    schedule = schedules.make(Schedule(name="milestones", milestones=(3, 4, 9), factor=0.3))
    rates = jax.vmap(lambda epoch: schedule(StepInfo(0, epoch, 12)))(jnp.arange(12))
    expected = torch_rates(
        torch,
        lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 4, 9], gamma=0.3),
        12,
    )
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


@pytest.mark.parametrize("clip_norm", [0.5, 1e6])
def test_clipped_update_equals_pytorch(torch: Any, clip_norm: float) -> None:
    """The norm is computed over the gradients of all parameters, without the weight decay."""
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 4), "b": (5,)}
    params, grads = (
        {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        for _ in range(2)
    )
    optimizer = make_optimizer(Optimizer(momentum=0, weight_decay=0.1), clip_norm=clip_norm)
    state = optimizer.init(params)
    updates, _ = optimizer.update(grads, state, params, rates=jnp.float32([1]))
    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in params.items()}
    for name, parameter in theirs.items():
        parameter.grad = torch.tensor(grads[name])
    torch.nn.utils.clip_grad_norm_(theirs.values(), clip_norm)
    torch.optim.SGD(theirs.values(), lr=1.0, weight_decay=0.1).step()
    for name, parameter in theirs.items():
        change = parameter.detach().numpy() - params[name]
        np.testing.assert_allclose(updates[name], change, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("kind", ["classes", "probabilities"])
def test_class_weights_equal_pytorch(torch: Any, kind: str, smoothing: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(16, 4)).astype(np.float32)
    labels: Any = rng.integers(0, 4, 16)
    if kind == "probabilities":
        labels = rng.dirichlet(np.ones(4), 16).astype(np.float32)
    weights = np.float32([0.5, 2, 1, 4])
    theirs = torch.nn.CrossEntropyLoss(torch.tensor(weights), label_smoothing=smoothing)
    our_loss = losses.weighted_cross_entropy(
        jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(weights), smoothing
    )
    expected = theirs(torch.tensor(logits), torch.tensor(labels))
    np.testing.assert_allclose(our_loss.mean(), expected, rtol=1e-5)


def test_balanced_weights_and_balanced_accuracy() -> None:
    """The expected values follow the definitions of scikit-learn."""
    np.testing.assert_allclose(
        losses.balanced_weights(np.array([6, 3, 1])), [10 / 18, 10 / 9, 10 / 3]
    )
    logits = np.eye(4)[[0, 0, 1, 1, 2]]
    labels = np.array([0, 0, 0, 1, 1])  # No image has the class 2 or 3.
    assert balanced_accuracy(logits, labels) == pytest.approx(100 * (2 / 3 + 1 / 2) / 2)


def test_class_weights_reach_the_loss(make_config: Make) -> None:
    logits, labels = jnp.eye(5), jnp.arange(5)
    setup = build_setup(make_config(**TINY, loss__class_weights="balanced"), dataset=DATASET)
    weights = losses.balanced_weights(np.bincount(setup.train.labels, minlength=5))
    expected = losses.cross_entropy(logits, labels) * weights / weights.mean()
    np.testing.assert_allclose(setup.spec.loss(logits, labels), expected, rtol=1e-5)
    with pytest.raises(UserError, match=r"class_weights has 2 weights, but .* has 5 classes"):
        build_setup(make_config(**TINY, loss__class_weights="[1,2]"), dataset=DATASET)


# The best epoch


def row(epoch: int, loss: float, accuracy: float, balanced: float) -> MetricsRow:
    return MetricsRow(
        epoch=epoch,
        step=epoch,
        train_loss=1,
        train_accuracy=1,
        validation_loss=loss,
        validation_accuracy=accuracy,
        validation_balanced_accuracy=balanced,
        learning_rate=1,
        images_per_second=1,
        wall_seconds=1,
    )


def test_epochs_without_improvement_of_each_metric() -> None:
    rows = [row(1, 0.9, 60, 70), row(2, 0.5, 60, 50), row(3, 0.7, 55, 70), row(4, 0.8, 50, 80)]
    counts = {
        name: best_epoch.epochs_without_improvement(rows, name)
        for name in ("accuracy", "loss", "balanced-accuracy")
    }
    assert counts == {"accuracy": 3, "loss": 2, "balanced-accuracy": 0}


@pytest.mark.parametrize("best_by", ["accuracy", "loss", "balanced-accuracy"])
def test_best_checkpoint_is_the_best_epoch(make_config: Make, tmp_path: Path, best_by: str) -> None:
    rate = {"optimizer__lr": 5, "epochs": 6}  # The validation metrics rise and fall.
    config = make_config(**TINY | rate | {"model__name": "dense"}, train__best_by=best_by)
    train(config, tmp_path)
    column = f"validation_{best_by.replace('-', '_')}"
    values = [entry[column] * (-1 if best_by == "loss" else 1) for entry in rows_of(tmp_path)]
    last_of_best = len(values) - values[::-1].index(max(values))
    assert result_of(tmp_path)["best_validation_epoch"] == last_of_best
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        best = checkpoints.best()
    assert best
    assert best.epoch == last_of_best


EVERY_PART: dict[str, Any] = {
    **{"schedule__name": "warmup-cosine", "clip_norm": 0.1, "loss__class_weights": "balanced"},
    **{"train__best_by": "balanced-accuracy", "train__early_stopping": 2, "epochs": 9},
    **{"model__name": "dense", "optimizer__lr": 0.5},
}


@pytest.mark.parametrize("when", ["epoch 2/9", "early stopping"])
def test_run_with_every_part_stops_early_and_resumes_exactly(
    make_config: Make, tmp_path: Path, when: str
) -> None:
    config = make_config(**TINY | EVERY_PART)
    result = train(config, tmp_path / "whole", recorder := Recorder())
    values = [entry["validation_balanced_accuracy"] for entry in rows_of(tmp_path / "whole")]
    assert result.epochs == len(values) == values.index(max(values)) + 1 + 2 < 9
    assert sum(line.startswith("early stopping after epoch") for line in recorder.lines) == 1
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "killed", killed_at(when))
    train(config, tmp_path / "killed")
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    assert train(config, tmp_path / "whole").epochs == result.epochs


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train__early_stopping": 3}, "early_stopping=3 needs validation images"),
        ({"train__best_by": "loss"}, "best_by=loss needs validation images"),
    ],
)
def test_settings_that_need_validation_images(
    make_config: Make, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build_setup(make_config(**TINY | {"data__validation": 0}, **settings), dataset=DATASET)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule__name": "milestones"}, "needs schedule.milestones"),
        ({"schedule__milestones": "[1]"}, "no effect with schedule.name=constant"),
        ({"schedule__name": "milestones", "schedule__milestones": "[3,2]"}, "ascending order"),
        ({"schedule__name": "milestones", "schedule__milestones": "[1,2]"}, "has only 2 epochs"),
        ({"loss__class_weights": "[1,0]"}, "each class needs a weight above 0"),
        ({"loss__class_weights": "even"}, "expected balanced, a list"),
        ({"train__freeze": "backbone"}, "train.init_from names none"),
    ],
)
def test_settings_without_meaning_are_refused(
    make_config: Make, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_config(**settings)
