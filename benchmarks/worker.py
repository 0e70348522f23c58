"""One contender of `bench.py`: a process that makes train steps when told to.

    python -m benchmarks.worker jax|jax-step|torch|torch-channels-last|torch-compile EXPERIMENT

Prints a JSON line when it is ready; then, for each number read from standard input, makes so many
train steps and prints the seconds that they took. An idle contender waits for a line, so that it
takes nothing from the one that is timed.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cifar_jax import catalog
from cifar_jax.config import Config, override

Step = Callable[[int], None]


def main(contender: str, experiment: str, settings: list[str]) -> None:
    """Serve the parent until standard input ends."""
    config = override(catalog.load(experiment).config, settings)
    began = time.perf_counter()
    if contender == "torch" or contender.startswith("torch-"):
        steps, facts = torch_steps(config, contender)
    else:
        steps, facts = jax_steps(config, pure=contender == "jax-step")
    steps(1)  # PyTorch compiles and plans in its first step
    ready = time.perf_counter() - began
    print(json.dumps({**facts, "ready_seconds": round(ready, 2)}), flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        steps(int(line))
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "peak_mb": round(peak)}), flush=True)


def jax_steps(config: Config, *, pure: bool) -> tuple[Step, dict[str, Any]]:
    """Steps as `fit` makes them; or, `pure`, the train step alone on a batch that never changes."""
    import jax
    import jax.numpy as jnp

    from cifar_jax import models, programs, step

    programs.keep_compiled()
    setup = programs.setup(config)
    state = programs.init_state(setup, seed=0)
    data = programs.train_data(setup)
    facts: dict[str, Any] = {
        "version": jax.__version__,
        "parameters": models.count_parameters(state.params),
    }
    if pure:
        images = jnp.asarray(_normalised(setup.train.images[: config.batch_size]))
        labels = jnp.asarray(setup.train.labels[: config.batch_size])

        def one(state: step.TrainState, key: jax.Array) -> step.TrainState:
            return step.train_step(state, images, labels, key, model=setup.model, tx=setup.tx)

        key = jax.random.key(0)
        began = time.perf_counter()
        program = jax.jit(one, donate_argnums=0).lower(state, key).compile()
        facts["compile_seconds"] = round(time.perf_counter() - began, 2)

        def steps(count: int) -> None:
            nonlocal state
            for _ in range(count):
                state = program(state, key)
            jax.block_until_ready(state.step)

        return steps, facts

    training = programs.compile_training(setup, 0, state, data)
    facts["compile_seconds"] = round(training.compile_seconds, 2)
    order = training.order(0)
    done = 0

    def steps(count: int) -> None:
        nonlocal state, order, done
        while count:
            begun, position = divmod(done, setup.steps_per_epoch)
            if position == 0:
                order = training.order(begun)
            take = min(count, training.steps_per_call, setup.steps_per_epoch - position)
            state = training.train(state, order, take)
            count, done = count - take, done + take
        jax.block_until_ready(state.step)

    return steps, facts


def torch_steps(config: Config, contender: str) -> tuple[Step, dict[str, Any]]:
    """Steps as a PyTorch user writes them, over batches that are ready: no loader, no crops."""
    import torch
    from torch.nn.functional import cross_entropy

    from benchmarks import torch_models
    from cifar_jax import data

    torch.manual_seed(0)
    images, labels = data.load(config.data.dataset).train
    layout = torch.channels_last if contender == "torch-channels-last" else torch.contiguous_format
    batches = []
    for start in range(0, 8 * config.batch_size, config.batch_size):
        part = slice(start, start + config.batch_size)
        x = torch.from_numpy(_normalised(images[part])).permute(0, 3, 1, 2)
        y = torch.from_numpy(labels[part].astype(np.int64))
        batches.append((x.contiguous(memory_format=layout), y))
    model = torch_models.MODELS[config.model.name]().to(memory_format=layout).train()
    chosen = config.optimizer
    if chosen.name == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            model.parameters(), chosen.lr, chosen.momentum, weight_decay=chosen.weight_decay
        )
    else:
        optimizer = torch.optim.Adam(model.parameters(), chosen.lr)
    facts = {
        "version": torch.__version__,
        "parameters": torch_models.count_parameters(model),
        "threads": torch.get_num_threads(),
    }
    run = torch.compile(model) if contender == "torch-compile" else model
    done = 0

    def steps(count: int) -> None:
        nonlocal done
        for _ in range(count):
            x, y = batches[done % len(batches)]
            optimizer.zero_grad(set_to_none=True)
            cross_entropy(run(x), y).backward()
            optimizer.step()
            done += 1

    return steps, facts


def _normalised(images: np.ndarray) -> np.ndarray:
    return ((images / np.float32(255) - 0.473) / 0.251).astype(np.float32)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
