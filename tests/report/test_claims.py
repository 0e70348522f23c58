"""Test the verdicts on the conclusions of the paper."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import MakeRun
from scipy import stats

from cifar_jax import cli, config, report
from cifar_jax.cli import train
from cifar_jax.errors import UserError
from cifar_jax.report import paper
from cifar_jax.report.claims import CLAIMS, Judgment, judge
from cifar_jax.report.groups import SeedGroup
from cifar_jax.runs.run import experiments


def judgments(tmp_path: Path) -> dict[int, Judgment]:
    groups = report.collect(report.read_runs([tmp_path / "runs"]))
    return {judgment.number: judgment for judgment in judge(groups)}


def test_experiments_differ_only_in_the_settings_that_the_claim_allows() -> None:
    for claim in CLAIMS:
        a, b = (config.identity(experiments()[n]) for n in (claim.baseline, claim.variant))
        assert set(config.differences(a, b)) == set(claim.differs), claim.sentence
        # The paper's own accuracies agree with the claim.
        if (difference := claim.paper_difference) is not None:
            assert (difference > -claim.margin) == (claim.effect == "increase")


ACCURACIES = {
    "basic": [62.1, 61.5, 61.9],
    "net": [78.0, 77.2, 78.1],
    "net-bn-gap": [80.0, 80.4, 80.2],
    "net-attention": [82.1, 82.4, 82.4],
    "resnet18-sgd": [90.0, 91.0, 90.4],
    "resnet18-adam": [90.1, 90.8, 90.6],
    "resnet18-adam-lr1e-4": [91.0, 91.2, 91.1],
    "resnet10": [90.5, 90.73, 90.6],
    "resnet10-plateau": [89.0, 89.2, 89.1],
    "resnet10-separable": [84.5, 84.73, 84.6],
}
VERDICTS = {
    **{1: "holds", 2: "undecided", 4: "not tested", 5: "undecided", 6: "undecided"},
    3: "does not hold",  # The claim is a decrease, but the accuracy increases.
    7: "holds",  # The accuracy falls by 0.5 points, and 2 points are allowed.
    **{8: "does not hold", 9: "does not hold"},
}


def test_verdicts_equal_a_direct_computation_with_scipy(make_run: MakeRun, tmp_path: Path) -> None:
    for name, accuracies in ACCURACIES.items():
        for seed, accuracy in enumerate(accuracies):
            make_run(name, seed, test=accuracy)
    found = judgments(tmp_path)
    assert {number: judgment.verdict for number, judgment in found.items()} == VERDICTS
    del found[4]
    tested = []
    for judgment in found.values():
        a, b = (np.array(ACCURACIES[name]) for name in judgment.claim[1:3])
        interval = stats.ttest_rel(b, a).confidence_interval()
        assert judgment.difference == pytest.approx((b - a).mean())
        assert (judgment.low, judgment.high) == pytest.approx((interval.low, interval.high))
        tested.append((stats.ttest_rel(b + judgment.claim.margin, a).pvalue, judgment.p_value))
    largest = 0.0
    for rank, (raw, corrected) in enumerate(sorted(tested)):  # correction by Holm's method
        largest = max(largest, min(1.0, (9 - rank) * raw))
        assert corrected == pytest.approx(largest)


def test_unfinished_and_single_pairs(make_run: MakeRun, tmp_path: Path, capsys: Any) -> None:
    make_run("basic", 0, test=62.0)
    make_run("net", 0, test=None, done=12)
    make_run("resnet10", 0, test=89.0)
    make_run("resnet10-plateau", 0, test=90.0)
    make_run("resnet10-plateau", 1, test=None, done=3)
    make_run("resnet18-sgd", 0, test=None, done=1)
    found = judgments(tmp_path)
    assert found[4].verdict == "unfinished"  # Only the variant of claim 4 has a run.
    assert found[1].verdict == "unfinished"
    assert found[1].notes == ("net seed 0: epoch 12 of 100: validation 75.0 %.",)
    assert (found[8].verdict, found[8].seeds) == ("undecided: one seed", (0,))
    assert found[8].test_error == pytest.approx(100 * (0.01 * 0.99 / 1e4) ** 0.5, rel=1e-3)
    assert found[8].low is found[8].p_value is None
    assert cli.run(["claims", str(tmp_path / "runs")]) == 0
    out = capsys.readouterr().out
    assert "Claim 8: resnet10-plateau seed 1: epoch 3 of 135" in out
    assert "SE 0.10" in out


def test_pairs_that_differ_in_more_than_the_claim_are_refused(
    make_run: MakeRun, tmp_path: Path, capsys: Any
) -> None:
    change = {"data.flip": True}
    make_run("basic", 0)
    make_run("net", 0, overrides=change, folder="net@flip/seed0")
    make_run("resnet10", 0)
    make_run("resnet10-plateau", 0, data_content="other")
    assert cli.run(["claims", str(tmp_path / "runs")]) == 2
    out, err = capsys.readouterr()
    assert out.count("refused") == 2
    assert "claim 1: the runs of basic and net data.flip=true have different changes of data" in err
    assert "claim 8: the images of cifar10 at 32 pixels changed between " in err
    assert err.count("\n") == 1
    make_run("basic", 0, overrides=change, folder="basic@flip/seed0")
    judgment = judgments(tmp_path)[1]
    assert judgment.verdict == "undecided: one seed"
    assert judgment.notes == ("The runs have changed settings: data.flip=true.",)


def test_a_change_to_the_value_of_the_other_experiment_is_accepted(
    make_run: MakeRun, tmp_path: Path
) -> None:
    make_run("net", 0, overrides={"epochs": 50}, folder="net@50/seed0")
    make_run("net-bn-gap", 0)  # 50 epochs
    judgment = judgments(tmp_path)[2]
    assert (judgment.verdict, judgment.changed) == ("undecided: one seed", True)
    assert judgment.notes == ("The runs have changed settings: epochs=50.",)


def test_only_missing_runs_are_trained(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    make_run("basic", 0, folder="../mine/basic/seed0")
    make_run("net", 1, test=None, done=2)
    monkeypatch.chdir(tmp_path)
    requested = []

    def finish(requests: list[Any]) -> None:
        requested.extend(requests)
        make_run("basic", 1, test=61.0)
        make_run("net", 0, test=77.0)

    monkeypatch.setattr(train, "train_all", finish)
    assert cli.run(["claims", "mine", "--train", "--claim", "1", "--seeds", "2"]) == 0
    runs = [(request.experiment, request.seed, str(request.workdir)) for request in requested]
    assert runs == [
        ("basic", 1, "runs/basic/seed1"),
        *(("net", seed, f"runs/net/seed{seed}") for seed in (0, 1)),
    ]
    # The new run of `net` and the old run of `basic` are a pair.
    out = capsys.readouterr().out
    assert "undecided: one seed" in out
    assert "cifar-jax claims mine --train --claim 1\n" in out


def test_folders_without_trained_runs_do_not_matter(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["claims"]) == 0
    assert "There are no runs in runs/ or results/." in capsys.readouterr().err
    imported = make_run("basic", 0)
    card = json.loads((imported / "model.json").read_text())
    (imported / "model.json").write_text(json.dumps(card | {"imported_from": "basic.pth"}))
    assert cli.run(["claims"]) == 0
    make_run("net", 0, folder="../results/run")
    assert cli.run(["claims", "results"]) == 0


def test_a_seed_with_several_runs_and_changed_settings_are_mentioned(
    make_run: MakeRun, tmp_path: Path
) -> None:
    change = {"epochs": 20}
    for seed, accuracy in enumerate((89.0, 89.1, 89.5)):
        make_run("resnet10", seed, test=accuracy, overrides=change, folder=f"a/seed{seed}")
        make_run("resnet10-plateau", seed, test=89.2, overrides=change, folder=f"b/seed{seed}")
    make_run("resnet10", 0, test=99.0, overrides=change, folder="c/seed0")
    judgment = judgments(tmp_path)[8]
    assert judgment.difference == pytest.approx(0.0)
    assert judgment.notes == (
        "The runs have changed settings: epochs=20.",
        f"resnet10 epochs=20 seed 0 has 2 finished runs: {tmp_path}/runs/a/seed0 is used.",
    )
    assert (judgment.verdict, judgment.more_seeds) == ("undecided", None)


def test_verdict_on_an_experiment(make_run: MakeRun, tmp_path: Path) -> None:
    """The paper's accuracy of `resnet10` is 90.03 %, with a standard error of 0.3 points."""
    verdicts = {}
    for index, accuracy in enumerate((89.1, 88.9, 87.5)):
        folder = tmp_path / "runs" / str(index)
        make_run("resnet10", 0, test=accuracy, folder=f"{index}/seed0")
        (group,) = (g for g in report.collect(report.read_runs([folder])) if g.runs)
        verdicts[accuracy] = paper.verdict(group)
        low, high = paper.interval(group) or (0, 0)
        error = 1.96 * (2 * accuracy * (100 - accuracy) / 1e4) ** 0.5
        assert (low, high) == pytest.approx((accuracy - 90.03 - error, accuracy - 90.03 + error))
    assert verdicts == {89.1: "holds", 88.9: "undecided", 87.5: "does not hold"}
    assert paper.verdict(SeedGroup("resnet10", {}, ())) == "not tested"


def test_tables_of_the_page_are_updated(make_run: MakeRun, tmp_path: Path) -> None:
    page, results = tmp_path / "docs/paper.md", tmp_path / "results"
    page.parent.mkdir()
    tables = ("experiments", "claims", "variants")
    page.write_text("# Title\n" + "".join(f"<!-- {t} -->\nold\n<!-- /{t} -->\n" for t in tables))
    names = ("resnet10", "resnet10-decay", "resnet10-plateau")
    runs = [str(make_run(name, test=90.1)) for name in names]
    assert cli.run(["report", "--record", str(results), *runs]) == 0
    # A record of other settings than the current ones is in no table.
    record = results / "resnet10-plateau-seed0.json"
    record.write_text(record.read_text().replace('"optimizer.lr": 0.0001', '"optimizer.lr": 0.001'))
    assert paper.update_page(page, results)
    assert paper.page_is_current(page, results)
    text = page.read_text()
    assert "| 90.03 | 90.10 | 1 | +0.07 | −0.76 to +0.90 | **holds** |" in text
    assert "| `optimizer.weight_decay=0.0005` | 90.03 | 90.10 | +0.07 |" in text
    assert "\nold\n" not in text
    assert "| +2.06 |  |  |  |  | **not tested** |" in text
    page.write_text(text.replace("# Title", "# Title <!-- claims -->"))
    with pytest.raises(UserError, match="exactly once"):
        paper.update_page(page, results)
