"""Train a run: restore the state, loop over the epochs, evaluate, and save the result."""

import math
import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial

import jax
import jax.numpy as jnp

from cifar_jax import distributed
from cifar_jax.callbacks.base import Callback, CallbackList, CallMetrics, RunContext
from cifar_jax.callbacks.checkpoint import Checkpoint, diverged
from cifar_jax.callbacks.forecast import Forecast
from cifar_jax.callbacks.metrics_file import MetricsFile
from cifar_jax.callbacks.progress import Progress, result_line
from cifar_jax.callbacks.signals import StopOnSignal
from cifar_jax.callbacks.tensorboard import TensorBoard
from cifar_jax.errors import Stopped
from cifar_jax.logits import balanced_accuracy, loss_and_accuracy
from cifar_jax.runs import best_epoch
from cifar_jax.runs.schemas import MetricsRow, Result
from cifar_jax.training import start
from cifar_jax.training.compilation import CompiledSteps, compile_evaluation
from cifar_jax.training.evaluation import LogitsFn
from cifar_jax.training.request import RunRequest
from cifar_jax.training.result import write_result
from cifar_jax.training.schedules import StepInfo
from cifar_jax.training.setup import build_setup, initial_state
from cifar_jax.training.step import TrainState


def train(
    request: RunRequest, callbacks: Sequence[Callback] = (), progress: Progress | None = None
) -> Result | None:
    """Train a run and return its result, or None if the request excludes the test images.

    An unfinished run is resumed. A finished run is not trained again. In a multi-process run, all
    processes must call this function with the same request.

    Args:
      request: the run.
      callbacks: further callbacks. At the end of an epoch they run after the metrics are written
        and before the checkpoint is saved.
      progress: writes to the console and the log. None: a new `Progress`.

    Raises:
      UserError: the settings contradict each other, do not fit the data, or differ from the
        settings of the run in the folder.
      Diverged: the loss is not finite.
      Stopped: a signal arrived. The run is saved.
    """
    progress = progress or Progress()
    with StopOnSignal() as signals:
        with signals.immediate():
            start.check_processes(request)
            if result := start.finished_result(request):
                progress.note(
                    f"the run in {request.workdir} is finished; use --fresh to train it again"
                )
                progress.note(result_line(result))
                return result
            initial = distributed.run_on_all(lambda: start.load_initial(request))
            setup = distributed.run_on_all(lambda: build_setup(request.config, request.custom))
            start.check_images(setup)
            # Make the initial state before the run folder: an error here then leaves no folder.
            beginning = initial_state(setup, request.seed, initial)
        with start.open_run(request, setup) as (folder, checkpoints):
            save = Checkpoint(checkpoints, setup.config.train.checkpoint_minutes)
            forecast = Forecast(progress.line)
            hooks = [MetricsFile(), TensorBoard(), *callbacks, progress, forecast, signals, save]
            with closing(progress), closing(CallbackList(hooks)) as hooks:
                with signals.immediate():
                    progress.open_log(folder.log)
                    state, context, lines = start.restore_or_init(
                        request, setup, folder, checkpoints, beginning, initial
                    )
                    for line in lines:
                        progress.line(line)
                    progress.note("compiling")
                    steps = CompiledSteps(setup, request.seed, state)
                    evaluate = partial(compile_evaluation, setup, state, after_batch=signals.check)
                    held_out = len(setup.validation.labels) > 0
                    validate = evaluate(setup.validation.images) if held_out else None
                hooks.on_start(context, state)

                for epoch in setup.plan.remaining(int(state.epoch)):
                    if stops_early(context):
                        progress.line(
                            f"early stopping after epoch {epoch.number}: no improvement since "
                            f"epoch {epoch.number - epochs_since_best(context)}"
                        )
                        break
                    context.epoch = epoch
                    state = train_epoch(context, steps, state, hooks)
                    if validate:
                        progress.activity("validating")
                    try:
                        row = epoch_metrics(context, state, validate)
                    except Stopped as stopped:
                        save.save(state, end_of_epoch=False)
                        raise Stopped(stopped.signum, saved=True) from None
                    loss = row.train_loss if row.validation_loss is None else row.validation_loss
                    if not math.isfinite(loss):
                        raise diverged(
                            context, f"the loss is NaN or infinite after epoch {row.epoch}"
                        )
                    state = steps.end_epoch(state, loss)
                    context.rows.append(row)
                    hooks.on_epoch_end(state, row)
                    stop_if_asked(context)
                checkpoints.wait()
                if not request.evaluate_test:
                    signals.check()
                    return None

                progress.activity("testing")
                with signals.immediate():
                    test = evaluate(setup.dataset.test.images)
                    result, lines = write_result(
                        context, state, checkpoints, test, validate, steps.compile_seconds
                    )
                    for line in lines:
                        progress.line(line)
                hooks.on_end(result)
    return result


def stops_early(context: RunContext) -> bool:
    """Return whether the setting `train.early_stopping` ends the run before the next epoch."""
    patience = context.setup.config.train.early_stopping
    if patience is None or not context.rows:
        return False
    # Metrics may differ slightly between processes, but all processes must stop at the same epoch.
    (stops,) = distributed.all_max(epochs_since_best(context) >= patience)
    return bool(stops)


def epochs_since_best(context: RunContext) -> int:
    """Return the number of completed epochs since the best epoch."""
    best_by = context.setup.config.train.best_by
    return best_epoch.epochs_without_improvement(context.rows, best_by)


def train_epoch(
    context: RunContext, steps: CompiledSteps, state: TrainState, hooks: Callback
) -> TrainState:
    """Train until the end of the current epoch, and return the new state."""
    epoch, log_every = context.epoch, context.setup.config.train.log_every
    order = steps.epoch_order(epoch)
    first = step = int(state.step)
    began = time.perf_counter()
    while step < epoch.end:
        # A compiled call runs several steps. It ends at the latest at the next loss line of the
        # log, or at the end of the epoch.
        next_line = log_every - (step - epoch.begin) % log_every
        count = min(steps.tuner.steps, epoch.end - step, next_line)
        called = time.perf_counter()
        state = steps.run(state, epoch, order, count)
        step += count
        sums = jax.device_get(state.metrics)  # `device_get` waits until all steps are done.
        now = time.perf_counter()
        if not math.isfinite(sums.loss):
            place = f"in epoch {epoch.number + 1}, at or before step {step}"
            raise diverged(context, f"the loss is NaN or infinite {place}")
        speed = (step - first) * epoch.variant.batch_size / (now - began)
        context.images_per_second = speed
        metrics = CallMetrics(step, float(sums.loss), int(sums.correct), int(sums.images), speed)
        hooks.on_call(state, metrics)
        steps.tuner.observe(count, *distributed.all_max(now - called))
        stop_if_asked(context)
    return state


def epoch_metrics(context: RunContext, state: TrainState, validate: LogitsFn | None) -> MetricsRow:
    """Evaluate the validation images, and return the metrics of the epoch that just ended."""
    setup, epoch = context.setup, context.epoch
    sums = jax.device_get(state.metrics)
    validation_loss = validation_accuracy = balanced = None
    if validate:
        context.validation_logits = logits = validate(state.evaluated).logits
        labels = setup.validation.labels
        validation_loss, validation_accuracy = loss_and_accuracy(logits, labels)
        balanced = balanced_accuracy(logits, labels)
    last_step = StepInfo(*map(jnp.int32, (epoch.end - 1, epoch.number, setup.plan.steps)))
    factor = float(setup.spec.schedule(last_step)) * float(state.plateau.scale)
    return MetricsRow(
        epoch=epoch.number + 1,
        step=epoch.end,
        train_loss=float(sums.loss) / int(sums.images),
        train_accuracy=100 * int(sums.correct) / int(sums.images),
        validation_loss=validation_loss,
        validation_accuracy=validation_accuracy,
        validation_balanced_accuracy=balanced,
        learning_rate=setup.config.optimizer.lr * factor,
        images_per_second=round(context.images_per_second, 1),
        wall_seconds=round(context.elapsed(), 1),
    )


def stop_if_asked(context: RunContext) -> None:
    """Raise `Stopped` if a callback asked the loop to stop."""
    if context.stop_signal:
        raise Stopped(context.stop_signal, saved=True)
