"""Run scripts and cells for SandboxFusion's requests, with separate stdout, stderr and return code.

This module runs inside a session. The session's setup calls ``begin``; ``calls.py`` calls the other functions as cells. The
zygote has imported it. A result is kept here until ``take`` has printed it, in pieces that fit into a cell's output.
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
from aster_sandbox.service.mime import forms_of, forms_of_open_figures, limit_size
from aster_sandbox.traces import CELL

FIGURES = "module://aster_sandbox.service.notebook_figures"
LATE = "the time limit of this code has passed"
AGAIN_SECONDS = 0.25
"""Pause between the interrupts of a cell that is late."""


def begin(notebook: bool = False) -> None:
    """Prepare the session. ``notebook``: keep what cells show separate from what they print."""
    global _session
    _session = _Session()
    if notebook:
        _session.interpreter.namespace["display"] = display
        os.environ["MPLBACKEND"] = FIGURES
        if (matplotlib := sys.modules.get("matplotlib")) is not None:  # preloaded, so it has chosen a backend already
            matplotlib.use(FIGURES)


def take(ticket: str, start: int, size: int) -> None:
    """Print a piece of the result that belongs to ``ticket``, with the length of the whole; length 0 if there is none."""
    result = _session.result if ticket == _session.ticket else ""
    sys.stdout.write(f"[[{len(result)}:{result[start : start + size]}]]\n")


def run_script(ticket: str, code: str, stdin: str | None, seconds: float, withheld_mb: int) -> None:
    """Run ``code`` like ``python script.py`` in a child process and keep its result.

    ``withheld_mb``: how much of the session's memory the script may not use.
    """
    try:
        outcome = scripts.run(_session.home, code, stdin, seconds, withheld_mb)
    except OSError as error:
        outcome = {"fault": str(error)}
    _session.keep(ticket, outcome)


def run_cell(ticket: str, code: str, stdin: str | None, seconds: float) -> None:
    """Run ``code`` in the session's namespace, without echo, and keep its result. Its stdout is the cell's output; its
    traceback is part of its stderr."""
    # The number of the calling cell; in tracebacks, ``code`` replaces that cell's source.
    number = int(sys._getframe(1).f_code.co_filename.removeprefix(CELL).removesuffix(">"))
    _session.paper.begin(echoes=False)
    try:
        outcome = _session.run(number, code, stdin, seconds)
        outcome["stderr"] += _session.paper.text
    except OSError as error:
        outcome = {"fault": str(error)}
    _session.keep(ticket, outcome)


def run_notebook_cell(ticket: str, number: int, code: str, seconds: float, room: int) -> None:
    """Run ``code`` in the session's namespace, as a notebook does, and keep its result. Its stdout is the cell's output; what
    it shows and its error are separate.

    ``number``: the cell's number in tracebacks. ``room``: maximum length of what it shows, and of its stderr."""
    paper = _session.paper
    paper.begin(echoes=not code.rstrip().endswith(";"))
    try:
        outcome = _session.run(number, code, None, seconds)
        outcome["stderr"] = outcome["stderr"][:room]
    except OSError as error:
        outcome = {"fault": str(error)}
    try:
        paper.displayed += forms_of_open_figures()
    except Exception as error:  # noqa: BLE001 - an exception while drawing a figure is the cell's error
        paper.error.append(_error_info(error, ""))
    _session.keep(ticket, outcome | {"display": limit_size(paper.displayed, room), "error": paper.error})


def display(*values: Any, **_options: Any) -> None:
    """Show values, like IPython's ``display``."""
    _session.paper.displayed += map(forms_of, values)


class _Session:
    """The state that is kept from cell to cell."""

    def __init__(self) -> None:
        self.home = os.getcwd()
        self.paper = _Recorder()
        self.interpreter = Interpreter(sys.modules["__main__"].__dict__, self.paper, LATE)
        """One for all cells, because they share an event loop."""
        self.ticket = self.result = ""
        self._stderr = _Stderr()

    def run(self, number: int, code: str, stdin: str | None, seconds: float) -> dict[str, Any]:
        """Run a cell to its end or for ``seconds``. Returns the dict ``return_code``, ``late``, ``seconds``, ``stderr``."""
        if not self._stderr.usable:
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
            signal.signal(signal.SIGALRM, old_handler or signal.SIG_DFL)  # None: a handler that C code installed
            sys.stdin, sys.displayhook = old_stdin, old_hook
        late = kind is Kind.INTERRUPTED
        return {
            "return_code": None if late else 0 if kind is Kind.OK else self.interpreter.exit_status,
            "late": late,
            "seconds": time.monotonic() - began,
            "stderr": self._stderr.text(),
        }

    def keep(self, ticket: str, outcome: dict[str, Any]) -> None:
        """Keep a result for ``take``."""
        # Lone surrogates become question marks, because a JSON reply in UTF-8 cannot contain them.
        text = json.dumps(outcome, ensure_ascii=False).encode("utf-8", "replace")
        self.ticket, self.result = ticket, base64.b64encode(text).decode()


_session: _Session


class _Recorder:
    """Records what a cell shows and raises (``cells.CellProcess``)."""

    def __init__(self) -> None:
        self.begin(echoes=False)

    def begin(self, echoes: bool) -> None:
        """Start the record of another cell. ``echoes``: whether it shows its last expression."""
        self.echoes = echoes
        self.text = ""
        self.displayed: list[dict[str, Any]] = []
        self.error: list[dict[str, Any]] = []

    def report(self, text: str) -> None:
        """Record a traceback. Called while the exception that ended the cell is handled."""
        error = sys.exc_info()[1]
        if isinstance(error, SystemExit) and isinstance(error.code, int):
            text = ""  # the return code tells it
        self.text += text
        self.error = [_error_info(error, text)]

    def lower_memory(self) -> None:
        """Do nothing: the limit of the calling cell applies already."""

    def raise_memory(self) -> None:
        """Lift the memory limit, so that a MemoryError can be reported. The next cell sets it again."""
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))

    def reporting(self) -> None:
        """Do nothing: the supervisor watches the calling cell."""

    def hook(self, value: Any) -> None:
        """``sys.displayhook`` of a cell."""
        if self.echoes and value is not None:
            cellbuiltins.module().__dict__["_"] = value
            display(value)


class _Stderr:
    """The ``sys.stderr`` of all cells. It stays the same object, because handlers of ``logging`` keep the first they get."""

    def __init__(self) -> None:
        raw = _Kept()
        self.kept = raw.kept
        self.stream = io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", "backslashreplace", "\n", line_buffering=True)

    @property
    def usable(self) -> bool:
        """Whether it can still be written to."""
        try:
            return not self.stream.closed
        except ValueError:  # a cell detached it
            return False

    def text(self) -> str:
        """What was written to it."""
        if self.usable:
            self.stream.flush()
        return self.kept.decode("utf-8", "replace")


class _Kept(io.RawIOBase):
    """A raw stream that keeps the first KEPT_BYTES written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = bytearray()

    def writable(self) -> bool:
        """Always True."""
        return True

    def fileno(self) -> int:
        """Descriptor 2, for subprocesses: their stderr is part of the cell's stdout."""
        return 2

    def write(self, data: Any, /) -> int:
        """Keep as much as there is room for."""
        taken = bytes(data)
        self.kept += taken[: max(scripts.KEPT_BYTES - len(self.kept), 0)]
        return len(taken)


def _error_info(error: BaseException | None, text: str) -> dict[str, Any]:
    """An error in the form of Jupyter's protocol."""
    try:
        value = str(error)
    except Exception:  # noqa: BLE001 - whatever a cell's class raises
        value = ""
    return {"ename": type(error).__name__, "evalue": value, "traceback": text.splitlines()}
