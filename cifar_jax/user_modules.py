"""Find the modules and files of a user's experiment, and compute their SHA-256 digests."""

import hashlib
import importlib.metadata
import os
import sys
import sysconfig
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

_PACKAGE = Path(__file__).parent
_STANDARD_LIBRARY = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))


def late_modules(loaded: Collection[str]) -> dict[str, str]:
    """Return the digests of all imported user modules whose names are not in `loaded`."""
    late = [(name, sys.modules[name]) for name in sorted(sys.modules.keys() - set(loaded))]
    return _digests({name: m for name, m in late if _is_local(name, _location(m), Path("/"))})


@contextmanager
def local_modules(experiment: Path) -> Iterator[dict[str, str]]:
    """Make the modules next to an experiment file importable in this context.

    At the end, the modules are unloaded. Each experiment therefore imports the `_base.py` of its
    own folder.

    Yields:
      SHA-256 digests of the imported user modules, by module name, and of other files that were
      read from the folder, by path. The dictionary is filled when the context ends.
    """
    folder = experiment.absolute().parent
    # If the file is a symbolic link, also search the folder of its target, as Python does.
    paths = dict.fromkeys([str(folder), str(experiment.resolve().parent)])
    digests: dict[str, str] = {}
    loaded_before = _unload_local(folder)
    writes_bytecode = sys.dont_write_bytecode
    # Write no bytecode files. They would be outdated if a module is edited twice in a second.
    sys.dont_write_bytecode = True
    sys.path[:0] = paths
    try:
        with _opened_files() as opened:
            yield digests
    finally:
        for path in paths:
            with suppress(ValueError):
                sys.path.remove(path)
        sys.dont_write_bytecode = writes_bytecode
        imported = _unload_local(folder)
        sys.modules.update(loaded_before)
    digests |= _digests(imported)
    known = _resolved(imported.values()) | {experiment.resolve()}
    files = [
        file
        for file in sorted(opened)
        if (file.suffix == ".py" or file.is_relative_to(folder))
        and _is_user_path(str(file))
        and file.resolve() not in known
        and file.is_file()
    ]
    # Resolve the paths of all modules only if needed. This takes half a second with JAX loaded.
    modules = _resolved(sys.modules.values()) if files else set()
    for file in files:
        if file.resolve() not in modules:
            digests[os.path.relpath(file, folder)] = _digest(file)


def _resolved(modules: Iterable[ModuleType]) -> set[Path]:
    return {Path(_location(module)).resolve() for module in modules}


def _digests(modules: Mapping[str, ModuleType]) -> dict[str, str]:
    files = {name: Path(_location(module)) for name, module in modules.items()}
    return {name: _digest(file) for name, file in files.items() if file.is_file()}


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _unload_local(folder: Path) -> dict[str, ModuleType]:
    # Find all modules before unloading any. After its parent is unloaded, a namespace package has
    # no location.
    modules = list(sys.modules.items())
    names = [name for name, module in modules if _is_local(name, _location(module), folder)]
    return {name: sys.modules.pop(name) for name in names}


def _is_local(name: str, location: str, folder: Path) -> bool:
    """Return whether a module is user code.

    User code is in `folder`, or neither in the standard library nor in an installed package.
    """
    package = name.partition(".")[0]
    if not location or package == "cifar_jax" or package.startswith("__"):
        return False
    path = f"{folder}{os.sep}{package}"
    if f"{location}{os.sep}".startswith((f"{path}.", f"{path}{os.sep}")):
        return True
    return _is_user_path(location) and not _is_distribution(package)


def _is_user_path(path: str) -> bool:
    """Return whether a path is neither in the standard library nor in an installed package."""
    if path.startswith((*_STANDARD_LIBRARY, f"{_PACKAGE}{os.sep}")):
        return False
    return not any(part in path for part in ("site-packages", "dist-packages", "__pycache__"))


def _location(module: Any) -> str:
    """Return the path of a module's file or folder, or an empty string if it has none.

    Lazily loaded modules are not loaded by this function.
    """
    try:
        attributes = object.__getattribute__(module, "__dict__")
    except AttributeError:
        return ""
    with suppress(KeyError):  # Raised by a namespace package whose parent is unloaded.
        return attributes.get("__file__") or next(iter(attributes.get("__path__") or ()), "")
    return ""


@cache
def _is_distribution(package: str) -> bool:
    """Return whether a package is installed. Editable installs count too."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


_opened: set[Path] | None = None
"""Paths of the files that Python opened in the context `_opened_files`. None outside of it."""


def _record(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opened is not None and isinstance(arguments[0], str | bytes):
        _opened.add(Path(os.fsdecode(arguments[0])).absolute())


@cache
def _add_hook() -> None:
    sys.addaudithook(_record)  # The hook cannot be removed, so `@cache` adds it once.


@contextmanager
def _opened_files() -> Iterator[set[Path]]:
    """Yield a set that collects the path of every file that Python opens."""
    global _opened
    _add_hook()
    outer, _opened = _opened, set()
    try:
        yield _opened
    finally:
        _opened = outer
