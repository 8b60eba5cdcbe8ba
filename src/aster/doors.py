"""The doors for a user's own code: a recipe names a registered thing, ``module:name`` or ``file.py:name``.

What fails in such code is reported with the user's file and line, and with what the door expected: :func:`blame`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from aster.errors import UserError, one_line

PACKAGE = Path(__file__).parent


def load(name: str, registered: Mapping[str, str], field: str) -> Any:
    """The object that a recipe's ``field`` names. ``registered`` maps the names that come with ASTER to ``module:name``.

    A module is looked for on Python's path and in the current folder. UserError where there is none, or it cannot be imported.
    """
    target = registered.get(name, name)
    module_name, colon, attribute = target.rpartition(":")
    if not colon or not module_name or not attribute:
        known = f"{', '.join(registered)}, " if registered else ""
        raise UserError(f"{field}: nothing is called {name!r}; there are {known}module:name and file.py:name")
    module = _file(module_name, field) if module_name.endswith(".py") else _module(module_name, field)
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise UserError(f"{field}: {module_name} has no {attribute}") from None


def build(target: Any, arguments: Mapping[str, Any], field: str) -> Any:
    """Call a class or function that a door gave, with the recipe's arguments. UserError where they do not fit, or it raises."""
    try:
        inspect.signature(target).bind(**arguments)
    except TypeError as error:
        raise UserError(f"{field}: {_name(target)}{inspect.signature(target)}: {error}") from None
    try:
        return target(**arguments)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{field}: {blame(error)}") from error


def blame(error: BaseException, expected: str = "") -> str:
    """Where an error in a user's code was raised, and what it was: ``own_reward.py, line 12, in reward: KeyError: 'x'``.

    ``expected``: what the door asks of the code, added in brackets."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _is_library(Path(frame.filename))]
    frame = own[-1] if own else frames[-1] if frames else None
    place = f"{_short(frame.filename)}, line {frame.lineno}, in {frame.name}: " if frame is not None else ""
    hint = f" (expected: {expected})" if expected else ""
    return f"{place}{type(error).__name__}: {one_line(error)}{hint}"


def place_of(target: Any) -> str:
    """File, line and name of a user's function or class, for messages about what it gave: ``own_reward.py, line 3, in
    reward``."""
    try:
        file, line = inspect.getsourcefile(target), inspect.getsourcelines(target)[1]
    except (OSError, TypeError):
        return _name(target)
    return f"{_short(file or '')}, line {line}, in {_name(target)}"


def _module(name: str, field: str) -> ModuleType:
    with _importing(name, field), _current_folder():
        return importlib.import_module(name)


def _file(path: str, field: str) -> ModuleType:
    found = Path(path).resolve()
    if not found.exists():
        raise UserError(f"{field}: {path}: no such file")
    name = f"aster_door_{found.stem}_{abs(hash(found))}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, found)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up
    try:
        with _importing(path, field):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextlib.contextmanager
def _importing(name: str, field: str) -> Iterator[None]:
    try:
        yield
    except SyntaxError as error:
        raise UserError(f"{field}: {_short(error.filename or name)}, line {error.lineno}: {error.msg}") from error
    except ModuleNotFoundError as error:
        if error.name is not None and name.partition(".")[0] == error.name.partition(".")[0]:
            raise UserError(f"{field}: there is no module {name}; is it in the current folder or on PYTHONPATH?") from None
        raise UserError(f"{field}: {blame(error)}") from error
    except Exception as error:
        raise UserError(f"{field}: {blame(error)}") from error


@contextlib.contextmanager
def _current_folder() -> Iterator[None]:
    """The command ``aster`` does not look for modules in the current folder by itself, as ``python -m`` does."""
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        if added:
            sys.path.remove(here)


def _is_library(path: Path) -> bool:
    return path.is_relative_to(PACKAGE) or "site-packages" in path.parts or str(path).startswith(("<", sys.base_prefix))


def _short(filename: str) -> str:
    path = Path(filename)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _name(target: Any) -> str:
    return getattr(target, "__qualname__", None) or type(target).__name__
