"""Compile train steps for TPUs without a TPU, and estimate their cost: `make tpu-check`.

    python -m tools.tpu_check [--experiments basic,resnet10] [--targets v5e-1,v6e-4]
                              [--precisions float32,bfloat16] [--json FILE]

libtpu (the extra `tpu`) compiles for chips that are not present. The compiled program is the same
as in `cifar-jax train` on these chips. One loop runs all steps of a call. The data set is in the
memory of the chips. The batch is divided over the chips.

Exit codes:

    0   every step compiles, fits into memory, needs no host and has no loop of unknown length
    1   at least one step fails this check
    2   libtpu is missing, or an argument is wrong
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any, NamedTuple

from cifar_jax import catalog, config
from cifar_jax.errors import UserError
from tools import hlo


class Chip(NamedTuple):
    """Published performance figures of one TPU chip."""

    flops: float
    """Operations per second in bfloat16. By default, XLA also computes float32 products in
    bfloat16."""
    bandwidth: float
    """Bytes per second between HBM and the cores."""
    memory: float
    """Bytes of HBM."""


class Target(NamedTuple):
    """TPU chips to compile for."""

    chip: Chip
    topology: str
    devices: int


V5E = Chip(197e12, 819e9, 16e9)  # cloud.google.com/tpu/docs/v5e
V6E = Chip(918e12, 1640e9, 32e9)  # cloud.google.com/tpu/docs/v6e
TARGETS = {
    "v5e-1": Target(V5E, "v5e:2x2", 1),  # as in Colab's free tier
    "v5e-4": Target(V5E, "v5e:2x2", 4),
    "v6e-4": Target(V6E, "v6e:2x2", 4),
}
# One experiment for each combination of network and optimizer in the paper.
EXPERIMENTS = (
    *("basic", "net", "net-bn-gap", "net-attention", "resnet18-sgd", "resnet18-adam-lr1e-4"),
    *("resnet10", "resnet10-separable"),
)
PRECISIONS = ("float32", "bfloat16")
COLUMNS = {
    "experiment": "Experiment",
    "target": "Chips",
    "precision": "Precision",
    "gflop": "GFLOP",
    "hbm_mb": "HBM traffic, MB",
    "moved_mb": "All traffic, MB",
    "temporaries_mb": "Temporaries, MB",
    "memory_mb": "Memory, MB",
    "collectives": "Collectives",
    "roofline_us": "Roofline, µs",
    "compile_seconds": "Compile, s",
    "problem": "Problem",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile the steps, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="make tpu-check", description="Compile train steps for TPUs, without a TPU."
    )
    for name, choices in (
        ("experiments", EXPERIMENTS),
        ("targets", tuple(TARGETS)),
        ("precisions", PRECISIONS),
    ):
        parser.add_argument(
            f"--{name}",
            default=",".join(choices),
            help=f"{name}, separated by commas [default: %(default)s]",
        )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    targets, precisions = options.targets.split(","), options.precisions.split(",")
    for name, chosen, choices in (
        ("target", targets, TARGETS),
        ("precision", precisions, PRECISIONS),
    ):
        if unknown := [value for value in chosen if value not in choices]:
            parser.error(f"unknown {name} {unknown[0]!r}; choose from {', '.join(choices)}")
    try:
        configs = {name: catalog.load(name).config for name in options.experiments.split(",")}
    except UserError as error:
        parser.error(str(error))
    if util.find_spec("libtpu") is None:
        print(
            "tpu_check: libtpu is not installed. Run make setup EXTRA=tpu, or pip install "
            "-e '.[tpu]'.",
            file=sys.stderr,
        )
        return 2

    rows = []
    print(_versions(), flush=True)
    print(_line(COLUMNS.values()), _line("---" for _ in COLUMNS), sep="\n", flush=True)
    for target in targets:
        for experiment, settings in configs.items():
            for precision in precisions:
                row = {"experiment": experiment, "target": target, "precision": precision}
                row |= check(settings, target, precision)
                rows.append(row)
                print(_line(_cell(row.get(column)) for column in COLUMNS), flush=True)
                if options.json:
                    record = {"versions": _versions(), "rows": rows}
                    options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 1 if any(row["problem"] for row in rows) else 0


def check(settings: config.Config, target: str, precision: str) -> dict[str, Any]:
    """Compile the train step of an experiment and return figures per chip and step.

    `hbm_mb` is the traffic between HBM and the chip. `moved_mb` is everything that operations read
    and write, including memory on the chip. Both values include the padding of tiles.
    `roofline_us` is a lower bound of the time: the longer of the time for the arithmetic and the
    time for the HBM traffic. `problem` is empty if the step compiles, fits into memory, needs no
    host and has no loop of unknown length.
    """
    os.environ |= _ENVIRONMENT  # libtpu reads these variables when it is loaded.
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies

    from cifar_jax.training import compilation
    from cifar_jax.training.setup import build_setup

    chip, topology, count = TARGETS[target]
    described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    try:
        setup = build_setup(
            config.override(settings, [f"train.precision={precision}", f"train.devices={count}"]),
            dataset=no_images(),
            available=described.devices[:count],
        )
        variant = setup.plan.variants[-1]
        began = time.perf_counter()
        arguments = compilation.train_arguments(setup, variant)
        compiled = compilation.train_function(setup, variant).lower(*arguments).compile()
    # For example, the program does not fit into memory, or the chips do not divide the batch.
    except (JaxRuntimeError, UserError) as error:
        return {"problem": f"does not compile: {str(error).splitlines()[0]}"}
    costs: Any = compiled.cost_analysis()
    memory: Any = compiled.memory_analysis()
    used = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes  # The donated state is both an argument and an output.
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    module = hlo.parse(compiled.as_text() or "")
    body = hlo.steps_body(module)
    moved = hlo.traffic(module, body)
    collectives, reduced = hlo.collectives(module)
    host = hlo.host_transfers(module)
    problems = []
    if host:
        problems.append(f"host transfers: {', '.join(host)}")
    if loops := hlo.unknown_loops(body):
        problems.append(f"loops of unknown length: {', '.join(loops)}")
    if used > chip.memory:
        problems.append(
            f"needs {used / 1e9:.1f} GB of memory, but the chip has {chip.memory / 1e9:.0f} GB"
        )
    seconds = max(costs["flops"] / chip.flops, moved.hbm / chip.bandwidth)
    return {
        "gflop": costs["flops"] / 1e9,
        "hbm_mb": moved.hbm / 1e6,
        "moved_mb": moved.total / 1e6,
        "temporaries_mb": memory.temp_size_in_bytes / 1e6,
        "memory_mb": used / 1e6,
        "collectives": dict(collectives),
        "collective_bytes": reduced,
        "roofline_us": seconds * 1e6,
        "compile_seconds": time.perf_counter() - began,
        "problem": "; ".join(problems),
    }


def no_images() -> Any:
    """Return a data set with the shapes of CIFAR-10 that takes no memory.

    The compiled program does not depend on the images.
    """
    import numpy as np

    from cifar_jax.data import Dataset, Split

    def blank(count: int) -> Split:
        images = np.broadcast_to(np.uint8(0), (count, 3072)).reshape(count, 32, 32, 3)
        return Split(images, np.broadcast_to(np.int32(0), count))

    classes = tuple(map(str, range(10)))
    half = (0.5, 0.5, 0.5)
    return Dataset("cifar10", classes, blank(50_000), blank(10_000), half, half, fingerprint="")


# Without these variables, libtpu waits for Google's metadata server and allows only one process.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def _versions() -> str:
    packages = ("jax", "jaxlib", "libtpu", "flax", "optax")
    return ", ".join(f"{package} {metadata.version(package)}" for package in packages)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(value: Any) -> str:
    match value:
        case None:
            return "-"
        case float():
            return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        case dict():
            return ", ".join(f"{count} {kind}" for kind, count in value.items()) or "0"
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
