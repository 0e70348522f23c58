"""One contender of `bench.py`: a process that makes train steps when told to.

    python -m benchmarks.worker [--keep-memory] CONTENDER EXPERIMENT [SETTINGS...]

A contender is jax, jax-outside, torch, torch-channels-last or torch-compile.
Prints a JSON line when it is ready; then, for each number read from standard input, makes so many
train steps and prints the seconds that one took: `jax-outside` instead the share of a step that is
not the train step. An idle contender waits for a line, so that it takes nothing from
the one that is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_jax import catalog, runtime
from cifar_jax.config import Config, override

if TYPE_CHECKING:
    from cifar_jax.data import Dataset

Steps = Callable[[int], None]
WARM_SECONDS = 0.5


def main(contender: str, experiment: str, settings: list[str]) -> None:
    """Serve the parent until standard input ends."""
    if contender.startswith("jax"):
        runtime.configure_jax()
    config = override(catalog.load(experiment).config, settings)
    began = time.perf_counter()
    if contender == "jax":
        steps, _, facts = jax_steps(config)
        turn = partial(_timed, steps)
    elif contender == "jax-outside":
        steps, outside, facts = jax_steps(config)
        turn = partial(_by_turns, steps, outside, facts["steps_per_call"])
    else:
        steps, facts = torch_steps(config, contender)
        turn = partial(_timed, steps)
    turn(1)  # PyTorch compiles and plans in its first step
    facts["ready_seconds"] = round(time.perf_counter() - began, 2)
    began = time.perf_counter()
    turn(2)
    facts["step_seconds"] = (time.perf_counter() - began) / 2
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        # While others had their turn, caches went cold and the system took idle memory.
        began = time.perf_counter()
        while time.perf_counter() - began < WARM_SECONDS:
            turn(1)
        measured = turn(int(line))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"measured": measured, "peak_mb": round(peak)}), flush=True)


def _timed(steps: Steps, count: int) -> float:
    """Seconds that a step takes, over so many."""
    began = time.perf_counter()
    steps(count)
    return (time.perf_counter() - began) / count


def _by_turns(whole: Steps, outside: Steps, call: int, count: int) -> float:
    """The share of a step that is outside, measured in turns of one call each of so many steps.

    Shorter ones would charge a run's call to a few steps: 20 % of one step of `basic`.
    """
    pairs = [(_timed(whole, call), _timed(outside, call)) for _ in range(0, count, call)]
    return statistics.median(o for _, o in pairs) / statistics.median(w for w, _ in pairs)


def jax_steps(config: Config) -> tuple[Steps, Steps, dict[str, Any]]:
    """Steps as `fit` makes them; and what is outside the train step alone.

    That is the same calls with the same loop over the same batches, which are summed up instead of
    trained on.
    """
    import jax
    import jax.numpy as jnp

    from cifar_jax import models
    from cifar_jax.training import batches, compilation, setup
    from cifar_jax.training.schedules import StepInfo

    workload = setup.workload(config, dataset=made_images())
    state = setup.init_state(workload, seed=0)
    data = compilation.train_data(workload)
    training = compilation.compile_training(workload, 0, state, data)
    epoch = workload.plan.epochs[0]
    order = training.order(epoch)
    take_steps = training.begin(epoch, order, workload.plan.steps)
    tuner = compilation.StepsPerCallTuner(config.train.steps_per_call)
    while not tuner.settled:
        began = time.perf_counter()
        state = jax.block_until_ready(take_steps(state, tuner.steps))
        tuner.observe(tuner.steps, time.perf_counter() - began)

    def in_calls(count: int, call: Callable[[int], None]) -> None:
        for done in range(0, count, tuner.steps):
            call(min(tuner.steps, count - done))

    def whole(count: int) -> None:
        def call(count: int) -> None:
            nonlocal state
            state = take_steps(state, count)

        in_calls(count, call)
        jax.block_until_ready(state.step)

    @jax.jit
    def summed(
        total: jax.Array, data: batches.TrainData, order: jax.Array, count: jax.Array
    ) -> jax.Array:
        def one(step: jax.Array, total: jax.Array) -> jax.Array:
            indices, moment = order[step % len(order)], StepInfo(step, 0, workload.plan.steps)
            images, labels = make(data, indices, jax.random.key(0), moment)
            return total + images.sum() + labels.sum()

        return jax.lax.fori_loop(0, count, one, total)

    make = partial(batches.make_batch, workload.dataset, epoch.stage, config.train.precision)
    total = jnp.float32(0)

    def outside(count: int) -> None:
        def call(count: int) -> None:
            nonlocal total
            total = summed(total, data, order, jnp.int32(count))

        in_calls(count, call)
        jax.block_until_ready(total)

    return (
        whole,
        outside,
        {
            "version": jax.__version__,
            "platform": jax.default_backend(),
            "parameters": models.count_parameters(state.params),
            "compile_seconds": round(training.compile_seconds, 2),
            "steps_per_call": tuner.steps,
        },
    )


def torch_steps(config: Config, contender: str) -> tuple[Steps, dict[str, Any]]:
    """Steps as a PyTorch user writes them, over batches that are ready: no loader, no crops."""
    import numpy as np
    import torch  # pyright: ignore[reportMissingImports]
    from torch.nn.functional import cross_entropy  # pyright: ignore[reportMissingImports]

    from benchmarks import torch_models

    torch.manual_seed(0)
    # Where JAX computes by default, with the products that it chooses there.
    gpu = torch.cuda.is_available() and os.environ.get("JAX_PLATFORMS") != "cpu"
    device = "cuda" if gpu else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    images, labels = made_images().train
    layout = torch.channels_last if contender == "torch-channels-last" else torch.contiguous_format
    batches = []
    for start in range(0, 8 * config.batch_size, config.batch_size):
        part = slice(start, start + config.batch_size)
        x = torch.from_numpy(_normalized(images[part])).permute(0, 3, 1, 2)
        y = torch.from_numpy(labels[part].astype(np.int64))
        batches.append((x.to(device).contiguous(memory_format=layout), y.to(device)))
    options = {"dropout": config.model.dropout, "pooling": config.model.pooling}
    given = {name: value for name, value in options.items() if value is not None}
    model = torch_models.MODELS[config.model.name](**given)
    model = model.to(device, memory_format=layout).train()
    chosen = config.optimizer
    if chosen.name == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            model.parameters(), chosen.lr, chosen.momentum, weight_decay=chosen.weight_decay
        )
    else:
        adam = torch.optim.AdamW if chosen.name == "adamw" else torch.optim.Adam
        optimizer = adam(
            model.parameters(),
            chosen.lr,
            (chosen.beta1, chosen.beta2),
            chosen.eps,
            weight_decay=chosen.weight_decay,
        )
    precision = torch.autocast(device, torch.bfloat16, config.train.precision == "bfloat16")
    facts = {
        "version": torch.__version__,
        "parameters": torch_models.count_parameters(model),
        "threads": torch.get_num_threads(),
        "platform": "gpu" if gpu else "cpu",
    }
    run = torch.compile(model) if contender == "torch-compile" else model
    done = 0

    def steps(count: int) -> None:
        nonlocal done
        for _ in range(count):
            x, y = batches[done % len(batches)]
            optimizer.zero_grad(set_to_none=True)
            with precision:
                logits = run(x)
            cross_entropy(logits.float(), y).backward()
            optimizer.step()
            done += 1
        if gpu:
            torch.cuda.synchronize()

    return steps, facts


def made_images() -> Dataset:
    """CIFAR-10's shapes, without CIFAR-10: a step does the same whatever the images show."""
    import numpy as np

    from cifar_jax.data import Dataset, Split

    numbers = np.random.default_rng(0)

    def split(count: int) -> Split:
        images = numbers.integers(0, 256, (count, 32, 32, 3), np.uint8)
        return Split(images, numbers.integers(0, 10, count, np.int32))

    train, test = split(50_000), split(1)
    half = (0.5, 0.5, 0.5)
    return Dataset("made", tuple(map(str, range(10))), train, test, half, half, fingerprint="")


def _normalized(images: Any) -> Any:
    """NumPy's uint8 images as the float32 that a network is given."""
    return ((images.astype("float32") / 255 - 0.473) / 0.251).astype("float32")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    parser = argparse.ArgumentParser()
    parser.add_argument("--keep-memory", action="store_true")
    parser.add_argument("contender")
    parser.add_argument("experiment")
    parser.add_argument("settings", nargs="*")
    options = parser.parse_args()
    if options.keep_memory:
        runtime.keep_memory()
    main(options.contender, options.experiment, options.settings)
