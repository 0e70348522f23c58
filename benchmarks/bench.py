"""Compare the speed of train steps in JAX and PyTorch on this machine: `make bench`.

A contender is a process that runs train steps with one framework and one set of options. The
contenders take turns, so only one of them works at a time, with all cores. The table shows medians
over the rounds. PyTorch runs eagerly, in the faster of two memory layouts. PyTorch is timed twice,
with and without keeping freed memory. JAX always keeps freed memory. The JAX steps are the same as
in a training run, including the gathering and normalization of the images. The PyTorch steps
receive batches that are ready in memory. The images are random, because the pixel values do not
affect the time of a step.
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
from pathlib import Path
from typing import Any, NamedTuple

from cifar_jax import catalog, config, devices
from cifar_jax.config import Config, Optimizer
from cifar_jax.errors import UserError
from cifar_jax.files import write_json
from cifar_jax.runs import environment

ROOT = Path(__file__).parent.parent
# Experiments with the paper's seven networks (ResNet18 with two batch sizes), and `speednet`.
ROWS = (
    "basic",
    "net",
    "net-bn-gap",
    "net-attention",
    "resnet18-sgd",
    "resnet18-adam-lr1e-4",
    "resnet10",
    "resnet10-separable",
    "benchmarks/speednet.py",
)
LAYOUTS = ("torch", "torch-channels-last")
# Settings that the PyTorch step supports, and settings that affect only JAX.
SUPPORTED = (
    *("batch_size", "model.dropout", "model.pooling"),
    *(f"optimizer.{name}" for name in Optimizer.model_fields if name != "nesterov"),
    *("train.devices", "train.steps_per_call"),
)


class Variant(NamedTuple):
    """The framework and the options of a contender."""

    framework: str
    """`jax` or `torch`."""
    precision: str
    """`float32` or `bfloat16`. PyTorch uses autocast for bfloat16."""
    keep_memory: bool
    """Whether the process keeps freed memory for later arrays."""

    def __str__(self) -> str:
        kept = "-kept" if self.framework == "torch" and self.keep_memory else ""
        return f"{self.framework}-{self.precision}{kept}"


class Contender:
    """A worker process that runs train steps on request."""

    def __init__(
        self, python: str, name: str, experiment: str, settings: list[str], *, keep_memory: bool
    ) -> None:
        self._command = [python, "-m", "benchmarks.worker", name, experiment, *settings]
        if keep_memory:
            self._command.append("--keep-memory")
        self._process = subprocess.Popen(
            self._command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
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
        """Run some steps, and return the seconds per step."""
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
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="seconds per turn of a contender"
    )
    parser.add_argument("--float32", action="store_true", help="leave out bfloat16")
    parser.add_argument(
        "--torch-python",
        default=sys.executable,
        metavar="PYTHON",
        help="Python with PyTorch, if the Python of JAX has no PyTorch",
    )
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    parser.add_argument("--output", type=Path, help="also write the figures to this JSON file")
    options = parser.parse_args(arguments)
    has_torch = torch_is_installed(options.torch_python)
    try:
        configs = {name: load(name, options.settings) for name in options.experiments}
        if has_torch:
            for experiment, (settings, changes) in configs.items():
                require_supported(experiment, settings, changes)
    except UserError as error:
        parser.error(str(error))
    if not has_torch:
        print("PyTorch is not installed, so only JAX is timed. `pip install torch` installs it.\n")
    # Several processes share a GPU, so JAX must not reserve most of its memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    device, size, peak = matrix_peak()
    variants = choose_variants(device, has_torch, options.float32)
    print(
        f"{environment.machine().cpu}, {os.cpu_count()} cores, on {device}; a matrix product of "
        f"{size}³ in float32 runs at {peak / 1e9:.0f} GFLOP/s; medians of {options.rounds} rounds\n"
    )
    print(HEADER)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        # Use an empty compilation cache, because compilation is timed too.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
        for experiment, (settings, changes) in configs.items():
            row = time_row(experiment, settings, variants, options)
            row["settings"] = changes
            rows.append(row)
            print(table_line(row), flush=True)
    print()
    for line in summary(rows):
        print(line)
    record = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": environment.git_commit("benchmarks")[0],
        "machine": environment.machine().model_dump(),
        "versions": environment.versions(),
        "device": device,
        "matrix_gflops": round(peak / 1e9, 1),
        "rounds": options.rounds,
        "rows": rows,
    }
    if options.output:
        write_json(options.output, record)
        print(f"written to {options.output}")


def torch_is_installed(python: str) -> bool:
    """Return whether this Python can find PyTorch."""
    code = "import importlib.util, sys; sys.exit(not importlib.util.find_spec('torch'))"
    return subprocess.run([python, "-c", code], check=False).returncode == 0


def choose_variants(device: str, has_torch: bool, float32_only: bool) -> list[Variant]:
    """Return the variants to time on a device, such as `cpu`."""
    on_cpu = device == "cpu"
    pays = not on_cpu or devices.has_bfloat16_units()
    precisions = ["float32", "bfloat16"] if pays and not float32_only else ["float32"]
    variants = [Variant("jax", precision, keep_memory=True) for precision in precisions]
    if has_torch:
        for precision in precisions:
            for keep_memory in (False, True) if on_cpu else (False,):
                variants.append(Variant("torch", precision, keep_memory))
    return variants


def load(experiment: str, settings: Sequence[str]) -> tuple[Config, dict[str, Any]]:
    """Load an experiment and apply `settings`. Return the config and the changed values."""
    loaded = catalog.load(experiment)
    original = loaded.config
    if loaded.custom:
        raise UserError(f"{experiment} has custom parts, which this benchmark cannot measure")
    overridden = config.override(original, settings)
    if overridden.data.image_size != original.data.image_size:
        raise UserError(
            "data.image_size has no effect: the benchmark uses images of 32 × 32 pixels"
        )
    if overridden.train.precision != original.train.precision:
        raise UserError("train.precision has no effect: use --float32 to leave out bfloat16")
    changes = config.differences(config.flatten(original), config.flatten(overridden))
    return overridden, {name: value for name, (_, value) in changes.items()}


def require_supported(experiment: str, settings: Config, changes: Mapping[str, Any]) -> None:
    """Raise UserError if the PyTorch step would differ from the JAX step."""
    optimizer = settings.optimizer
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
    experiment: str, settings: Config, variants: list[Variant], options: argparse.Namespace
) -> dict[str, Any]:
    """Measure the train step of one experiment in all variants."""
    contenders = take_turns(experiment, variants, options)
    require_equal("devices", {str(v): c.facts["platform"] for v, c in contenders.items()})
    require_equal("parameters", {str(v): c.facts["parameters"] for v, c in contenders.items()})
    row: dict[str, Any] = {
        "experiment": experiment,
        "model": settings.model.name,
        "batch_size": settings.batch_size,
    }
    for variant, contender in contenders.items():
        seconds = statistics.median(contender.measured)
        row[str(variant)] = {
            "images_per_second": settings.batch_size / seconds,
            "step_ms": 1000 * seconds,
            "rounds_ms": [round(1000 * s, 3) for s in contender.measured],
            "peak_mb": contender.peak_mb,
            **contender.facts,
        }
    return row


def require_equal(what: str, values: Mapping[str, Any]) -> None:
    """Exit with an error if the contenders differ in a property, such as the device."""
    if len(set(values.values())) > 1:
        listed = ", ".join(f"{name}: {value}" for name, value in values.items())
        raise SystemExit(f"The contenders have different {what}: {listed}.")


def take_turns(
    experiment: str, variants: list[Variant], options: argparse.Namespace
) -> dict[Variant, Contender]:
    """Run all rounds, then end the processes. Return the contenders with their measurements."""
    contenders: dict[Variant, Contender] = {}
    try:
        for variant in variants:
            contenders[variant] = start(experiment, variant, options)
        for _ in range(options.rounds):
            for contender in contenders.values():
                steps = max(1, round(options.seconds / contender.facts["step_seconds"]))
                contender.measured.append(contender.run(steps))
    finally:
        for contender in contenders.values():
            contender.close()
    return contenders


def start(experiment: str, variant: Variant, options: argparse.Namespace) -> Contender:
    """Start a contender. PyTorch uses the memory layout in which one step is faster."""
    settings = [*options.settings, f"train.precision={variant.precision}"]
    if variant.framework == "jax":
        return Contender(sys.executable, "jax", experiment, settings, keep_memory=True)
    contenders = []
    for layout in LAYOUTS:
        contender = Contender(
            *(options.torch_python, layout, experiment, settings), keep_memory=variant.keep_memory
        )
        contender.facts |= {"layout": layout, "step_seconds": contender.run(1)}
        contenders.append(contender)
    contenders.sort(key=lambda contender: contender.facts["step_seconds"])
    contenders[1].close()
    return contenders[0]


COLUMNS = {
    "model": 18,
    "batch": 5,
    "JAX float32": 11,
    "PyTorch": 7,
    "ratio": 5,
    "kept": 7,
    "ratio ": 5,
    "JAX bfloat16": 12,
    "PyTorch ": 7,
    "ratio  ": 5,
    "kept ": 7,
    "ratio   ": 5,
    "MB": 5,
    "compile, s": 10,
}
HEADER = (
    "| " + " | ".join(name.strip().ljust(width) for name, width in COLUMNS.items()) + " |\n"
    "|" + "|".join("-" * (width + 1) + ":" for width in COLUMNS.values()) + "|"
)
COMPARISONS = {
    "JAX and PyTorch in float32": ("jax-float32", "torch-float32"),
    "JAX and PyTorch with kept memory in float32": ("jax-float32", "torch-float32-kept"),
    "JAX and PyTorch in bfloat16": ("jax-bfloat16", "torch-bfloat16"),
    "JAX and PyTorch with kept memory in bfloat16": ("jax-bfloat16", "torch-bfloat16-kept"),
    "JAX in bfloat16 and JAX in float32": ("jax-bfloat16", "jax-float32"),
}


def ratio(row: Mapping[str, Any], one: str, other: str) -> float | None:
    """Divide the speed of variant `one` by the speed of `other`. None if one of them is missing."""
    if one not in row or other not in row:
        return None
    return row[one]["images_per_second"] / row[other]["images_per_second"]


def table_line(row: Mapping[str, Any]) -> str:
    """Return a row of the Markdown table."""

    def speed(variant: str) -> str:
        return _figure(row[variant]["images_per_second"]) if variant in row else "-"

    def ratio_text(one: str, other: str) -> str:
        value = ratio(row, one, other)
        return "-" if value is None else f"{value:.2f}"

    cells = [row["model"], str(row["batch_size"])]
    for precision in ("float32", "bfloat16"):
        jax_name, torch_name = f"jax-{precision}", f"torch-{precision}"
        cells.append(speed(jax_name))
        for name in (torch_name, f"{torch_name}-kept"):
            cells += [speed(name), ratio_text(jax_name, name)]
    jax_facts = row["jax-float32"]
    cells += [f"{jax_facts['peak_mb']:,}", f"{jax_facts['compile_seconds']:.1f}"]
    padded = (cell.rjust(width) for cell, width in zip(cells, COLUMNS.values(), strict=True))
    return "| " + " | ".join(padded) + " |"


def summary(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line with the mean and the smallest speed ratio of each measured comparison."""
    lines = []
    for title, (one, other) in COMPARISONS.items():
        for batches, chosen in (
            ("all rows", rows),
            ("batch size 128 or more", [row for row in rows if row["batch_size"] >= 128]),
        ):
            ratios = [value for row in chosen if (value := ratio(row, one, other)) is not None]
            if ratios:
                mean = math.exp(statistics.fmean(map(math.log, ratios)))
                lines.append(
                    f"For {title}, the mean speed ratio is {mean:.2f} and the smallest is "
                    f"{min(ratios):.2f} ({batches})."
                )
    return lines


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def matrix_peak(tries: int = 8) -> tuple[str, int, float]:
    """Measure the speed of a large matrix product in JAX.

    Return the name of the device, the number of rows of the square matrices, and the FLOP/s of the
    fastest try. The product is float32 in JAX's default precision, which is TF32 on a GPU.
    """
    import jax

    device = jax.devices()[0]
    size = 2048 if device.platform == "cpu" else 8192
    # The values are random. With constant values, a processor would use less power and run faster.
    a = jax.random.normal(jax.random.key(0), (size, size))
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
