import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import MakeRun, record

from cifar_jax import cli, report
from cifar_jax.errors import UserError
from cifar_jax.report.table import row
from cifar_jax.runs import records
from cifar_jax.runs.reading import read_run

CLEAN, DIRTY = "0123456789abcdef0123456789abcdef01234567", "89abcdef-dirty"


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


def test_a_record_holds_what_its_run_left(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("net-attention", 3, test=62.4, starts=[{}, {"machine": {"cpu": "Xeon"}}])
    path = record(folder, tmp_path / "results")
    assert sorted(content(tmp_path / "results")) == [
        "net-attention-seed3.json",
        "net-attention-seed3.metrics.jsonl",
        "net-attention-seed3.outputs.npz",
    ]
    told = json.loads(path.read_text())
    assert told.items() >= json.loads((folder / "result.json").read_text()).items()
    assert told["settings"] == json.loads((folder / "config.json").read_text())["config"]
    assert [start["machine"]["cpu"] for start in told["starts"]][1] == "Xeon"
    assert "/home/me" not in path.read_text()

    (run,) = report.read_runs([path])
    of_folder = read_run(folder)
    assert run.rows == of_folder.rows
    assert (run.epochs, run.seed, run.changes) == (50, 3, {})
    assert run.outputs
    kept = records.read_outputs(run.outputs)
    assert kept.accuracy() == pytest.approx(62.4)
    assert (kept.logits.dtype, kept.labels.dtype) == (np.float16, np.uint8)
    assert run.outputs.stat().st_size < 210_000


@pytest.mark.parametrize(
    "overrides",
    [
        {"data.validation": 2000.0},
        {"train.log_every": 7, "train.devices": 4, "train.steps_per_call": 10},
    ],
)
def test_what_counts_is_what_the_settings_are(
    make_run: MakeRun, tmp_path: Path, overrides: dict[str, Any]
) -> None:
    """However they were given; and how a run is carried out makes it no other run."""
    path = record(make_run("basic", overrides=overrides), tmp_path / "results")
    (group, *_) = report.collect(report.read_runs([path]))
    assert group.paper
    assert len(group.results) == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"overrides": {"epochs": 2}}, r"other settings than basic today: epochs=2 \(now 20\)"),
        ({"git_commit": None}, "no git commit"),
        ({"git_commit": DIRTY}, r"changes not committed \(89abcdef-dirty\)"),
        ({"starts": [{"git_commit": DIRTY}, {}]}, r"changes not committed \(89abcdef-dirty\)"),
        ({"data_sha256": "5ub5e7"}, "other images than the official CIFAR-10's"),
        ({"data_official": False}, "other images than the official CIFAR-10's"),
        ({"halvings": 1}, "went on at a lower learning rate than its experiment's"),
        ({"epochs": 19}, r"result\.json is not of the run beside it \(epochs\)"),
        ({"train_loss": 0.5}, r"result\.json is not of the run beside it \(train_loss\)"),
        ({"test": None, "done": 0}, r"metrics\.jsonl lacks epochs"),
    ],
)
def test_what_is_no_record_is_refused(
    make_run: MakeRun, tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    folder = make_run("basic", **options)
    with pytest.raises(UserError, match=told) as error:
        record(folder, tmp_path / "results")
    assert str(folder) in str(error.value)
    assert not (tmp_path / "results").exists()


def test_a_run_at_half_its_rate_is_not_the_papers(make_run: MakeRun) -> None:
    paths = [make_run("basic", seed, halvings=seed) for seed in range(2)]
    own, halved = (
        group for group in report.collect(report.read_runs(paths)) if group.experiment == "basic"
    )
    assert (len(own.runs), own.changes) == (1, {})
    assert (len(halved.runs), halved.changes, halved.paper) == (1, {"halvings": 1}, None)


def test_an_unfinished_run_at_half_its_rate_is_no_record(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("basic", test=None, done=3)
    *lines, last = (folder / "metrics.jsonl").read_text().splitlines()
    lines.append(json.dumps(json.loads(last) | {"halvings": 1}))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match="went on at a lower learning rate"):
        record(folder, tmp_path / "results")


def test_a_record_names_every_start(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("basic")
    (folder / "env.json").unlink()
    with pytest.raises(UserError, match=r"has no env\.json"):
        record(folder, tmp_path / "results")
    assert report.collect(report.read_runs([folder]))[0].results  # it is reported all the same


@pytest.mark.parametrize("lost", [0, 7, 19, None])
def test_a_record_has_the_metrics_of_every_epoch(
    make_run: MakeRun, tmp_path: Path, lost: int | None
) -> None:
    folder = make_run("basic")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [] if lost is None else [line for i, line in enumerate(lines) if i != lost]
    (folder / "metrics.jsonl").write_text("".join(kept))
    with pytest.raises(UserError, match=r"lacks epochs|not of the run"):
        record(folder, tmp_path / "results")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("epochs", [19, 21])
def test_a_record_has_as_many_epochs_as_were_asked_for(
    make_run: MakeRun, tmp_path: Path, epochs: int
) -> None:
    """Also where the result is of the last that is there."""
    folder = make_run("basic")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [*rows, rows[-1] | {"epoch": 21}][:epochs]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = json.loads((folder / "result.json").read_text())
    result |= {name: rows[-1][name] for name in ("train_loss", "validation_loss")}
    (folder / "result.json").write_text(json.dumps(result))
    with pytest.raises(UserError, match=r"lacks epochs|\(epochs: 19 in metrics\.jsonl\)"):
        record(folder, tmp_path / "results")


@pytest.mark.usefixtures("more_experiments")
@pytest.mark.parametrize(("epochs", "kept"), [(14, 14), (20, 20), (14, 13), (14, 15), (21, 21)])
def test_a_run_that_was_fitted_into_its_minutes_has_the_epochs_that_it_had(
    make_run: MakeRun, tmp_path: Path, epochs: int, kept: int
) -> None:
    """As its result tells them: no more than were asked for, and each with its metrics."""
    folder = make_run("timed", epochs=epochs)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [*rows, rows[-1] | {"epoch": 21}][:kept]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = json.loads((folder / "result.json").read_text())
    result |= {name: rows[-1][name] for name in ("train_loss", "validation_loss")}
    (folder / "result.json").write_text(json.dumps(result))
    if (epochs, kept) not in [(14, 14), (20, 20)]:
        with pytest.raises(UserError, match=r"lacks epochs|is not of the run"):
            record(folder, tmp_path / "results")
        return
    (run,) = report.read_runs([record(folder, tmp_path / "results")])
    assert run.epochs == epochs == len(run.rows)
    other = read_run(make_run("timed", 1, epochs=18))
    (group,) = (group for group in report.collect([run, other]) if group.runs)
    assert row(group).epochs == f"{min(epochs, 18)}–{max(epochs, 18)}"


def test_a_run_without_validation_images_is_recorded(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("fast-basic", test=68.0, best_validation_test_accuracy=None)
    (run,) = report.read_runs([record(folder, tmp_path / "results")])
    (group,) = (group for group in report.collect([run]) if group.runs)
    assert group.changes == {}
    assert (row(group).measured, row(group).best) == ("68.00", "")


def test_outputs_must_give_the_accuracy_of_the_result(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("basic", test=62.0)
    with pytest.raises(UserError, match=r"give 61\.80 %, its result\.json says 62\.00 %"):
        record(folder, tmp_path / "results", 61.8)
    with pytest.raises(UserError, match="outputs"):
        records.record(read_run(folder), tmp_path / "results", None)
    assert not (tmp_path / "results").exists()
    # float16 moves an image or two
    assert record(folder, tmp_path / "results", 62.02).exists()


def test_official_images_in_another_order_are_official(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("basic", data_official=True, data_sha256="another order")
    assert record(folder, tmp_path / "results").exists()


def test_a_record_appears_whole_or_not_at_all(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results"
    record(make_run("basic", test=62.0), results)
    before = content(results)
    written: list[Path] = []
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        written.append(path)
        if len(written) == 3:
            write(path, data[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="cannot be written: No space left"):
        record(make_run("basic", test=63.0, folder="again"), results)
    assert content(results) == before
    assert len(list(results.iterdir())) == 3


@pytest.mark.parametrize("suffix", [".metrics.jsonl", ".outputs.npz"])
def test_a_record_without_its_files_is_told(make_run: MakeRun, tmp_path: Path, suffix: str) -> None:
    path = record(make_run("basic"), tmp_path / "results")
    path.with_name(path.stem + suffix).unlink()
    with pytest.raises(
        UserError, match=f"basic-seed0.json is incomplete: there is no basic-seed0{suffix}"
    ):
        report.read_runs([tmp_path / "results"])


@pytest.mark.parametrize(
    "damage", ["cut", "flipped", "empty", "npy", "fewer labels", "more labels", "none", "1-D"]
)
def test_damaged_outputs_are_told(make_run: MakeRun, tmp_path: Path, damage: str) -> None:
    record(make_run("basic"), tmp_path / "results")
    (run,) = report.read_runs([tmp_path / "results"])
    assert run.outputs
    whole = run.outputs.read_bytes()
    if damage in ("cut", "flipped", "empty"):
        flipped = whole[:300] + bytes([whole[300] ^ 255]) + whole[301:]
        run.outputs.write_bytes({"cut": whole[:1000], "flipped": flipped, "empty": b""}[damage])
    else:
        with run.outputs.open("wb") as file:
            if damage == "npy":
                np.save(file, np.zeros(3))
            else:
                sizes = {"fewer labels": 2, "more labels": 4, "1-D": 3, "none": 0}
                logits = np.zeros((0 if damage == "none" else 3, 10))
                logits = logits[:, 0] if damage == "1-D" else logits
                np.savez(file, logits=logits, labels=np.zeros(sizes[damage]))
    with pytest.raises(UserError, match=r"outputs\.npz (cannot be read|does not hold)") as error:
        records.read_outputs(run.outputs)
    assert "\n" not in str(error.value)


def test_a_run_on_its_way_is_a_record_of_its_own_kind(make_run: MakeRun, tmp_path: Path) -> None:
    results = tmp_path / "results"
    path = record(make_run("net", test=None, done=12), results)
    assert sorted(content(results)) == [
        "partial/net-seed0.json",
        "partial/net-seed0.metrics.jsonl",
    ]
    (run,) = report.read_runs([path])
    assert run.result is None
    assert len(run.rows) == 12
    group = report.collect([run])[1]
    assert (group.experiment, group.results, group.unfinished) == ("net", [], [run])

    # A full record replaces it, and is not replaced by one.
    record(make_run("net", folder="full"), results)
    assert "partial/net-seed0.json" not in content(results)
    with pytest.raises(UserError, match=r"is not finished, and .* is of a run that is"):
        record(make_run("net", test=None, done=3, folder="late"), results)


def test_a_record_needs_one_run_of_a_known_experiment(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("basic", 0)
    make_run("basic", 1)
    with pytest.raises(UserError, match="2 runs"):
        record(tmp_path / "runs", tmp_path / "results")
    for name in ("config.json", "result.json"):
        told = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps(told | {"experiment": "mine"}))
    with pytest.raises(UserError, match="not in experiments/"):
        record(run, tmp_path / "results")


def test_the_command_records_all_or_refuses_all(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    good = make_run("net", test=None, done=2)
    bad = make_run("basic", overrides={"epochs": 2})
    assert cli.run(["report", "--record", str(results), str(good), str(bad)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not results.exists()
    assert cli.run(["report", "--record", str(results), str(good)]) == 0
    assert capsys.readouterr().out == f"recorded {results / 'partial' / 'net-seed0.json'}\n"
    assert cli.run(["report", "--record", str(results)]) == 2
    capsys.readouterr()
    readme = tmp_path / "README.md"
    readme.write_text("nothing")
    for words in (["--record", str(results), str(good)], ["--output", "here"], [str(good)]):
        assert cli.run(["report", "--readme", str(readme), *words]) == 2
        assert "exclude each other" in capsys.readouterr().err
