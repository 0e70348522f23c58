"""Find and read experiment files, by name or by path.

An experiment file is a Python file that defines a `CONFIG`. It may also define custom parts, such
as a network; see `CustomParts`. It may import modules from its own folder at the top of the file.
An import of such a module inside a function fails. A file whose name starts with `_` is not an
experiment, but experiments may import it.
"""

from __future__ import annotations

import ast
import hashlib
import re
import runpy
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cifar_jax.config import Config
from cifar_jax.errors import UserError, nearest, one_line
from cifar_jax.files import local_path
from cifar_jax.user_modules import local_modules

_PACKAGE = Path(__file__).parent
# The experiments are next to the package in a git checkout, and inside the package in a wheel.
_FOLDERS = (_PACKAGE.parent / "experiments", _PACKAGE / "_experiments")


@dataclass(frozen=True)
class CustomParts:
    """Custom parts of a run, as defined in an experiment file. An undefined part is None.

    The keyword arguments of a part come from the settings, such as `optimizer.arguments`.
    """

    model: Any = None
    """The file's `MODEL`: a Linen module that classifies images, as a class or an instance."""
    optimizer: Callable[..., Any] | None = None
    """The file's `OPTIMIZER(**arguments)`, which returns an `optax.GradientTransformation`."""
    schedule: Callable[..., Any] | None = None
    """The file's `SCHEDULE(step_info, **arguments)`, which returns the factor that multiplies the
    base learning rate."""
    augmentation: Callable[..., Any] | None = None
    """The file's `AUGMENTATION(key, images, **arguments)`, which changes uint8 images `[N, H, W,
    3]`."""
    file: Path | None = None
    """Path of the experiment file. None if there are no custom parts."""
    source: bytes = b""
    """Content of the experiment file."""
    modules: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 digests of the files that the experiment file uses. A key is the name of an imported
    local module, or the path of another file that is read."""
    loaded: frozenset[str] = frozenset()
    """Names of all Python modules that were loaded right after the experiment file ran."""


class Cost(NamedTuple):
    """The training time of an experiment on one machine, from the experiment file's docstring."""

    text: str
    """Training time and machine, such as `about 68 seconds on two CPU cores (AMD EPYC)`."""
    minutes: float
    """Training time in minutes."""
    machine: str
    """Name of the machine, such as `two CPU cores (AMD EPYC)`."""


class Experiment(NamedTuple):
    """The content of an experiment file."""

    name: str
    """Name of the experiment: the file name without `.py`, with dashes instead of underscores."""
    config: Config
    description: str
    """First line of the experiment file's docstring."""
    cost: Cost | None
    """Training time of the experiment. None if its docstring has no line that begins with
    `Cost:`."""
    path: Path
    custom: CustomParts | None
    """Custom parts that the file defines. None if it defines only settings."""
    search: Any = None
    """The file's `SEARCH`, a search space for `cifar-jax tune` that has not been checked yet. None
    if the file has no `SEARCH`."""


def experiments_folder() -> Path:
    """Return the folder of the experiments that ship with the package."""
    for folder in _FOLDERS:
        if (folder / "basic.py").is_file():
            return folder
    raise UserError(f"no experiments next to {_PACKAGE}: reinstall cifar-jax")


def names() -> list[str]:
    """Return the names of the package's experiments.

    The experiments of the paper come first, in the order of the paper's tables. The better recipes
    come next, and variants of the paper's experiments last.
    """

    def place(name: str) -> tuple[bool, int, str]:
        config = load(name).config
        return config.varies is not None, _first_table(config), name

    return sorted(_files(), key=place)


def load(name_or_path: str) -> Experiment:
    """Return the experiment with the given name or in the given `.py` file.

    Raises:
      UserError: there is no such experiment, or the file defines no valid `CONFIG`.
    """
    path = local_path(name_or_path)
    if name_or_path.endswith(".py"):
        if not path.is_file():
            raise UserError(f"the experiment file {path} does not exist")
        if path.name.startswith("_"):
            raise UserError(
                f"{path} is not an experiment, because its name starts with an underscore: rename "
                "the file"
            )
        return _read(path)
    files = _files()
    if name_or_path not in files:
        if path.is_file():
            raise UserError(
                f"{path} is not an experiment file, because its name does not end in .py"
            )
        hint = nearest(name_or_path, files) or (
            "; `cifar-jax experiments` lists the names, and a path must end in .py"
        )
        raise UserError(f"there is no experiment {name_or_path!r}{hint}")
    return _read(files[name_or_path])


def code_digest(source: bytes) -> str:
    """Return the SHA-256 of Python code, ignoring settings, docstrings, comments and layout.

    Assignments to `CONFIG` and `SEARCH` are settings. The code is not executed. The digest is the
    same in all supported Python versions.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(source)
        tree.body = [node for node in tree.body if not _is_settings(node)]
        code = _dump(tree).encode()
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        code = source
    return hashlib.sha256(code).hexdigest()


def _dump(node: Any) -> str:
    """Return a syntax tree as text, without docstrings and empty fields."""
    if isinstance(node, list):
        return f"[{','.join(map(_dump, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
        fields["body"] = node.body[1:]
    # Python 3.12 adds empty strings to the syntax tree of an f-string. Without the empty strings,
    # all versions of Python give the same text.
    if isinstance(node, ast.JoinedStr):
        fields["values"] = [v for v in node.values if getattr(v, "value", None) != ""]
    present = (f"{n}={_dump(value)}" for n, value in fields.items() if value not in (None, []))
    return f"{type(node).__name__}({','.join(present)})"


_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _is_settings(node: ast.stmt) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    names = {target.id for target in targets if isinstance(target, ast.Name)}
    return bool(names & {"CONFIG", "SEARCH"})


def _files() -> dict[str, Path]:
    """Return the paths of the package's experiment files, by experiment name."""
    files = experiments_folder().rglob("*.py")
    return {_name(path): path for path in files if not path.name.startswith("_")}


def _name(path: Path) -> str:
    return path.stem.replace("_", "-")


def _read(path: Path) -> Experiment:
    try:
        with local_modules(path) as modules:
            content = runpy.run_path(str(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (Exception, SystemExit) as error:
        hint = ""
        if "relative import" in str(error):
            hint = ". Leave out the dot, as in `import helper`."
        raise UserError(f"{path} cannot be executed: {one_line(error, path)}{hint}") from error
    config = content.get("CONFIG")
    if not isinstance(config, Config):
        problem = "defines no CONFIG"
        if config is not None:
            problem = f"defines a CONFIG of type {type(config).__name__}"
        raise UserError(f"{path} {problem}: write `CONFIG = cifar_jax.Config(...)`")
    parts = {name: content.get(name) for name in ("MODEL", "OPTIMIZER", "SCHEDULE", "AUGMENTATION")}
    for name, part in parts.items():
        if part is not None and name != "MODEL" and not callable(part):
            raise UserError(f"{path}: {name} must be a function, not {type(part).__name__}")
    custom = None
    if any(part is not None for part in parts.values()):
        custom = CustomParts(
            **{name.lower(): part for name, part in parts.items()},
            file=path,
            source=path.read_bytes(),
            modules=modules,
            loaded=frozenset(sys.modules),
        )
    docstring = (content.get("__doc__") or "").strip()
    description = docstring.partition("\n")[0]
    search = content.get("SEARCH")
    return Experiment(_name(path), config, description, _cost(docstring), path, custom, search)


def _cost(docstring: str) -> Cost | None:
    """Return the training time that a docstring states after `Cost:`, or None."""
    amount = r"(?:[\d.]+ to )?(?P<number>[\d.]+) (?P<unit>second|minute|hour)s?"
    text = rf"(?P<text>(?:about )?{amount} on (?:an? )?(?P<machine>(?:\([^)]*\)|[^,(])+?))"
    match = re.search(rf"^Cost: {text}(?:,|\.$|\n\n|\Z)", docstring, re.MULTILINE | re.DOTALL)
    if match is None:
        return None
    minutes = {"second": 1 / 60, "minute": 1, "hour": 60}[match["unit"]] * float(match["number"])
    return Cost(" ".join(match["text"].split()), minutes, " ".join(match["machine"].split()))


def _first_table(config: Config) -> int:
    return int(config.paper.tables.partition("–")[0]) if config.paper else 99
