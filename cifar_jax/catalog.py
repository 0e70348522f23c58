"""Finds experiment files by name or path.

An experiment is a Python file with a `CONFIG`, and a `MODEL` if its network is not of the package.
"""

from __future__ import annotations

import ast
import difflib
import runpy
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from cifar_jax.config import Config
from cifar_jax.errors import UserError

_PACKAGE = Path(__file__).parent
# Beside the package in a checkout; inside it once installed from a wheel.
_FOLDERS = (_PACKAGE.parent / "experiments", _PACKAGE / "_experiments")


class Experiment(NamedTuple):
    """An experiment file, read."""

    name: str
    """The file's name, with dashes."""
    config: Config
    description: str
    """The first line of the file's docstring."""
    path: Path
    model: Any = None
    """The file's `MODEL`, if it has one, as it stands there."""


def experiments_folder() -> Path:
    """Where the experiments that come with this package lie."""
    for folder in _FOLDERS:
        if (folder / "basic.py").is_file():
            return folder
    raise UserError(f"no experiments beside {_PACKAGE}: reinstall cifar-jax")


def names() -> list[str]:
    """Names of the experiments that come with this package: the paper's in its order, and then
    the others."""
    return sorted(_files(), key=lambda name: (_first_table(load(name).config), name))


def load(name_or_path: str) -> Experiment:
    """The experiment of that name, or of that file.

    Raises:
      UserError: no such experiment (naming the nearest), or a file that does not define `CONFIG`.
    """
    if name_or_path.endswith(".py"):
        path = Path(name_or_path)
        if not path.is_file():
            raise UserError(f"no experiment file {path}")
        return _read(path, _name(path))
    known = _files()
    if name_or_path not in known:
        close = difflib.get_close_matches(name_or_path, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else "; see `cifar-jax experiments`"
        raise UserError(f"no experiment {name_or_path!r}{hint}")
    return _read(known[name_or_path], name_or_path)


def same_model(source: bytes, other: bytes) -> bool:
    """Whether two files say the same but for `CONFIG`, docstrings, comments and layout.

    Nothing of them is executed.
    """
    return _code(source) == _code(other)


def _code(source: bytes) -> str | bytes:
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return source
    tree.body = [node for node in tree.body if not _is_config(node)]
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return ast.dump(tree)


def _is_config(node: ast.stmt) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return any(isinstance(target, ast.Name) and target.id == "CONFIG" for target in targets)


def _files() -> dict[str, Path]:
    """Experiment files by name; `resnet18_adam_lr1e_4.py` is `resnet18-adam-lr1e-4`."""
    files = experiments_folder().rglob("*.py")
    return {_name(path): path for path in files if path.name != "__init__.py"}


def _name(path: Path) -> str:
    return path.stem.replace("_", "-")


def _read(path: Path, name: str) -> Experiment:
    try:
        module = runpy.run_path(str(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{path} cannot be read: {why}") from error
    config = module.get("CONFIG")
    if not isinstance(config, Config):
        raise UserError(f"{path} defines no CONFIG of type cifar_jax.config.Config")
    description = (module.get("__doc__") or "").strip().partition("\n")[0]
    return Experiment(name, config, description, path, module.get("MODEL"))


def _first_table(config: Config) -> int:
    return int(config.paper.tables.partition("–")[0]) if config.paper else 99
