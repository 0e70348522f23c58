"""Trains a run from its config to its result: the one place that wires all the rest together."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import jax

from cifar_jax import catalog, distributed, models
from cifar_jax.config import Config, execution, flatten
from cifar_jax.errors import UserError
from cifar_jax.runs import environment, schema
from cifar_jax.runs.checkpoints import Checkpoints, DamagedError, Meta
from cifar_jax.runs.folder import Workdir, finished_result, open_workdir
from cifar_jax.training import setup, signals
from cifar_jax.training.display import Display
from cifar_jax.training.loop import Progress, Trainer, epochs_over, planned
from cifar_jax.training.plan import Plan
from cifar_jax.training.result import measure_result, params_sha256
from cifar_jax.training.setup import Setup


class Run(NamedTuple):
    """What is asked for: an experiment with its settings, a seed, and a folder."""

    experiment: str
    config: Config
    seed: int
    workdir: Path
    overrides: Mapping[str, Any] = {}
    """Settings that differ from the experiment file's, by dotted name."""
    fresh: bool = False
    """Begin anew, whatever the folder holds."""
    initial: Callable[[], Mapping[str, Any]] | None = None
    """Reads the variables that `train.init_from` names. Called where there is no checkpoint yet."""
    extend: bool = False
    """Let a run that is in the folder have more epochs than it was made with."""
    own: models.CustomModel | None = None
    """The model, where the config names none of the package's."""

    def identity(self) -> dict[str, Any]:
        """What config.json holds; a folder that holds another is refused."""
        return {
            "experiment": self.experiment,
            "seed": self.seed,
            "overrides": dict(self.overrides),
            "config": flatten(self.config),
        }


def fit(run: Run, display: Display) -> dict[str, Any]:
    """Train `run`, or go on with it, or find it finished; returns what result.json holds.

    Of several processes all must call it, with the same `run`. The first writes for all, but for
    the checkpoints, which orbax writes from every process.

    Raises:
      UserError: settings that do not fit each other, the data or the folder, a loss that is
        no longer finite. What stops one process so, stops all.
      OSError: the system refuses something, such as room on the disk; it names the file.
      Stopped: a signal asked for it; what there was to save is saved.
    """
    began = time.perf_counter()
    with signals.remembered() as received:
        with received.at_once():
            if (finished := _finished(run)) is not None:
                display.note(f"{run.workdir} is finished; --fresh would train it anew")
                return finished
            begins = run.fresh or not Workdir(run.workdir).checkpoints.is_dir()
            if begins:
                distributed.run_on_all(lambda: setup.check_beginning(run.config, run.own))
            initial = distributed.run_on_all(lambda: _initial(run))
            workload = distributed.run_on_all(lambda: setup.workload(run.config, own=run.own))
            if len(set(distributed.allgather(workload.dataset.fingerprint))) > 1:
                raise UserError(f"the processes have different images of {workload.dataset.name}")
            if begins:
                setup.check_average(run.config, workload.plan.steps)
            distributed.run_on_all(lambda: _hold_to_the_weights(run, workload))
            # Before the folder is opened, since weights that do not fit must leave it as it is.
            beginning = setup.init_state(workload, run.seed, initial)
        keep = run.config.train.keep_checkpoints
        with _opened(run) as workdir, Checkpoints(workdir.checkpoints, keep) as checkpoints:
            with received.at_once():
                told = distributed.run_on_main(lambda: _begin(run, workload, workdir, initial))
                state, meta, damaged = checkpoints.restore_newest(beginning)
                extra = meta.extra if meta else {}
                plan = planned(workload, extra.get("epochs"))
                # An epoch may have been written down whose checkpoint was not finished.
                epoch = epochs_over(plan, state)
                if run.extend:  # not before all is seen to fit, since it takes the result away
                    distributed.run_on_main(lambda: workdir.extend(run.identity()))
                rows = distributed.run_on_main(lambda: workdir.rewind(epoch))
                told += distributed.run_on_main(lambda: _keep_code(run, workdir))
            log = workdir.log if distributed.is_main_process() else Path(os.devnull)
            with display.showing(log, run.experiment, len(plan.epochs), plan.steps):
                told += map(str, damaged)
                if len(rows) != epoch:
                    told.append(f"metrics.jsonl has lost {epoch - len(rows)} of {epoch} epochs")
                told = [_headline(run, workload, plan, meta), *_sizes(run.config, plan), *told]
                for text in told:
                    display.line(text)
                earlier = rows[-1]["wall_seconds"] if rows else 0.0
                progress = Progress.saved(extra, began, earlier)
                trainer = Trainer(
                    *(run.config, run.seed, workload, workdir, checkpoints, display, received),
                    *(progress, rows, run.initial),
                )
                with distributed.together():
                    state, compile_seconds = trainer.train(state)
                    checkpoints.wait()
                if trainer.plan.steps < workload.plan.steps:  # to fit into some minutes
                    setup.check_average(run.config, trainer.plan.steps, over=True)
                with received.at_once(), distributed.together():
                    done = workload._replace(plan=trainer.plan)
                    outcome, logits = measure_result(
                        run.config, done, state, rows, checkpoints, display, received.check
                    )
            starts = distributed.run_on_main(workdir.starts)
            result = {
                "experiment": run.experiment,
                "seed": run.seed,
                "overrides": dict(run.overrides),
                "settings": flatten(run.config),
                **outcome,
                "wall_seconds": round(progress.elapsed(), 1),
                "halvings": progress.halvings,
                "compile_seconds": round(compile_seconds, 1),
                **{key: starts[-1][key] for key in ("git_commit", "versions", "device", "machine")},
                "starts": starts,
            }
            distributed.run_on_main(lambda: workdir.write_result(result, logits))
        received.check()
    return result


def _finished(run: Run) -> dict[str, Any] | None:
    if run.fresh:
        return None

    def read() -> dict[str, Any] | None:
        result = finished_result(run.workdir, run.identity(), extend=run.extend)
        if result is None:
            return None
        return schema.checked_result(result, run.workdir / "result.json")

    return distributed.run_on_main(read)


def _initial(run: Run) -> Mapping[str, Any] | None:
    """What the weights begin with, where that is not behind the run: it may be gone since."""
    workdir = Workdir(run.workdir)
    if run.initial and not run.fresh and workdir.checkpoints.is_dir():
        with Checkpoints(workdir.checkpoints) as checkpoints:
            if checkpoints.latest() is not None:
                return None
    return run.initial() if run.initial else None


@contextmanager
def _opened(run: Run) -> Iterator[Workdir]:
    """The run's folder, which the first process opens for all of them."""
    with ExitStack() as stack:

        def open_it() -> None:
            stack.enter_context(
                open_workdir(run.workdir, run.identity(), fresh=run.fresh, extend=run.extend)
            )

        distributed.run_on_main(open_it)
        if not all(distributed.allgather((run.workdir / "config.json").exists())):
            raise UserError(
                f"{run.workdir} is not the same folder in every process: "
                "choose a --workdir on a file system that they share"
            )
        yield Workdir(run.workdir)


def _begin(
    run: Run, workload: Setup, workdir: Workdir, initial: Mapping[str, Any] | None
) -> list[str]:
    """Hold data and first weights to the run's, and write down this start; returns what is to be
    told.

    Raises:
      UserError: the run was begun with other images, or in another order, or with other weights.
    """
    card, now = workdir.card(), model_card(run, workload)
    begun_with = "initial_params_sha256"
    if initial is not None:
        now[begun_with] = params_sha256(initial["params"])
    images = workdir.images()
    if images is not None and images["sha256"] != now["data"]["sha256"]:
        same = images["content"] == now["data"]["content"]
        what = "in another order, so that it would go on with others" if same else "others here"
        raise UserError(
            f"{workdir.path} was begun with images of {images['name']} that are {what}: "
            "set TFDS_DATA_DIR to the folder that it was begun with, or choose another --workdir"
        )
    if card is None:
        workdir.write_card(now)
    elif initial is not None and card.get(begun_with, now[begun_with]) != now[begun_with]:
        raise UserError(
            f"{run.config.train.init_from} has other weights than {workdir.path} was begun with: "
            "choose another --workdir, or --fresh"
        )
    workdir.record_start(_device(workload), execution(run.config))
    differing = environment.differences(workdir.starts())
    if not differing:
        return []
    return [f"not bit for bit what one start would come to: {', '.join(differing)}"]


def _hold_to_the_weights(run: Run, workload: Setup) -> None:
    """See that a model that is now defined otherwise fits what was trained, before it is touched.

    Raises:
      UserError: it does not.
    """
    workdir = Workdir(run.workdir)
    told = None if run.fresh else _changed_code(run, workdir)
    if told and workdir.checkpoints.is_dir():
        with Checkpoints(workdir.checkpoints) as checkpoints:
            step = checkpoints.latest()
            try:
                weights = checkpoints.weights(step) if step is not None else None
            except DamagedError:
                weights = None  # what there is to be told of it, is told where it is restored
        if weights:
            shapes = models.variable_shapes(workload.recipe.model)
            try:
                models.match_variables(weights, shapes, "its checkpoint")
            except UserError as error:
                raise UserError(f"{told}: {error}; choose another --workdir, or --fresh") from None


def _keep_code(run: Run, workdir: Workdir) -> list[str]:
    """Keep what defines a model of one's own beside its weights; returns what is to be told."""
    told = _changed_code(run, workdir)
    if run.own and run.own.file:
        workdir.write_code(run.own.source, run.own.file.name)
    return [f"{told}; model.py in its folder is renewed"] if told else []


def _changed_code(run: Run, workdir: Workdir) -> str | None:
    """In words, that the model is defined otherwise than when the run was last started."""
    if not run.own or not run.own.file or not workdir.code.exists():
        return None
    if catalog.same_model(workdir.code.read_bytes(), run.own.source):
        return None
    return f"{run.own.file} defines the model otherwise than when {workdir.path} was last started"


def model_card(run: Run, workload: Setup) -> dict[str, Any]:
    """What is needed to use the model without the run: network, classes, inputs, data."""
    dataset, model = workload.dataset, run.config.model
    return {
        "version": 1,
        "experiment": run.experiment,
        "seed": run.seed,
        "model": {
            "name": model.name,
            "dropout": model.dropout,
            "pooling": model.pooling,
            "num_classes": len(dataset.classes),
        },
        "classes": list(dataset.classes),
        "input_shape": list(models.IMAGE_SHAPE),
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "tta": run.config.tta.model_dump(),
        "data": {
            "name": dataset.name,
            "sha256": dataset.fingerprint,
            "content": dataset.content,
            "official": dataset.official,
            "train_images": len(workload.train.labels),
            "validation_images": len(workload.validation.labels),
        },
        "paper_accuracy": run.config.paper.test_accuracy if run.config.paper else None,
    }


def _headline(run: Run, workload: Setup, plan: Plan, meta: Meta | None) -> str:
    device = _device(workload)
    source = run.config.train.init_from
    begun = "begins" + (f" with the weights of {source}" if source else "")
    if meta:
        begun = f"goes on from step {meta.step}"
    steps = " or ".join(map(str, sorted({epoch.steps for epoch in plan.epochs})))
    return (
        f"{run.experiment} seed {run.seed} {begun}: "
        f"{len(plan.epochs)} epochs of {steps} steps on {workload.dataset.name}, "
        f"{len(workload.train.labels)} training and {len(workload.validation.labels)} validation "
        f"images, on {device['count']} × {device['kind']}{_arithmetic(run, device)}; {run.workdir}"
    )


def _sizes(config: Config, plan: Plan) -> list[str]:
    """Which epochs have which image size, where phases have several: few epochs pass over some.
    Under `train.max_minutes` it is not known yet."""
    if config.train.max_minutes or not any(phase.image_size for phase in config.phases):
        return []
    spans = []
    for size, epochs in groupby(plan.epochs, lambda epoch: epoch.stage.image_size):
        first, *rest = [epoch.number + 1 for epoch in epochs]
        spans.append(f"of {size} pixels in epoch{f's {first}–{rest[-1]}' if rest else f' {first}'}")
    return ["images are " + ", ".join(spans)]


def _arithmetic(run: Run, device: Mapping[str, Any]) -> str:
    """On an accelerator, which may compute in less than what its arrays hold."""
    if device["platform"] == "cpu":
        return ""
    precision = jax.config.jax_default_matmul_precision or "default"  # pyright: ignore[reportAttributeAccessIssue]
    return f" in {run.config.train.precision}, products in {precision} precision"


def _device(workload: Setup) -> dict[str, Any]:
    device = workload.mesh.devices.flat[0]
    return {"platform": device.platform, "kind": device.device_kind, "count": workload.mesh.size}
