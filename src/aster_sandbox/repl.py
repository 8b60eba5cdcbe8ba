"""The command ``run``: a Python prompt in a session, at a terminal or with piped input."""

from __future__ import annotations

import ast
import asyncio
import codeop
import itertools
import os
import shlex
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from aster_sandbox.errors import SandboxFailure, SettingsError
from aster_sandbox.interface import AnySandbox, AnySession
from aster_sandbox.opening import make_sandbox
from aster_sandbox.output import NO_OUTPUT
from aster_sandbox.settings import Settings

HELP = """\
:fork                open a second session with the same state, and switch to it
:sessions            list all sessions; a star marks the current one
:switch N            switch to session N
:reset               replace the current session with a new one
:put FILE [PATH]     copy a local file into the session
:get PATH [FILE]     copy a file from the session to here
:quit                end (also Ctrl-D)"""
NOTICE_SECONDS = 0.5
"""If the first prompt takes longer, a notice tells what it waits for."""
FIRST, MORE = ">>> ", "... "
CLAUSES = ("else", "elif", "except", "finally")
"""Words at the beginning of an unindented line that continue a compound statement."""


class Cells:
    """Gathers lines into cells, as Python's prompt does. A line that begins a new statement also ends a block, so that code can
    be pasted or piped without blank lines."""

    def __init__(self) -> None:
        self._compile = codeop.CommandCompiler()
        self._compile.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        self._lines: list[str] = []

    @property
    def begun(self) -> bool:
        """Whether there are lines of an unfinished cell."""
        return bool(self._lines)

    def add(self, line: str) -> Iterator[str]:
        """Take a line. Yields the cells that are complete now."""
        starts = line.strip() and not line[0].isspace() and line.split(":")[0].split(" ")[0] not in CLAUSES
        # A blank line ends a block at a prompt.
        if self._lines and starts and self._complete([*self._lines, ""]):
            yield self._give()
        if not self._lines and not line.strip():
            return
        self._lines.append(line)
        if self._complete(self._lines):
            yield self._give()

    def rest(self) -> Iterator[str]:
        """At the end of the input: yields the remaining lines as a cell, complete or not."""
        if self._lines:
            yield self._give()

    def drop(self) -> None:
        """Drop the lines of an unfinished cell."""
        self._lines = []

    def _complete(self, lines: list[str]) -> bool:
        with warnings.catch_warnings():  # the session shows them when it compiles the cell
            warnings.simplefilter("ignore")
            try:
                return self._compile("\n".join(lines), "<cell>", "single") is not None
            except (SyntaxError, ValueError, OverflowError):
                return True  # the session shows the error

    def _give(self) -> str:
        cell = "\n".join(self._lines)
        self._lines = []
        return cell


class Repl:
    """The sessions and commands of one prompt."""

    def __init__(self, sandbox: AnySandbox, setup: str, runner: asyncio.Runner, out: TextIO) -> None:
        self._sandbox = sandbox
        self._setup = setup
        self._runner = runner
        self._out = out
        self._numbers = itertools.count(1)
        self._sessions: dict[int, AnySession] = {}
        self._notes: dict[int, str] = {}
        self._current = self._add(self._open(), "")

    def command(self, text: str) -> bool:
        """Run a command line, which begins with a colon. Returns False if it ends the prompt."""
        name, _, argument = text[1:].strip().partition(" ")
        if name in ("quit", "q"):
            return False
        if name == "fork":
            origin = self._current
            self._current = self._add(self._runner.run(self._sessions[origin].fork()), f"forked from {origin}")
            self._say(f"[session {self._current}, forked from {origin}]")
        elif name == "reset":
            self._runner.run(self._sessions[self._current].close())
            self._sessions[self._current] = self._open()
            self._notes[self._current] = ""
            self._say(f"[session {self._current} is new]")
        elif name == "sessions":
            for number in self._sessions:
                note = f"  {self._notes[number]}" if self._notes[number] else ""
                self._say(f"{'*' if number == self._current else ' '} {number}{note}")
        elif name == "switch" and argument.isdecimal() and int(argument) in self._sessions:
            self._current = int(argument)
            self._say(f"[session {self._current}]")
        elif name == "switch":
            self._say(f"[:switch {argument}: no such session; :sessions lists them]")
        elif name in ("put", "get"):
            self._copy(name, argument)
        else:
            self._say(HELP)
        return True

    def run(self, cell: str) -> None:
        """Run a cell and print its output. Ctrl-C interrupts it."""
        try:
            call = self._runner.run(self._sessions[self._current].run(cell))
        except KeyboardInterrupt:
            self._say("[interrupted; the state before this cell is kept]")
            return
        if call.output != NO_OUTPUT:
            self._say(call.output)

    def _copy(self, name: str, argument: str) -> None:
        """Run ``:put`` or ``:get``. Names with spaces are quoted as in a shell."""
        given = f":{name} {argument}".rstrip()
        try:
            source, *rest = shlex.split(argument)
            target = rest[0] if rest else os.path.basename(source)
            if len(rest) > 1 or not target:
                raise ValueError
        except ValueError:
            self._say(f"[{given}: give one file, and optionally a target; see :help]")
            return
        session = self._sessions[self._current]
        try:
            if name == "put":
                self._runner.run(session.upload(target, Path(source).read_bytes()))
                self._say(f"[copied {source} into the session, to {target}]")
            elif not rest and os.path.exists(target):
                self._say(f"[{given}: {target} exists here; to replace it: {given} {target}]")
            else:
                Path(target).write_bytes(self._runner.run(session.download(source)))
                self._say(f"[copied {source} from the session, to {target}]")
        except OSError as error:
            self._say(f"[{given}: {error.strerror or error}]")

    def _open(self) -> AnySession:
        return self._runner.run(self._sandbox.open(1, self._setup))

    def _add(self, session: AnySession, note: str) -> int:
        number = next(self._numbers)
        self._sessions[number] = session
        self._notes[number] = note
        return number

    def _say(self, text: str) -> None:
        print(text, file=self._out, flush=True)


def run_repl(settings: Settings, setup: str, out: TextIO = sys.stdout) -> None:
    """Run the prompt on stdin until its end or ``:quit``. ``setup``: Python that runs before the first cell of each session.
    Raises SettingsError if the sandbox fails."""
    with asyncio.Runner() as runner:
        sandbox = make_sandbox(settings)
        wait = runner.get_loop().call_later(NOTICE_SECONDS, _print_wait_notice, settings)
        try:
            runner.run(sandbox.__aenter__())
            try:
                repl = Repl(sandbox, setup, runner, out)
                wait.cancel()
                _run_prompt(repl, out)
            finally:
                runner.run(sandbox.__aexit__(None, None, None))
        except SandboxFailure as error:
            raise SettingsError(str(error)) from error


def _print_wait_notice(settings: Settings) -> None:
    if not sys.stdin.isatty():  # input is piped
        return
    if settings.addresses:
        _say(f"sandbox: waiting for {', '.join(settings.addresses)} ...")
    else:
        _say(f"sandbox: loading {', '.join(settings.preload) or 'Python'} ...")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _run_prompt(repl: Repl, out: TextIO) -> None:
    interactive = sys.stdin.isatty()
    if interactive:
        import readline  # noqa: F401 - gives input() its editing and history

        print("Python in a sandbox. :help for commands, :quit to end.", file=out)
    cells = Cells()
    while True:
        try:
            line = input(MORE if cells.begun else FIRST) if interactive else _next_line()
            for cell in cells.rest() if line.startswith(":") else cells.add(line):
                repl.run(cell)
            if line.startswith(":") and not repl.command(line):
                return
        except EOFError:
            break
        except KeyboardInterrupt:
            print("\nKeyboardInterrupt", file=out)
            cells.drop()
    for cell in cells.rest():
        repl.run(cell)


def _next_line() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")
