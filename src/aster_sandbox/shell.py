"""Shell commands in cells, run as IPython runs them. Commands that would install packages get a text instead."""

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
    """The lines that a command wrote, like IPython's ``SList``."""

    @property
    def n(self) -> str:
        """The lines as one string, separated by newlines."""
        return "\n".join(self)

    @property
    def s(self) -> str:
        """The lines as one string, separated by spaces."""
        return " ".join(self)


def run(command: str, names: Mapping[str, Any]) -> int:
    """Run a command with its output going to the cell's output. Returns its exit status.

    ``names``: the variables for ``{expression}`` and ``$name`` in the command."""
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
    """Run a command and return the lines that it wrote."""
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
    """Run a program and return its exit status. An exception, such as an interrupt, kills it and what it started."""
    shown.flush()
    return _finish(subprocess.Popen(command, process_group=0))[0]


def _output_of(command: list[str]) -> str:
    streams: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return _finish(subprocess.Popen(command, **streams, text=True, errors="replace", process_group=0))[1]


def _finish(process: subprocess.Popen[Any]) -> tuple[int, str]:
    """Wait for a program. Returns its exit status and its output, which is empty if that was not captured."""
    try:
        text, _ = process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):  # the whole process group has ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    return process.returncode, text or ""


def expand(command: str, names: Mapping[str, Any]) -> str:
    """Replace ``{expression}``, ``$name`` and ``$name.attribute`` in a command with their values, as IPython does.

    A ``$name`` without a value is left to the shell. If an expression fails, the whole command stays as it is."""
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
    except Exception:  # noqa: BLE001 - whatever the expression raises, it is probably not meant as Python
        return command


def _value(found: re.Match[str], scope: dict[str, Any]) -> str:
    if found[1]:
        return f"${found[2]}"
    try:
        return str(eval(found[2], scope))
    except Exception:  # noqa: BLE001 - a variable of the shell, or a value whose __str__ fails
        return found[0]


def _shell() -> str:
    return BASH if os.path.exists(BASH) else "/bin/sh"
