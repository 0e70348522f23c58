"""A contender of `bench.py`: a process that runs train steps on request.

    python -m benchmarks.worker CONTENDER EXPERIMENT [SETTINGS...] [--keep-memory]

CONTENDER is jax, torch or torch-channels-last. The process prints a JSON line when it is ready.
Then it reads numbers from standard input, one per line. For each number N it runs N train steps and
prints a JSON line with the seconds per step. A waiting process uses no processor time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from cifar_jax import catalog, runtime
from cifar_jax.config import Config, override

if TYPE_CHECKING:
    from cifar_jax.data import Dataset

Steps = Callable[[int], None]
WARM_SECONDS = 1.5
WARM_STEPS = 2


def main(contender: str, experiment: str, settings: list[str]) -> None:
    """Run steps until standard input ends."""
    if contender.startswith("jax"):
        runtime.configure_jax()
    config = override(catalog.load(experiment).config, settings)
    began = time.perf_counter()
    if contender == "jax":
        steps, facts = jax_steps(config)
    else:
        steps, facts = torch_steps(config, contender)
    turn = partial(_timed, steps)
    turn(1)
    facts["ready_seconds"] = round(time.perf_counter() - began, 2)
    began = time.perf_counter()
    turn(2)
    facts["step_seconds"] = (time.perf_counter() - began) / 2
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        # Warm up. Other contenders have replaced the contents of the processor's caches, and a
        # process that was idle is up to 15 % slower at first.
        began, warm = time.perf_counter(), 0
        while warm < WARM_STEPS or time.perf_counter() - began < WARM_SECONDS:
            turn(1)
            warm += 1
        measured = turn(int(line))
        # Linux counts in KiB, macOS in bytes.
        unit = 1024**2 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
        print(json.dumps({"measured": measured, "peak_mb": round(peak)}), flush=True)


def _timed(steps: Steps, count: int) -> float:
    """Run `count` steps, and return the seconds per step."""
    began = time.perf_counter()
    steps(count)
    return (time.perf_counter() - began) / count


def jax_steps(config: Config) -> tuple[Steps, dict[str, Any]]:
    """Return a function that runs train steps in JAX, and values for the benchmark's record."""
    import jax

    from cifar_jax import models
    from cifar_jax.training import compilation
    from cifar_jax.training.setup import build_setup, initial_state

    setup = build_setup(config, dataset=random_images())
    state = initial_state(setup, seed=0)
    steps = compilation.CompiledSteps(setup, 0, state)
    epoch = setup.plan.epochs[0]
    order, tuner = steps.epoch_order(epoch), steps.tuner
    while not tuner.settled:
        began = time.perf_counter()
        state = jax.block_until_ready(steps.run(state, epoch, order, tuner.steps))
        tuner.observe(tuner.steps, time.perf_counter() - began)

    def run(count: int) -> None:
        nonlocal state
        for begin in range(0, count, tuner.steps):
            state = steps.run(state, epoch, order, min(tuner.steps, count - begin))
        jax.block_until_ready(state.step)

    facts = {
        "version": jax.__version__,
        "platform": jax.default_backend(),
        "parameters": models.count_parameters(state.params),
        "compile_seconds": round(steps.compile_seconds, 2),
        "steps_per_call": tuner.steps,
    }
    return run, facts


def torch_steps(config: Config, contender: str) -> tuple[Steps, dict[str, Any]]:
    """Return a function that runs train steps in PyTorch, and values for the benchmark's record.

    The steps are written as a PyTorch user would write them. The batches are ready in memory. There
    is no data loader and no augmentation.
    """
    import numpy as np
    import torch  # pyright: ignore[reportMissingImports]
    from torch.nn.functional import cross_entropy  # pyright: ignore[reportMissingImports]

    from benchmarks import torch_models

    torch.manual_seed(0)
    # Use the same device as JAX, and the same precision of matrix products.
    gpu = torch.cuda.is_available() and os.environ.get("JAX_PLATFORMS") != "cpu"
    device = "cuda" if gpu else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    images, labels = random_images().train
    layout = torch.channels_last if contender == "torch-channels-last" else torch.contiguous_format
    batches = []
    for start in range(0, 8 * config.batch_size, config.batch_size):
        part = slice(start, start + config.batch_size)
        x = torch.from_numpy(_normalized(images[part])).permute(0, 3, 1, 2)
        y = torch.from_numpy(labels[part].astype(np.int64))
        batches.append((x.to(device).contiguous(memory_format=layout), y.to(device)))
    options = {"dropout": config.model.dropout, "pooling": config.model.pooling}
    options = {name: value for name, value in options.items() if value is not None}
    model: Any = (torch_models.MODELS | torch_models.OTHER_MODELS)[config.model.name](**options)
    model = model.to(device, memory_format=layout).train()
    rule = config.optimizer
    if rule.name == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            model.parameters(), rule.lr, rule.momentum, weight_decay=rule.weight_decay
        )
    else:
        adam = torch.optim.AdamW if rule.name == "adamw" else torch.optim.Adam
        optimizer = adam(
            model.parameters(),
            rule.lr,
            (rule.beta1, rule.beta2),
            rule.eps,
            weight_decay=rule.weight_decay,
        )
    precision = torch.autocast(device, torch.bfloat16, config.train.precision == "bfloat16")
    facts = {
        "version": torch.__version__,
        "parameters": torch_models.count_parameters(model),
        "threads": torch.get_num_threads(),
        "platform": "gpu" if gpu else "cpu",
    }
    remaining = itertools.cycle(batches)

    def steps(count: int) -> None:
        for x, y in itertools.islice(remaining, count):
            optimizer.zero_grad(set_to_none=True)
            with precision:
                logits = model(x)
            cross_entropy(logits.float(), y).backward()
            optimizer.step()
        if gpu:
            torch.cuda.synchronize()

    return steps, facts


def random_images() -> Dataset:
    """Return random images with the shapes of CIFAR-10. Pixel values do not affect the time."""
    import numpy as np

    from cifar_jax.data import Dataset, Split

    rng = np.random.default_rng(0)

    def split(count: int) -> Split:
        images = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
        return Split(images, rng.integers(0, 10, count, np.int32))

    train, test = split(50_000), split(1)
    half = (0.5, 0.5, 0.5)
    return Dataset("random", tuple(map(str, range(10))), train, test, half, half, fingerprint="")


def _normalized(images: Any) -> Any:
    """Convert uint8 images to normalized float32 images."""
    return ((images.astype("float32") / 255 - 0.473) / 0.251).astype("float32")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--keep-memory", action="store_true")
    parser.add_argument("contender")
    parser.add_argument("experiment")
    parser.add_argument("settings", nargs="*")
    options = parser.parse_args()
    if options.keep_memory:
        runtime.keep_memory()
    main(options.contender, options.experiment, options.settings)
