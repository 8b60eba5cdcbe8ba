"""Commands of cells: in a shell, as IPython runs them. What would install packages is answered in words."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Mapping
from string import Formatter
from typing import Any

from aster_sandbox import packages, shown

BASH = "/bin/bash"
_VARIABLE = re.compile(r"\$(\$?)([A-Za-z_][\w.]*)")


class ShellLines(list[str]):
    """The lines that a command wrote, as IPython's ``SList``: also as one string."""

    @property
    def n(self) -> str:
        """One line below the other."""
        return "\n".join(self)

    @property
    def s(self) -> str:
        """With spaces between them."""
        return " ".join(self)


def run(command: str, names: Mapping[str, Any]) -> int:
    """Run a command; what it writes goes to the cell's output. Returns its status. ``names`` are for ``{expression}`` and
    ``$name`` in it."""
    rest = expand(command, names)
    status = 0
    while rest:
        answered = packages.answer(rest)
        if answered is None:
            return execute([_shell(), "-c", rest])
        if answered.text:
            shown.write(answered.text)
        rest, status = answered.rest, int(not answered.complete)
    return status


def capture(command: str, names: Mapping[str, Any]) -> ShellLines:
    """Run a command, and return the lines that it wrote."""
    rest = expand(command, names)
    lines = ShellLines()
    while rest:
        answered = packages.answer(rest)
        if answered is None:
            return ShellLines(lines + _output_of([_shell(), "-c", rest]).splitlines())
        lines += answered.text.splitlines()
        rest = answered.rest
    return lines


def execute(command: list[str]) -> int:
    """Run a program to its end; an interrupt ends it, with what it started. Returns its status."""
    shown.flush()
    return _finish(subprocess.Popen(command, process_group=0))[0]


def _output_of(command: list[str]) -> str:
    streams: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return _finish(subprocess.Popen(command, **streams, text=True, errors="replace", process_group=0))[1]


def _finish(process: subprocess.Popen[Any]) -> tuple[int, str]:
    """A program's status, and what it wrote where that is not the cell's output. An interrupt ends it, with what it started."""
    try:
        text, _ = process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):  # all of it has ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    return process.returncode, text or ""


def expand(command: str, names: Mapping[str, Any]) -> str:
    """``{expression}``, ``$name`` and ``$name.attribute`` as their values, as in IPython. What has no value here is left to the
    shell: a name alone, or the whole command where it is an expression."""
    if "{" not in command and "$" not in command:
        return command
    scope = dict(names)
    try:
        parts = []
        for text, field, form, _ in Formatter().parse(command):
            parts.append(_VARIABLE.sub(lambda found: _value(found, scope), text))
            if field is not None:
                parts.append(str(eval(f"{field}:{form}" if form else field, scope)))
        return "".join(parts)
    except Exception:  # noqa: BLE001 - whatever an expression raises: it was not meant for Python
        return command


def _value(found: re.Match[str], scope: dict[str, Any]) -> str:
    if found[1]:
        return f"${found[2]}"
    try:
        return str(eval(found[2], scope))
    except Exception:  # noqa: BLE001 - the shell's variable, or what has no text
        return found[0]


def _shell() -> str:
    return BASH if os.path.exists(BASH) else "/bin/sh"
