"""What is recorded: whose images and accuracy are the run's own, and what is on its way."""

from pathlib import Path

import pytest
from run_folders import MakeRun, record

from cifar_jax import report
from cifar_jax.errors import UserError


@pytest.mark.parametrize("digest", ["0ddba11", "f00d"])
def test_other_images_are_known_by_their_digest(
    make_run: MakeRun, tmp_path: Path, digest: str
) -> None:
    """Whether it is less or more than that of the official images."""
    with pytest.raises(UserError, match="other images than the official CIFAR-10's"):
        record(make_run("basic", data_sha256=digest), tmp_path / "results")


@pytest.mark.parametrize("accuracy", [61.92, 62.08])
def test_an_image_or_two_either_way_are_rounding(
    make_run: MakeRun, tmp_path: Path, accuracy: float
) -> None:
    assert record(make_run("basic", test=62.0), tmp_path / "results", accuracy).exists()


@pytest.mark.parametrize(("done", "lost"), [(12, 0), (12, 7), (101, None)])
def test_a_run_on_its_way_lacks_no_epoch_and_has_none_too_many(
    make_run: MakeRun, tmp_path: Path, done: int, lost: int | None
) -> None:
    folder = make_run("net", test=None, done=done)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for i, line in enumerate(lines) if i != lost]
    (folder / "metrics.jsonl").write_text("".join(kept))
    with pytest.raises(UserError, match=r"metrics\.jsonl lacks epochs"):
        record(folder, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_a_full_record_leaves_what_else_is_on_its_way(make_run: MakeRun, tmp_path: Path) -> None:
    """And no empty folder behind the last."""
    results = tmp_path / "kept"
    for seed in (0, 1):
        record(make_run("net", seed, test=None, done=2), results)
    record(make_run("net", 0, folder="full/0"), results)
    full, partial = report.read_runs([results])
    assert (full.seed, partial.seed) == (0, 1)
    assert full.result
    assert partial.result is None
    record(make_run("net", 1, folder="full/1"), results)
    assert [run.seed for run in report.read_runs([results]) if run.result] == [0, 1]
    assert not (results / "partial").exists()
