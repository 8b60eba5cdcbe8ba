"""The command ``run``: a prompt on a session, for a person, or for a program that writes to its stdin."""

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
from aster_sandbox.interface import AnySandbox, AnySession, make_sandbox
from aster_sandbox.output import NO_OUTPUT
from aster_sandbox.settings import Settings

HELP = """\
:fork                a second session that has run the same cells; the prompt moves to it
:sessions            all sessions, the current one with a star
:switch N            move the prompt to session N
:reset               a fresh session in place of the current one
:put FILE [PATH]     copy a file of yours into the session
:get PATH [FILE]     copy a file of the session's here
:quit                end (Ctrl-D too)"""
NOTICE_SECONDS = 0.5
"""Who waits longer for the first prompt is told for what."""
FIRST, MORE = ">>> ", "... "
CLAUSES = ("else", "elif", "except", "finally")
"""What goes on with a block without being indented."""


class Cells:
    """Gathers lines until they are a cell, as Python's own prompt does. A line that begins a new statement ends a block too, so
    that code can be pasted or piped in without blank lines."""

    def __init__(self) -> None:
        self._compile = codeop.CommandCompiler()
        self._compile.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        self._lines: list[str] = []

    @property
    def begun(self) -> bool:
        """Whether lines wait for more."""
        return bool(self._lines)

    def add(self, line: str) -> Iterator[str]:
        """Take a line; the cells that are complete now."""
        starts = line.strip() and not line[0].isspace() and line.split(":")[0].split(" ")[0] not in CLAUSES
        # The blank line is what a prompt asks for where a block could end.
        if self._lines and starts and self._complete([*self._lines, ""]):
            yield self._give()
        if not self._lines and not line.strip():
            return
        self._lines.append(line)
        if self._complete(self._lines):
            yield self._give()

    def rest(self) -> Iterator[str]:
        """At the end of the input: what is left, complete or not."""
        if self._lines:
            yield self._give()

    def drop(self) -> None:
        """Forget the lines that wait."""
        self._lines = []

    def _complete(self, lines: list[str]) -> bool:
        with warnings.catch_warnings():  # the session gives them
            warnings.simplefilter("ignore")
            try:
                return self._compile("\n".join(lines), "<cell>", "single") is not None
            except (SyntaxError, ValueError, OverflowError):
                return True  # the session shows what is wrong

    def _give(self) -> str:
        cell = "\n".join(self._lines)
        self._lines = []
        return cell


class Repl:
    """The sessions of one prompt."""

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
        """Do what a line that begins with a colon says. False where it ends the prompt."""
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
            self._say(f"[session {self._current} is fresh]")
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
        """Run a cell and print what comes of it. Ctrl-C ends it."""
        try:
            call = self._runner.run(self._sessions[self._current].run(cell))
        except KeyboardInterrupt:
            self._say("[interrupted; the state before this cell is kept]")
            return
        if call.output != NO_OUTPUT:
            self._say(call.output)

    def _copy(self, name: str, argument: str) -> None:
        """``:put`` and ``:get``. Names with spaces are quoted as in a shell."""
        given = f":{name} {argument}".rstrip()
        try:
            source, *rest = shlex.split(argument)
            target = rest[0] if rest else os.path.basename(source)
            if len(rest) > 1 or not target:
                raise ValueError
        except ValueError:
            self._say(f"[{given}: name a file, and where it goes if that is elsewhere: :help]")
            return
        session = self._sessions[self._current]
        try:
            if name == "put":
                self._runner.run(session.upload(target, Path(source).read_bytes()))
                self._say(f"[{source} is in the session, as {target}]")
            elif not rest and os.path.exists(target):
                self._say(f"[{given}: {target} is here already; to replace it: {given} {target}]")
            else:
                Path(target).write_bytes(self._runner.run(session.download(source)))
                self._say(f"[{source} is here, as {target}]")
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
    """Read lines from stdin until its end, or ``:quit``. Raises SettingsError where the sandbox fails."""
    with asyncio.Runner() as runner:
        sandbox = make_sandbox(settings)
        wait = runner.get_loop().call_later(NOTICE_SECONDS, _print_wait_notice, settings)
        try:
            runner.run(sandbox.__aenter__())
            try:
                repl = Repl(sandbox, setup, runner, out)
                wait.cancel()
                _talk(repl, out)
            finally:
                runner.run(sandbox.__aexit__(None, None, None))
        except SandboxFailure as error:
            raise SettingsError(str(error)) from error


def _print_wait_notice(settings: Settings) -> None:
    if not sys.stdin.isatty():  # no person waits
        return
    if settings.addresses:
        _say(f"sandbox: waiting for {', '.join(settings.addresses)} ...")
    else:
        _say(f"sandbox: loading {', '.join(settings.preload) or 'Python'} ...")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _talk(repl: Repl, out: TextIO) -> None:
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
