"""Test the Colab notebook with quick settings and stand-ins for Colab's modules."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from statistics import mean
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

import cifar_jax
from cifar_jax import catalog
from cifar_jax.report import collect
from cifar_jax.report.table import wall_seconds
from cifar_jax.runs.records import read_records

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks/colab.ipynb"
COLAB = Path(__file__).parent / "fixtures/colab.txt"
SETTINGS = (
    "--set data.dataset=digits --set epochs=1 --set data.train_images=64 "
    "--set data.validation=0.1 --set train.devices=1"
)
# Stand-ins for Colab's modules. Uploads come from the folder `uploads`, and downloads go to the
# folder `downloads`.
COLAB_MODULES = {
    "output": "",  # In Colab, JAX imports google.colab.output.
    "drive": "def mount(path): print('mounted', path)",
    "files": """
import pathlib, shutil

def upload():
    [file] = pathlib.Path("../uploads").glob("*.whl")
    shutil.copy(file, file.name)
    return {file.name: file.read_bytes()}

def upload_file(name):
    shutil.copy("../uploads/picture.png", name)

def download(path):
    shutil.copy(path, "../downloads")
""",
}


def execute(folder: Path, python: Path, *, install: bool, **parameters: str) -> str:
    """Run the notebook in `folder`/content with changed parameters. Return what it prints."""
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)
    [first] = [n for n, cell in enumerate(notebook.cells) if "parameters" in tags(cell)]
    text = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    notebook.cells.insert(first + 1, nbformat.v4.new_code_cell(text))
    if not install:
        notebook.cells = [cell for cell in notebook.cells if "install" not in tags(cell)]
    for name in ("uploads", "downloads", "content", "modules/google/colab"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, code in COLAB_MODULES.items():
        (folder / f"modules/google/colab/{name}.py").write_text(code)
    Image.effect_noise((300, 200), 90).convert("RGB").save(folder / "uploads/picture.png")
    env = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    env |= {
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder / "modules"),
        "IPYTHONDIR": str(folder / "ipython"),
    }
    resources = {"metadata": {"path": str(folder / "content")}}
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources)
    client.create_kernel_manager()
    assert client.km
    assert client.km.kernel_spec
    client.km.kernel_spec.argv[0] = str(python)
    # Connect to the kernel through socket files, because another process could take a port. The
    # paths of socket files must be short.
    with tempfile.TemporaryDirectory() as sockets:
        client.km.transport, client.km.ip = "ipc", f"{sockets}/kernel"
        client.execute(env=env)
    printed = [
        output.get("text") or output.get("data", {}).get("text/markdown", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    ]
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", "\n".join(printed))


def tags(cell: Any) -> list[str]:
    return cell.metadata.get("tags", [])


def check(printed: str, drive: Path, folder: Path, name: str) -> None:
    """Check the notebook's output, and the files that the notebook wrote and downloaded."""
    assert "cifar-jax: " not in printed  # All errors start with this prefix.
    assert "Traceback" not in printed
    for text in ("[CpuDevice(id=0)]", "With changed settings", "for a white image"):
        assert text in printed
    assert "test accuracy" in printed or "is finished" in printed
    for kind in ("safetensors", "stablehlo"):
        assert f"written to {drive / name}.{kind}" in printed.replace("\r\n", "\n")
        assert (folder / f"downloads/{name}.{kind}").stat().st_size
    run = cifar_jax.load(drive / f"runs/{name}/seed0")
    exported = cifar_jax.load(folder / f"downloads/{name}.safetensors")
    picture = [folder / "uploads/picture.png"]
    np.testing.assert_allclose(run.predict(picture), exported.predict(picture), rtol=1e-5)


def test_the_notebook_trains_reports_predicts_and_exports(tmp_path: Path) -> None:
    drive = tmp_path / "my drive"
    parameters = {"SETTINGS": SETTINGS, "FOLDER": str(drive), "NAME": "quick"}
    printed = execute(tmp_path, Path(sys.executable), install=False, **parameters)
    check(printed, drive, tmp_path, "quick")


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_notebook_runs_on_a_machine_with_only_colabs_packages(tmp_path: Path) -> None:
    python = tmp_path / "colab/bin/python"
    venv.create(tmp_path / "colab", with_pip=True)
    pip = [str(python), "-m", "pip"]
    subprocess.run([*pip, "install", "--quiet", "--requirement", COLAB], check=True)
    before = installed(pip)
    wheel = ["wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path / "uploads", ROOT]
    subprocess.run([*pip, *wheel], check=True)
    drive = tmp_path / "drive"
    for resumed in (False, True):
        printed = execute(tmp_path, python, install=True, SETTINGS=SETTINGS, FOLDER=str(drive))
        check(printed, drive, tmp_path, "basic")
        assert ("basic/seed0 is finished" in printed) is resumed
        assert before.items() <= installed(pip).items(), "Colab's packages changed"
        # A new Colab machine keeps only the files on Drive.
        for name in ("content", "downloads"):
            shutil.rmtree(tmp_path / name)


def installed(pip: list[str]) -> dict[str, str]:
    """Return the version of each installed package, by package name."""
    command = [*pip, "list", "--format=json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {package["name"]: package["version"] for package in json.loads(done.stdout)}


def test_the_notebook_lists_all_experiments_and_the_recorded_results() -> None:
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells)
    [choices] = re.findall(r"^EXPERIMENT = .*# @param (\[.*\])", text, re.MULTILINE)
    assert json.loads(choices) == catalog.names()
    table = re.findall(r"^\| `(.+)` \| (\d+) \| (\d+) \| ([\d.]+) \|$", text, re.MULTILINE)
    assert table
    groups = {group.experiment: group for group in collect(read_records(ROOT / "results"))}
    for name, epochs, minutes, accuracy in table:
        assert groups[name].epochs == int(epochs)
        assert f"{(wall_seconds(groups[name]) or 0) / 60:.0f}" == minutes
        assert f"{mean(groups[name].measured()):.1f}" == accuracy
    assert not any(cell.get("outputs") for cell in notebook.cells)
