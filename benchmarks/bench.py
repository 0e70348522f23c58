"""Compare the speed of train steps in JAX and PyTorch on this machine: `make bench`.

Each contender, JAX or a variant of PyTorch, is a process that may use every core. The contenders
take turns, so that only one works at a time. The table shows medians over the rounds. PyTorch runs
eagerly, in the faster of two memory layouts. With `--compile`, torch.compile is timed too. JAX's
steps are the steps of a training run, which also gather and normalize images. PyTorch's batches are
ready in memory. The images are random, because their values do not affect the time of a step.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cifar_jax import catalog, config, models
from cifar_jax.config import Config, Optimizer
from cifar_jax.errors import UserError
from cifar_jax.files import write_json
from cifar_jax.runs import environment

ROOT = Path(__file__).parent.parent
# The paper's seven networks, each with its batch size. ResNet18 has two batch sizes.
ROWS = (
    "basic",
    "net",
    "net-bn-gap",
    "net-attention",
    "resnet18-sgd",
    "resnet18-adam-lr1e-4",
    "resnet10",
    "resnet10-separable",
)
EAGER = ("torch", "torch-channels-last")
# Settings that PyTorch's step supports, or that affect only JAX.
SUPPORTED = (
    *("batch_size", "model.dropout", "model.pooling", "train.precision"),
    *(f"optimizer.{name}" for name in Optimizer.model_fields if name != "nesterov"),
    *("train.devices", "train.steps_per_call"),
)


class Contender:
    """A worker process that runs train steps on request."""

    def __init__(
        self, name: str, experiment: str, settings: list[str], *, keep_memory: bool
    ) -> None:
        self._command = [sys.executable, "-m", "benchmarks.worker", name, experiment, *settings]
        if keep_memory:
            self._command.append("--keep-memory")
        self._process = subprocess.Popen(
            self._command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if name == "torch-compile" else None,
            text=True,
        )
        self.facts = self._read()
        self.measured: list[float] = []
        self.peak_mb = 0

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(self._command)} ended")
        return json.loads(line)

    def run(self, steps: int) -> float:
        """Run `steps` train steps, and return the seconds per step.

        For `jax-outside`, return the fraction of the time that is spent outside the train step.
        """
        assert self._process.stdin
        print(steps, file=self._process.stdin, flush=True)
        answer = self._read()
        self.peak_mb = answer["peak_mb"]
        return answer["measured"]

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def main(arguments: Sequence[str] | None = None) -> None:
    """Time train steps, and print a table of the results."""
    parser = argparse.ArgumentParser(
        prog="make bench", description="Compare the speed of train steps in JAX and PyTorch."
    )
    parser.add_argument("experiments", nargs="*", default=ROWS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="seconds of each turn")
    parser.add_argument("--compile", action="store_true", help="also time torch.compile")
    parser.add_argument(
        "--keep-memory", action="store_true", help="let PyTorch keep freed memory too"
    )
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    parser.add_argument("--output", type=Path, help="also write the figures to this JSON file")
    options = parser.parse_args(arguments)
    names = ["jax"]
    if find_spec("torch"):
        names += [*EAGER, *(["torch-compile"] if options.compile else [])]
    try:
        configs = {name: load(name, options.settings) for name in options.experiments}
        if len(names) > 1:
            for experiment, (settings, changes) in configs.items():
                require_supported(experiment, settings, changes)
    except UserError as error:
        parser.error(str(error))
    if len(names) == 1:
        print("PyTorch is not installed: timing JAX alone (pip install torch)\n")
    # Several processes share a GPU, so JAX must not reserve most of its memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    device, size, peak = matrix_peak()
    print(
        f"{environment.machine().cpu}, {os.cpu_count()} cores, on {device}; "
        f"a matrix product of {size}³ in float32 "
        f"runs at {peak / 1e9:.0f} GFLOP/s; medians of {options.rounds} rounds\n"
    )
    print(HEADER)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = (
            folder  # An empty cache, so that compilation is timed.
        )
        for experiment, (settings, changes) in configs.items():
            row = time_row(experiment, settings, names, options)
            row["settings"] = changes
            row["peak_fraction"] = row["flops_per_image"] * row["jax"]["images_per_second"] / peak
            rows.append(row)
            print(table_line(row), flush=True)
    ratios = [row["ratio"] for row in rows if "ratio" in row]
    if ratios:
        geometric = math.exp(statistics.fmean(map(math.log, ratios)))
        print(f"\ngeometric mean of the ratios: {geometric:.2f}, lowest: {min(ratios):.2f}")
    record = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": environment.git_commit("benchmarks")[0],
        "machine": environment.machine().model_dump(),
        "versions": environment.versions(),
        "device": device,
        "matrix_gflops": round(peak / 1e9, 1),
        "rounds": options.rounds,
        "pytorch_keeps_memory": options.keep_memory,
        "rows": rows,
    }
    if options.output:
        write_json(options.output, record)
        print(f"written to {options.output}")


def load(experiment: str, settings: Sequence[str]) -> tuple[Config, dict[str, Any]]:
    """Return an experiment's config with changed settings, and the values of these settings."""
    original = catalog.load(experiment).config
    overridden = config.override(original, settings)
    changes = config.differences(config.flatten(original), config.flatten(overridden))
    return overridden, {name: value for name, (_, value) in changes.items()}


def require_supported(experiment: str, settings: Config, changes: Mapping[str, Any]) -> None:
    """Raise a UserError if PyTorch's step would differ from JAX's."""
    optimizer, network = settings.optimizer, settings.model.name
    if network not in models.PAPER_PARAMETERS:
        raise UserError(
            f"{experiment} uses {network}, which is not implemented in PyTorch here. Choose an "
            "experiment of the paper."
        )
    is_simple = optimizer.name in ("sgd", "adam", "adamw") and not optimizer.nesterov
    if not is_simple or settings.param_groups:
        raise UserError(
            f"{experiment} uses Muon, Nesterov momentum, a custom optimizer or parameter groups, "
            "which PyTorch's step here does not. Choose an experiment of the paper."
        )
    if other := [name for name in changes if name not in SUPPORTED]:
        raise UserError(
            f"--set {other[0]} does not change PyTorch's step, so the comparison would be unfair. "
            f"Supported settings: {', '.join(SUPPORTED)}."
        )


def time_row(
    experiment: str, settings: Config, names: list[str], options: argparse.Namespace
) -> dict[str, Any]:
    """Measure the train step of one experiment."""
    from cifar_jax.models.summary import summarize

    network = settings.model
    model = models.create(network.name, dropout=network.dropout, pooling=network.pooling)
    layers = summarize(model)
    row: dict[str, Any] = {
        "experiment": experiment,
        "model": network.name,
        "batch_size": settings.batch_size,
        # For each product in the forward pass, the backward pass computes two products.
        "flops_per_image": 6 * sum(layer.multiply_adds for layer in layers),
    }
    contenders = take_turns(experiment, names, options)
    require_same_platform({name: c.facts["platform"] for name, c in contenders.items()})
    for name, contender in contenders.items():
        seconds = statistics.median(contender.measured)
        row[name] = {
            "images_per_second": settings.batch_size / seconds,
            "step_ms": 1000 * seconds,
            "rounds_ms": [round(1000 * s, 3) for s in contender.measured],
            "peak_mb": contender.peak_mb,
            **contender.facts,
        }
        assert contender.facts["parameters"] == sum(layer.parameters for layer in layers)
    outside = take_turns(experiment, ["jax-outside"], options)["jax-outside"].measured
    row["outside_step"] = statistics.median(outside)
    eager = [row[name]["images_per_second"] for name in EAGER if name in row]
    if eager:
        row["ratio"] = row["jax"]["images_per_second"] / max(eager)
    return row


def require_same_platform(platforms: Mapping[str, str]) -> None:
    """Exit if the contenders use different kinds of devices."""
    if len(set(platforms.values())) > 1:
        places = ", ".join(f"{name} on {platform}" for name, platform in platforms.items())
        raise SystemExit(
            f"{places}: install both for the same kind of device, or set JAX_PLATFORMS=cpu"
        )


def take_turns(
    experiment: str, names: list[str], options: argparse.Namespace
) -> dict[str, Contender]:
    """Run all rounds, end the processes, and return the contenders with their measurements."""
    contenders: dict[str, Contender] = {}
    try:
        for name in names:
            keep_memory = options.keep_memory or name.startswith("jax")
            try:
                contenders[name] = Contender(
                    name, experiment, options.settings, keep_memory=keep_memory
                )
            except RuntimeError:
                if name != "torch-compile":
                    raise
        steps = {
            name: max(1, round(options.seconds / contender.facts["step_seconds"]))
            for name, contender in contenders.items()
        }
        for _ in range(options.rounds):
            for name, contender in contenders.items():
                contender.measured.append(contender.run(steps[name]))
    finally:
        for contender in contenders.values():
            contender.close()
    return contenders


COLUMNS = {
    "model": 18,
    "batch": 5,
    "JAX, images/s": 13,
    "PyTorch, images/s": 17,
    "ratio": 5,
    "torch.compile": 13,
    "of peak": 7,
    "outside": 7,
    "MB": 5,
    "compile, s": 10,
}
HEADER = (
    "| " + " | ".join(name.ljust(width) for name, width in COLUMNS.items()) + " |\n"
    "|" + "|".join("-" * (width + 1) + ":" for width in COLUMNS.values()) + "|"
)


def table_line(row: dict[str, Any]) -> str:
    """Return a row of the Markdown table."""
    eager = [row[name]["images_per_second"] for name in EAGER if name in row]
    compiled = row.get("torch-compile")
    cells = (
        row["model"],
        str(row["batch_size"]),
        _figure(row["jax"]["images_per_second"]),
        _figure(max(eager)) if eager else "-",
        f"{row['ratio']:.2f}" if eager else "-",
        _figure(compiled["images_per_second"]) if compiled else "-",
        f"{row['peak_fraction']:.0%}",
        f"{row['outside_step']:.1%}",
        f"{row['jax']['peak_mb']:,}",
        f"{row['jax']['compile_seconds']:.1f}",
    )
    padded = (cell.rjust(width) for cell, width in zip(cells, COLUMNS.values(), strict=True))
    return "| " + " | ".join(padded) + " |"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def matrix_peak(tries: int = 8) -> tuple[str, int, float]:
    """Measure the speed of a large matrix product in JAX.

    Return the name of the device, the number of rows of the matrices, and the FLOP/s of the fastest
    try. The matrices are float32, in JAX's default precision, which is TF32 on a GPU.
    """
    import jax

    device = jax.devices()[0]
    size = 2048 if device.platform == "cpu" else 8192
    a = jax.random.normal(
        jax.random.key(0), (size, size)
    )  # With constant values, a processor would use less power and run faster.
    product = jax.jit(jax.numpy.matmul)
    product(a, a).block_until_ready()
    best = math.inf
    for _ in range(tries):
        began = time.perf_counter()
        product(a, a).block_until_ready()
        best = min(best, time.perf_counter() - began)
    return device.device_kind, size, 2 * size**3 / best


if __name__ == "__main__":
    main()
