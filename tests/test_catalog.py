"""Test experiment files, their custom parts, and the modules that they import."""

import ast
import hashlib
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from cifar_jax import catalog
from cifar_jax.catalog import code_digest
from cifar_jax.errors import UserError
from cifar_jax.user_modules import late_modules

HEAD = "from cifar_jax.config import *\n"
CONFIG = "CONFIG = Config(model=Model(name='net'), epochs={}, batch_size=8, optimizer=Optimizer())"
VALID = f"{HEAD}{CONFIG.format(1)}\n"


def load(folder: Path, text: str, name: str = "mine.py") -> catalog.Experiment:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return catalog.load(str(folder / name))


def load_rate(folder: Path, text: str) -> tuple[float, dict[str, str]]:
    """Load an experiment file. Return the schedule's value and the digests of imported modules."""
    custom = load(folder, VALID + text).custom
    assert custom is not None
    assert custom.schedule is not None
    return custom.schedule(None), dict(custom.modules)


def test_the_papers_experiments_come_first_in_its_order() -> None:
    papers = [name for name in catalog.names() if catalog.load(name).config.paper]
    assert papers == catalog.names()[:10]
    assert papers == [
        *("basic", "net", "net-bn-gap", "net-attention"),
        *("resnet18-sgd", "resnet18-adam", "resnet18-adam-lr1e-4"),
        *("resnet10", "resnet10-plateau", "resnet10-separable"),
    ]


def test_experiments_are_data_with_a_command_and_an_accuracy() -> None:
    for name in catalog.names():
        experiment = catalog.load(name)
        assert experiment.description.startswith("Train ")
        assert experiment.custom is None
        tree = ast.parse(experiment.path.read_text())
        for words in (f"make exp-{name}\n", "Cost: ", "Test accuracy: "):
            assert words in (ast.get_docstring(tree) or "")
        imports = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert imports <= {"cifar_jax.config", "_base", "_speednet"}


def test_costs_on_record() -> None:
    costs = {name: catalog.load(name).cost for name in catalog.names()}
    assert costs["fast-net"] == (
        "19 minutes on two CPU cores (AMD EPYC, AVX2)",
        *(19, "two CPU cores (AMD EPYC, AVX2)"),
    )
    minutes = {name: round(cost.minutes, 1) for name, cost in costs.items() if cost}
    assert minutes.keys() == costs.keys()
    assert [minutes[name] for name in ("basic", "resnet10", "speedrun-94")] == [1.1, 4.7, 29]


def test_an_experiment_can_be_a_file(tmp_path: Path) -> None:
    ours = catalog.load("net-bn-gap")
    mine = load(tmp_path, ours.path.read_text(), "my_own.py")
    assert mine == ours._replace(name="my-own", path=tmp_path / "my_own.py")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18-sdg", "did you mean resnet18-sgd?"),
        ("zzz", "`cifar-jax experiments` lists the names"),
        ("-base", "no experiment '-base'"),
        ("absent.py", "the experiment file absent.py does not exist"),
    ],
)
def test_an_unknown_experiment_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        catalog.load(name)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("CONFIG = {'epochs': 1}", "defines a CONFIG of type dict"),
        ("CONFIG = (", "cannot be executed: SyntaxError"),
        ("import helper\n1 / 0", "cannot be executed: ZeroDivisionError"),
        ("import nowhere_at_all", "cannot be executed: ModuleNotFoundError"),
        (HEAD + CONFIG.format(0), "epochs is 0, but it must be a whole number >= 1"),
        (HEAD + "CONFIG = Config(1)", "cannot be executed: TypeError"),
        (HEAD + CONFIG.format("1, epoch=2"), "no setting 'epoch'; did you mean epochs?"),
        (VALID + "CONFIG.epochs = 2", "cannot be executed: ValidationError"),
        (VALID + "OPTIMIZER = Optimizer()", "OPTIMIZER must be a function, not Optimizer"),
        (VALID + "SCHEDULE = 0.5", "SCHEDULE must be a function, not float"),
        (VALID + "AUGMENTATION = 'flip'", "AUGMENTATION must be a function, not str"),
    ],
)
def test_an_invalid_file_is_named_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "helper.py").touch()
    path = sys.path.copy()
    with pytest.raises(UserError) as error:
        load(tmp_path, text)
    assert message in str(error.value)
    assert str(tmp_path / "mine.py") in str(error.value)
    assert "\n" not in str(error.value)
    assert sys.path == path
    assert "helper" not in sys.modules


def test_a_file_that_starts_with_an_underscore_is_not_an_experiment(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"_base\.py is not an experiment"):
        load(tmp_path, VALID, "_base.py")


def test_a_file_defines_custom_parts(tmp_path: Path) -> None:
    text = f"{VALID}class MODEL: pass\ndef OPTIMIZER(b1): pass\nSCHEDULE = AUGMENTATION = min\n"
    custom = load(tmp_path, text).custom
    assert custom is not None
    assert custom.model.__name__ == "MODEL"
    assert custom.optimizer is not None
    assert custom.optimizer.__name__ == "OPTIMIZER"
    assert custom.schedule is custom.augmentation is min
    assert (custom.file, custom.source) == (tmp_path / "mine.py", text.encode())
    assert custom.modules == {}


def test_a_file_imports_modules_from_its_folder(tmp_path: Path) -> None:
    files = {"helper": tmp_path / "helper.py", "package.deep": tmp_path / "package" / "deep.py"}
    files["package.deep"].parent.mkdir()
    files["helper"].write_text("import package.deep\ndef rate(): return package.deep.RATE\n")
    text = "import json, wave\nfrom helper import rate\ndef SCHEDULE(step_info): return rate()\n"
    path = sys.path.copy()
    for rate in (1, 2):  # An edited module is loaded again.
        files["package.deep"].write_text(f"RATE = {rate}\n")
        digests = {n: hashlib.sha256(file.read_bytes()).hexdigest() for n, file in files.items()}
        assert load_rate(tmp_path, text) == (rate, digests)
    assert sys.path == path
    assert not {"helper", "package", "package.deep"} & sys.modules.keys()
    assert not list(tmp_path.rglob("__pycache__"))


def test_each_experiment_gets_its_own_base(tmp_path: Path) -> None:
    folders = [tmp_path / "1", tmp_path / "2"]
    for folder in folders:
        load(folder, VALID)
        (folder / "_base.py").write_text(f"RATE = {folder.name}\ndef rate(info): return RATE\n")
    loaded = [load_rate(folder, "from _base import rate as SCHEDULE") for folder in folders * 2]
    assert [rate for rate, _ in loaded] == [1, 2, 1, 2]
    assert loaded[0] == loaded[2] != loaded[1]


def test_other_modules_outside_of_installed_packages_have_a_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "library.py").write_text("def rate(info): return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    import library  # pyright: ignore

    for _ in range(2):
        text = "import optax\nfrom library import rate as SCHEDULE"
        _, modules = load_rate(tmp_path / "own", text)
        assert list(modules) == ["library"]
    assert sys.modules["library"] is library


def test_experiments_of_a_wheel_are_inside_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "site-packages" / "cifar_jax" / "_experiments"
    configs = {name: catalog.load(name).config for name in catalog.names()}
    shutil.copytree(catalog.experiments_folder(), folder)
    monkeypatch.setattr(catalog, "_FOLDERS", (tmp_path / "experiments", folder))
    assert {name: catalog.load(name).config for name in catalog.names()} == configs
    assert catalog.load("speedrun-92").path == folder / "fast" / "speedrun_92.py"
    assert not {"_base", "_speednet"} & sys.modules.keys()


CODE = b'def SCHEDULE(info, x=None):\n    return 0.5 + len(f"{x:{x}}")\n'


@pytest.mark.parametrize(
    ("changed", "is_same"),
    [
        (b"# A comment.\n\n" + CODE, True),
        (b'"""A docstring."""\n' + CODE, True),
        (CODE.replace(b"\n    ", b'\n  """A docstring."""\n  '), True),
        (CODE + b"CONFIG = 1\n", True),
        (CODE + b"CONFIG: int = 2\n", True),
        (CODE + b"SEARCH = {}\n", True),
        (CODE.replace(b"0.5", b"0.25"), False),
        (CODE.replace(b"{x:", b"{x!r:"), False),
        (CODE + b"CONFIGS = 1\n", False),
        (CODE + b"not Python", False),
        (CODE + b"x = " + b"-" * 10_000 + b"1", False),
    ],
)
def test_settings_comments_and_layout_are_not_code(changed: bytes, is_same: bool) -> None:
    assert (code_digest(changed) == code_digest(CODE)) is is_same


def test_the_digest_is_the_same_in_all_versions_of_python() -> None:
    assert code_digest(CODE) == ("a4f1c55ffb7425c40b492bfc8d244dd47075347c4fe9cc92e38ef03d01101f73")


@pytest.mark.parametrize(
    ("code", "file"),
    [
        ("exec((folder / 'helper.txt').read_text())", "helper.txt"),
        ("rate = float((folder / 'helper.txt').read_text().partition('=')[2])", "helper.txt"),
        ("import runpy; rate = runpy.run_path(str(folder / 'helper.py'))['rate']", "helper.py"),
        ("sys.path.insert(0, str(folder / 'a.zip')); from zipped import rate", "a.zip"),
        ("from package.part.helper import rate", "package.part.helper"),
    ],
)
def test_other_files_that_an_experiment_reads_have_a_digest(
    code: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "package/part").mkdir(parents=True)  # Namespace packages have no __init__.py.
    for name in ("helper.txt", "helper.py", "package/part/helper.py"):
        (tmp_path / name).write_text("rate = 3.0")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("zipped.py", "rate = 3.0")
    head = f"import sys; from pathlib import Path; folder = Path({str(tmp_path)!r})\n"
    assert load_rate(tmp_path, f"{head}{code}\nSCHEDULE = lambda info: rate") == (
        3.0,
        {file: hashlib.sha256(_content(tmp_path, file)).hexdigest()},
    )


def _content(folder: Path, name: str) -> bytes:
    path = folder / name
    return (path if path.exists() else folder / f"{name.replace('.', '/')}.py").read_bytes()


def test_modules_that_are_imported_later_have_a_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "late_helper.py").write_text("rate = 3.0")
    monkeypatch.syspath_prepend(tmp_path)
    text = "def SCHEDULE(info):\n    from late_helper import rate\n    return rate"
    custom = load(tmp_path / "own", VALID + text).custom
    assert custom is not None
    assert custom.schedule is not None
    assert not custom.modules
    assert custom.schedule(None) == 3.0
    digest = hashlib.sha256(b"rate = 3.0").hexdigest()
    assert late_modules(custom.loaded) == {"late_helper": digest}
    del sys.modules["late_helper"]
