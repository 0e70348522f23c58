"""The Colab notebook, executed as it is: with parameters of seconds, and a stand-in for Colab."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping
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

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks/colab.ipynb"
# Of what Colab has beforehand, the packages that this one needs, and its kernel.
COLAB = Path(__file__).parent / "fixtures/colab.txt"

QUICK = (
    "--set data.dataset=digits --set epochs=1 --set data.train_images=64 "
    "--set data.validation=0.1 --set train.devices=1"
)
# Colab's modules: the drive is where it says, uploads come from UPLOADS, downloads go to DOWNLOADS.
STAND_IN = {
    "output": "",  # JAX imports it in a process that has imported another
    "drive": "def mount(path): print('mounted', path)",
    "files": """
import os, pathlib, shutil

def _uploads():
    return sorted(pathlib.Path(os.environ["UPLOADS"]).iterdir())

def upload():
    [file] = [file for file in _uploads() if file.suffix == ".whl"]
    shutil.copy(file, file.name)
    return {file.name: file.read_bytes()}

def upload_file(name):
    [file] = [file for file in _uploads() if file.suffix == ".png"]
    shutil.copy(file, name)

def download(path):
    shutil.copy(path, os.environ["DOWNLOADS"])
""",
}


def execute(notebook: Any, folder: Path, parameters: Mapping[str, str], bin: Path) -> str:
    """Run all cells with `parameters` in place of those at the head, and the programs in `bin`.

    Returns what the cells printed. Pictures and packages are uploaded from `folder`/uploads.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell failed.
    """
    cells = notebook.cells
    [head] = [n for n, cell in enumerate(cells) if "parameters" in tags(cell)]
    assigned = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    cells.insert(head + 1, nbformat.v4.new_code_cell(assigned))
    for name in ("uploads", "downloads", "content"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, text in STAND_IN.items():
        path = folder / f"stand-in/google/colab/{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    Image.effect_noise((300, 200), 90).convert("RGB").save(folder / "uploads/picture.png")
    env = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    env |= {
        "PATH": f"{bin}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder / "stand-in"),
        "UPLOADS": str(folder / "uploads"),
        "DOWNLOADS": str(folder / "downloads"),
        "IPYTHONDIR": str(folder / "ipython"),
    }
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder / "content")}},
    )
    # Not a kernel that is registered somewhere, but this Python's.
    client.create_kernel_manager()
    assert client.km
    assert client.km.kernel_spec
    client.km.kernel_spec.argv[0] = str(bin / "python")
    # Over files: of the ports that it would choose, another process may take one before it does.
    # Their paths must be short.
    with tempfile.TemporaryDirectory() as sockets:
        client.km.transport, client.km.ip = "ipc", f"{sockets}/kernel"
        client.execute(env=env)
    printed = [
        output.get("text") or output.get("data", {}).get("text/markdown", "")
        for cell in cells
        for output in cell.get("outputs", [])
    ]
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", "\n".join(printed))


@pytest.fixture
def notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_trains_reports_predicts_and_exports(notebook: Any, tmp_path: Path) -> None:
    notebook.cells = [cell for cell in notebook.cells if "install" not in tags(cell)]
    kept = tmp_path / "kept here"
    printed = execute(
        notebook,
        tmp_path,
        {"SETTINGS": QUICK, "FOLDER": str(kept), "NAME": "quick"},
        Path(sys.executable).parent,
    )
    check(printed, kept, tmp_path, "quick")
    assert not (kept / "tensorflow_datasets").exists()


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_it_begins_with_nothing_but_what_colab_has(tmp_path: Path, notebook: Any) -> None:
    """A wheel, uploaded to a machine with Colab's versions, which it leaves as they are."""
    bin = tmp_path / "colab/bin"
    venv.create(bin.parent, with_pip=True)
    pip = [str(bin / "python"), "-m", "pip"]
    subprocess.run([*pip, "install", "--quiet", "--requirement", COLAB], check=True)
    before = freeze(pip)
    (tmp_path / "uploads").mkdir()
    wheels = ["wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path / "uploads", ROOT]
    subprocess.run([*pip, *wheels], check=True)

    kept = tmp_path / "drive"
    printed = execute(notebook, tmp_path, {"SETTINGS": QUICK, "FOLDER": str(kept)}, bin)
    check(printed, kept, tmp_path, "basic")
    after = freeze(pip)
    assert "cifar-jax" in after
    assert before.items() <= after.items(), "what Colab has is changed"

    # The next machine, and the same drive.
    for name in ("content", "downloads"):
        shutil.rmtree(tmp_path / name)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    printed = execute(notebook, tmp_path, {"SETTINGS": QUICK, "FOLDER": str(kept)}, bin)
    check(printed, kept, tmp_path, "basic")
    assert "basic/seed0 is finished" in printed


def test_it_says_what_is_so(notebook: Any) -> None:
    text = "\n".join(cell.source for cell in notebook.cells)
    [choices] = re.findall(r"^EXPERIMENT = .*# @param (\[.*\])", text, re.MULTILINE)
    assert json.loads(choices) == catalog.names()
    times = re.findall(r"^\| `(.+)` \| (\d+) \| ([\d,]+) \|$", text, re.MULTILINE)
    assert times
    for name, epochs, seconds in times:
        records = [json.loads(p.read_text()) for p in ROOT.glob(f"results/{name}-seed?.json")]
        assert {record["epochs"] for record in records} == {int(epochs)}
        assert f"{mean(record['wall_seconds'] for record in records):,.0f}" == seconds
    assert all("outputs" not in cell or not cell.outputs for cell in notebook.cells)


def check(printed: str, kept: Path, folder: Path, name: str) -> None:
    """What is to be there when the notebook was executed, on whatever machine."""
    assert "cifar-jax: " not in printed  # one line for each error of the commands
    assert "Traceback" not in printed
    assert "[CpuDevice(id=0)]" in printed
    assert "test accuracy" in printed or "is finished" in printed
    assert "# Paper against measured" in printed
    assert "of a white one" in printed
    for kind in ("safetensors", "stablehlo"):
        assert f"written to {kept / name}.{kind}" in printed.replace("\r\n", "\n")
    # Other versions write the program of a StableHLO file than may read it here.
    run = cifar_jax.load(kept / f"runs/{name}/seed0")
    exported = cifar_jax.load(folder / f"downloads/{name}.safetensors")
    picture = [folder / "uploads/picture.png"]
    np.testing.assert_allclose(run.predict(picture), exported.predict(picture), rtol=1e-5)
    assert (folder / f"downloads/{name}.stablehlo").stat().st_size


def tags(cell: Any) -> list[str]:
    return cell.metadata.get("tags", [])


def freeze(pip: list[str]) -> dict[str, str]:
    """Versions by name, of what is installed there."""
    done = subprocess.run(
        [*pip, "list", "--format=json"], check=True, capture_output=True, text=True
    )
    return {package["name"]: package["version"] for package in json.loads(done.stdout)}
