"""Runs scripts and cells for others' request forms, with stdout, stderr and return code apart. This module runs inside a
session, whose hidden setup calls ``begin``; ``calls.py`` calls the rest. The warm parent has imported it.

A result waits here, and is taken in pieces that a cell's output can hold.
"""

from __future__ import annotations

import base64
import io
import json
import os
import resource
import signal
import sys
import time
from typing import Any

from aster_sandbox import cellbuiltins
from aster_sandbox.cells import Interpreter
from aster_sandbox.protocol import Kind
from aster_sandbox.service import scripts
from aster_sandbox.service.mime import fit, forms_of, forms_of_open_figures
from aster_sandbox.traces import CELL

FIGURES = "module://aster_sandbox.service.notebook_figures"
LATE = "the time limit of this code has passed"
AGAIN_SECONDS = 0.25
"""Between the interrupts of a cell that is late."""


def begin(notebook: bool = False) -> None:
    """A session begins. In a notebook, what cells show is kept apart from what they print."""
    global _session
    _session = _Session()
    if notebook:
        _session.interpreter.namespace["display"] = display
        os.environ["MPLBACKEND"] = FIGURES
        if (matplotlib := sys.modules.get("matplotlib")) is not None:  # it was preloaded, and has made its choice
            matplotlib.use(FIGURES)


def take(ticket: str, start: int, size: int) -> None:
    """Print a piece of the last result, with the length of the whole; of no length where it is not that of ``ticket``."""
    result = _session.result if ticket == _session.ticket else ""
    sys.stdout.write(f"[[{len(result)}:{result[start : start + size]}]]\n")


def run_script(ticket: str, code: str, stdin: str | None, seconds: float, withheld_mb: int) -> None:
    """Run ``code`` like ``python script.py`` in a child process, and keep its result.

    ``withheld_mb``: of the memory that the session may use, what the script may not.
    """
    try:
        outcome = scripts.run(_session.home, code, stdin, seconds, withheld_mb)
    except OSError as error:
        outcome = {"fault": str(error)}
    _session.keep(ticket, outcome)


def run_cell(ticket: str, code: str, stdin: str | None, seconds: float) -> None:
    """Run ``code`` in the session's own namespace, without echo, and keep its result. Its stdout is the cell's output. Its
    traceback is in its stderr."""
    # The number of the cell that this runs in, whose source the code takes the place of in tracebacks.
    number = int(sys._getframe(1).f_code.co_filename.removeprefix(CELL).removesuffix(">"))
    _session.paper.begin(echoes=False)
    try:
        outcome = _session.run(number, code, stdin, seconds)
        outcome["stderr"] += _session.paper.text
    except OSError as error:
        outcome = {"fault": str(error)}
    _session.keep(ticket, outcome)


def run_notebook_cell(ticket: str, number: int, code: str, seconds: float, room: int) -> None:
    """Run ``code`` as a notebook does, in the session's own namespace, and keep its result. Its stdout is the cell's output;
    what it shows, and its error, are apart. ``number``: as tracebacks name it. ``room``: characters for its result."""
    paper = _session.paper
    paper.begin(echoes=not code.rstrip().endswith(";"))
    try:
        outcome = _session.run(number, code, None, seconds)
        outcome["stderr"] = outcome["stderr"][:room]
    except OSError as error:
        outcome = {"fault": str(error)}
    try:
        paper.displayed += forms_of_open_figures()
    except Exception as error:  # noqa: BLE001 - what a figure raises when it is drawn is the cell's error
        paper.error.append(_error_info(error, ""))
    _session.keep(ticket, outcome | {"display": fit(paper.displayed, room), "error": paper.error})


def display(*values: Any, **_options: Any) -> None:
    """What notebooks have under this name."""
    _session.paper.displayed += map(forms_of, values)


class _Session:
    """What is kept from cell to cell."""

    def __init__(self) -> None:
        self.home = os.getcwd()
        self.paper = _Recorder()
        self.interpreter = Interpreter(sys.modules["__main__"].__dict__, self.paper, LATE)
        """One for all cells: they share an event loop."""
        self.ticket = self.result = ""
        self._stderr = _Stderr()

    def run(self, number: int, code: str, stdin: str | None, seconds: float) -> dict[str, Any]:
        """Run a cell to its end, or until it is late."""
        if not self._stderr.sound:
            self._stderr = _Stderr()
        self._stderr.kept.clear()
        old_stdin, old_hook = sys.stdin, sys.displayhook
        given = scripts.stdin_file(self.home, stdin)
        os.dup2(given, 0)
        os.close(given)
        sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115 - for this cell
        sys.stderr = sys.__stderr__ = self._stderr.stream  # type: ignore[misc]
        sys.displayhook = self.paper.hook
        old_handler = signal.signal(signal.SIGALRM, self.interpreter.interrupt)
        began = time.monotonic()
        try:
            signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001), AGAIN_SECONDS)
            kind = self.interpreter.run(number, code)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old_handler or signal.SIG_DFL)  # None: one that C code has set
            sys.stdin, sys.displayhook = old_stdin, old_hook
        late = kind is Kind.INTERRUPTED
        return {
            "return_code": None if late else 0 if kind is Kind.OK else self.interpreter.exit_status,
            "late": late,
            "seconds": time.monotonic() - began,
            "stderr": self._stderr.text(),
        }

    def keep(self, ticket: str, outcome: dict[str, Any]) -> None:
        """Have a result wait."""
        # Lone surrogates become question marks: no answer could hold them.
        text = json.dumps(outcome, ensure_ascii=False).encode("utf-8", "replace")
        self.ticket, self.result = ticket, base64.b64encode(text).decode()


_session: _Session


class _Recorder:
    """What a cell leaves besides its output. The surroundings of its interpreter."""

    def __init__(self) -> None:
        self.begin(echoes=False)

    def begin(self, echoes: bool) -> None:
        """Another cell, which shows its last expression, or not."""
        self.echoes = echoes
        self.text = ""
        self.displayed: list[dict[str, Any]] = []
        self.error: list[dict[str, Any]] = []

    def report(self, text: str) -> None:
        """Keep it. The interpreter is handling the exception that ended the cell."""
        error = sys.exc_info()[1]
        if isinstance(error, SystemExit) and isinstance(error.code, int):
            text = ""  # its status says it
        self.text += text
        self.error = [_error_info(error, text)]

    def lower_memory(self) -> None:
        """Nothing to do: the cell that this runs in has its limit already."""

    def raise_memory(self) -> None:
        """There must be memory to report that there is none. The next cell has its own limit again."""
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))

    def reporting(self) -> None:
        """The cell that this runs in is told by its own end."""

    def hook(self, value: Any) -> None:
        """``sys.displayhook`` of a cell."""
        if self.echoes and value is not None:
            cellbuiltins.module().__dict__["_"] = value
            display(value)


class _Stderr:
    """``sys.stderr`` of all cells: handlers of ``logging`` hold on to the one they met first."""

    def __init__(self) -> None:
        raw = _Kept()
        self.kept = raw.kept
        self.stream = io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", "backslashreplace", "\n", line_buffering=True)

    @property
    def sound(self) -> bool:
        """Whether it can still be written to."""
        try:
            return not self.stream.closed
        except ValueError:  # a cell has detached it
            return False

    def text(self) -> str:
        """What was written to it."""
        if self.sound:
            self.stream.flush()
        return self.kept.decode("utf-8", "replace")


class _Kept(io.RawIOBase):
    """Keeps the start of what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = bytearray()

    def writable(self) -> bool:
        """Always True."""
        return True

    def fileno(self) -> int:
        """For subprocesses: what they write to it is with the cell's stdout."""
        return 2

    def write(self, data: Any, /) -> int:
        """Keep what there is room for."""
        taken = bytes(data)
        self.kept += taken[: max(scripts.KEPT_BYTES - len(self.kept), 0)]
        return len(taken)


def _error_info(error: BaseException | None, text: str) -> dict[str, Any]:
    """An error as notebooks have it."""
    try:
        said = str(error)
    except Exception:  # noqa: BLE001 - an exception of a cell's own may not be able to say anything
        said = ""
    return {"ename": type(error).__name__, "evalue": said, "traceback": text.splitlines()}
