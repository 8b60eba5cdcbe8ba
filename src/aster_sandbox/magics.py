"""The hidden builtins that implement IPython's magics, shell lines and help in cells. ``magic_lines`` writes the calls."""

from __future__ import annotations

import inspect
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections import ChainMap
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

from aster_sandbox import magic_lines, shell, shown

PROGRAMS = {"bash": "bash", "sh": "sh", "python": sys.executable, "python3": sys.executable}
"""Cell magics that run the cell in another program."""
COMMANDS = ("ls", "ll", "cat", "mkdir", "rmdir", "rm", "cp", "mv", "pip", "conda", "mamba", "uv")
"""Line magics that are shell commands."""
INSTEAD = {
    "who": "dir() lists the names",
    "whos": "dir() lists the names",
    "reset": "all variables are kept",
    "pylab": "import numpy and matplotlib.pyplot",
    "load_ext": "the line was left out",
}
LONGEST_VALUE = 200


def magic(name: str, rest: str) -> Any:
    """Run ``%name rest``. Prints a note if the magic is not supported."""
    frame = sys._getframe(1)
    action = _ACTIONS.get(name)
    if action is not None:
        return action(rest.strip(), _names(frame))
    if name in COMMANDS:
        shell.run(f"{'ls -l' if name == 'll' else name} {rest}", _names(frame))
    else:
        shown.note(f"[%{name} is not available here; {INSTEAD.get(name, 'the line was left out')}]")
    return None


def cell_magic(name: str, rest: str, body: str) -> Any:
    """Run ``%%name rest`` with the rest of the cell as ``body``. As in IPython, raises CalledProcessError if a script's exit
    status is not 0."""
    if name == "script":
        name, _, rest = rest.partition(" ")
    if name in PROGRAMS:
        status = sys._getframe(1).f_globals["_exit_code"] = shell.execute([PROGRAMS[name], "-c", body])
        if status:
            raise subprocess.CalledProcessError(status, name)
    elif name in ("!", "sx", "system"):
        return shell.capture(body, {})
    elif name in ("writefile", "file"):
        _write_file(rest, body)
    else:
        shown.note(f"[%%{name} is not available here; the cell was not run]")
    return None


def run_shell(command: str) -> None:
    """Run ``!command`` and store its exit status in ``_exit_code``, as IPython does."""
    frame = sys._getframe(1)
    frame.f_globals["_exit_code"] = shell.run(command, _names(frame))


def shell_lines(command: str) -> shell.ShellLines:
    """Run the command of ``x = !command`` and return its output."""
    return shell.capture(command, _names(sys._getframe(1)))


def run_code(code: str) -> None:
    """Run a compound statement that followed ``%time``, in the caller's scope."""
    frame = sys._getframe(1)
    above = "\n" * (frame.f_lineno - 1)  # so that line numbers in tracebacks are right
    exec(compile(above + code, frame.f_code.co_filename, "exec", dont_inherit=True), frame.f_globals, frame.f_locals)


def describe(name: str, with_source: bool) -> None:
    """Print what ``name?`` shows: signature or value, type and docstring; with ``name??`` also the source."""
    names = _names(sys._getframe(1))
    first, *attributes = name.split(".")
    try:
        value = names[first] if first in names else getattr(sys.modules["builtins"], first)
        for attribute in attributes:
            value = getattr(value, attribute)
    except AttributeError:
        shown.write(f"Object `{name}` not found.")
        return
    parts = []
    if callable(value):
        try:
            parts.append(f"Signature: {attributes[-1] if attributes else first}{inspect.signature(value)}")
        except (ValueError, TypeError):  # some builtins have no signature
            parts.append(f"Signature: {name}(...)")
    else:
        parts.append(f"Value: {repr(value)[:LONGEST_VALUE]}")
    parts.append(f"Type: {type(value).__name__}")
    if with_source:
        try:
            parts.append(f"Source:\n{inspect.getsource(value)}")
        except (OSError, TypeError):  # not written in Python
            parts.append("Source: not available")
    parts.append(f"Docstring:\n{inspect.getdoc(value) or '<none>'}")
    shown.write("\n".join(parts))


def _names(frame: FrameType) -> Mapping[str, Any]:
    return ChainMap(frame.f_locals, frame.f_globals)


def _change_directory(rest: str, _: Mapping[str, Any]) -> None:
    os.chdir(os.path.expanduser(rest.strip("\"'") or "~"))
    shown.write(os.getcwd())


def _environment(rest: str, names: Mapping[str, Any]) -> Any:
    """Run ``%env``, ``%env NAME``, ``%env NAME=VALUE`` or ``%env NAME VALUE``."""
    if not rest:
        return dict(os.environ)
    name, separator, value = re.match(r"([^=\s]*)([=\s]*)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr] # matches any text
    if not separator:
        return os.environ.get(name)
    os.environ[name] = shell.expand(value, names)
    shown.write(f"env: {name}={os.environ[name]}")
    return None


def _run_file(rest: str, _: Mapping[str, Any]) -> None:
    """Run ``%run file.py`` as a program and copy its variables into the session."""
    words = [word for word in shlex.split(rest) if word not in ("-i", "-e", "-n", "-t", "-p", "-d")]
    if not words:
        shown.write("[%run needs the name of a file]")
        return
    main = sys.modules["__main__"].__dict__
    arguments, sys.argv = sys.argv, words
    try:
        found = runpy.run_path(words[0], {"__builtins__": sys.modules["builtins"]}, "__main__")
    finally:
        sys.argv = arguments
    main.update({name: value for name, value in found.items() if not name.startswith("__")})


def _write_file(rest: str, body: str) -> None:
    words = shlex.split(rest)
    appending = "-a" in words or "--append" in words
    paths = [word for word in words if not word.startswith("-")]
    if not paths:
        shown.write("[%%writefile needs the name of a file]")
        return
    path = os.path.expanduser(paths[0])
    done = "Appending to" if appending else "Overwriting" if os.path.exists(path) else "Writing"
    with open(path, "a" if appending else "w", encoding="utf-8") as file:
        file.write(body)
    shown.write(f"{done} {paths[0]}")


_ACTIONS: dict[str, Callable[[str, Mapping[str, Any]], Any]] = {
    "cd": _change_directory,
    "pwd": lambda _rest, _names: os.getcwd(),
    "env": _environment,
    "set_env": _environment,
    "run": _run_file,
    "sx": shell.capture,
    "system": shell.capture,
}
BUILTINS: dict[str, Any] = {
    magic_lines.MAGIC: magic,
    magic_lines.CELL_MAGIC: cell_magic,
    magic_lines.SHELL: run_shell,
    magic_lines.SHELL_LINES: shell_lines,
    magic_lines.RUN: run_code,
    magic_lines.NOTE: shown.note,
    magic_lines.HELP: describe,
}
