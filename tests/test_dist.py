"""Test that the wheel works in a new virtual environment, outside of the checkout."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel in a new virtual environment. Return the `bin` folder of the environment.

    The dependencies are not installed again. A .pth file adds the packages of the current
    environment to the new environment.
    """
    folder = tmp_path_factory.mktemp("dist")
    environment, wheels = folder / "venv", folder / "wheels"
    pip = [sys.executable, "-m", "pip", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(ROOT)]
    subprocess.run([*pip, *build], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    # Python ignores .pth files in the added folders. An editable install of this package in an
    # added folder is therefore not imported.
    dependencies = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "dependencies.pth").write_text("\n".join(dependencies))
    (wheel,) = wheels.iterdir()
    python = str(environment / "bin" / "python")
    install = ["--python", python, "install", "--no-deps", "--no-index", "--ignore-installed"]
    subprocess.run([*pip, *install, str(wheel)], check=True)
    return environment / "bin"


def run(program: Path, *arguments: str, folder: Path) -> str:
    """Run a program without environment variables that point to the checkout. Return its output."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "TFDS_DATA_DIR")}
    environment["TFDS_DATA_DIR"] = str(folder / "tfds")
    done = subprocess.run(
        [program, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_package_is_imported_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = "import cifar_jax; print(cifar_jax.__file__)"
    path = Path(run(installed / "python", "-c", code, folder=tmp_path).strip())
    assert path.is_relative_to(installed.parent)


def test_experiments_with_a_shared_base_are_found(installed: Path, tmp_path: Path) -> None:
    rows = json.loads(run(installed / "cifar-jax", "experiments", "--json", folder=tmp_path))
    experiments = {row["name"]: row for row in rows}
    assert experiments["fast-resnet10"]["settings"]["tta.least_confident"] == 0.3
    assert len([row for row in rows if row["paper_accuracy"]]) == 10
    assert not [name for name in experiments if "base" in name]


def test_a_packaged_network_predicts(installed: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    command = ("predict", "net-bn-gap", "noise.png", "--top", "10", "--json")
    (answer,) = json.loads(run(installed / "cifar-jax", *command, folder=tmp_path))
    assert sum(top["probability"] for top in answer["top"]) == pytest.approx(1, abs=1e-5)


def test_a_network_trains_on_the_digits(installed: Path, tmp_path: Path) -> None:
    settings = ("data.dataset=digits", "data.validation=0.1", "data.train_images=256", "epochs=1")
    changes = [part for setting in settings for part in ("--set", setting)]
    command = ("train", "basic", *changes, "--workdir", "run")
    assert "test accuracy" in run(installed / "cifar-jax", *command, folder=tmp_path)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["git_commit"] is None


def test_the_report_page_is_written_without_the_checkout(installed: Path, tmp_path: Path) -> None:
    record = str(ROOT / "results/basic-seed0.json")
    run(installed / "cifar-jax", "report", record, "--output", "out", folder=tmp_path)
    assert "Confusion matrix" in (tmp_path / "out/report.html").read_text()
