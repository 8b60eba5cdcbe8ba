"""Runs scripts and cells for others' request forms, with stdout, stderr and return code apart. This module runs inside a
session, where the session's hidden setup imports it (``calls.py`` calls it).

A result waits here, and is taken in pieces that a cell's output can hold.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import io
import json
import os
import resource
import select
import signal
import sys
import tempfile
import threading
import time
import traceback
from types import ModuleType
from typing import Any, NoReturn

from aster_sandbox.cells import Interpreter
from aster_sandbox.protocol import Kind
from aster_sandbox.service.showing import show_figures, shown
from aster_sandbox.traces import CELL

KEPT_BYTES = 1 << 20
"""Of stdout and of stderr, from the start."""
LOOK_SECONDS = 0.02
AGAIN_SECONDS = 0.25
"""Between the interrupts of a cell that is late."""
ROOT = os.getcwd()
_ticket, _result = "", ""


class _Kept(io.RawIOBase):
    """Keeps the start of what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.data = bytearray()

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """For subprocesses: what they write to it is with the cell's stdout."""
        return 2

    def write(self, data: Any, /) -> int:
        """Keep what there is room for."""
        taken = bytes(data)
        self.data += taken[: max(KEPT_BYTES - len(self.data), 0)]
        return len(taken)


def _stderr() -> tuple[_Kept, io.TextIOWrapper]:
    kept = _Kept()
    return kept, io.TextIOWrapper(io.BufferedWriter(kept), "utf-8", "backslashreplace", "\n", line_buffering=True)


_kept, _errors = _stderr()
"""``sys.stderr`` of all cells: handlers of ``logging`` hold on to the one they met first."""


def take(ticket: str, start: int, size: int) -> None:
    """Print a piece of the last result, with the length of the whole; of no length where it is not that of ``ticket``."""
    result = _result if ticket == _ticket else ""
    sys.stdout.write(f"[[{len(result)}:{result[start : start + size]}]]\n")


def run_script(ticket: str, code: str, stdin: str | None, seconds: float, withheld_mb: int) -> None:
    """Run ``code`` like ``python script.py`` in a child process, and keep its result.

    ``withheld_mb``: of the memory that the session may use, what the script may not.
    """
    try:
        outcome = _script(code, stdin, seconds, withheld_mb)
    except OSError as error:
        outcome = {"fault": str(error)}
    _keep(ticket, outcome)


def run_cell(ticket: str, code: str, stdin: str | None, seconds: float) -> None:
    """Run ``code`` in the session's own namespace, without echo, and keep its result. Its stdout is the cell's output. Its
    traceback is in its stderr."""
    _paper.begin(notebook=False)
    try:
        outcome = _cell(code, stdin, seconds)
        outcome["stderr"] += outcome.pop("report")
    except OSError as error:
        outcome = {"fault": str(error)}
    _keep(ticket, outcome)


def run_notebook_cell(ticket: str, code: str, seconds: float) -> None:
    """Run ``code`` as a notebook does, in the session's own namespace, and keep its result. Its stdout is the cell's output; what
    it shows, and its error, are apart."""
    _paper.begin(notebook=True)
    _interpreter.namespace["display"] = _paper.display
    try:
        outcome = _cell(code, None, seconds)
        _paper.displayed += show_figures()
    except OSError as error:
        outcome = {"fault": str(error)}
    _keep(ticket, outcome | {"display": _paper.displayed, "error": _paper.error})


def _script(code: str, stdin: str | None, seconds: float, withheld_mb: int) -> dict[str, Any]:
    path = os.path.join(ROOT, "script.py")
    with open(path, "w", encoding="utf-8", errors="surrogatepass") as file:
        file.write(code)
    given = _stdin_file(stdin)
    out, out_end = os.pipe()
    err, err_end = os.pipe()
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _become_script(path, given, out_end, err_end, withheld_mb)
    os.close(given)
    os.close(out_end)
    os.close(err_end)
    texts = {out: bytearray(), err: bytearray()}
    status = _watch(child, texts, began + seconds)
    took = time.monotonic() - began
    for end, text in texts.items():
        os.set_blocking(end, False)
        while _read(end, text):  # what was written before the end
            pass
        os.close(end)
    return {
        "return_code": None if status is None else os.waitstatus_to_exitcode(status),
        "late": status is None,
        "seconds": took,
        "stdout": bytes(texts[out]).decode("utf-8", "replace"),
        "stderr": bytes(texts[err]).decode("utf-8", "replace"),
    }


def _watch(child: int, texts: dict[int, bytearray], deadline: float) -> int | None:
    """Read both pipes until the child ends, then kill what it left behind. Its status; None where it was late."""
    poll = select.poll()
    for end in texts:
        poll.register(end, select.POLLIN)
    open_ends = len(texts)
    status = None
    try:
        while time.monotonic() < deadline:
            ended, code = os.waitpid(child, os.WNOHANG)
            if ended:
                status = code
                break
            if not open_ends:
                time.sleep(LOOK_SECONDS / 10)
                continue
            for end, _ in poll.poll(LOOK_SECONDS * 1000):
                if not _read(end, texts[end]):
                    poll.unregister(end)
                    open_ends -= 1
    except KeyboardInterrupt:  # the session's own limit
        status = None
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    if status is None:
        with contextlib.suppress(ProcessLookupError):  # it has not come to setpgid yet
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return status


def _read(end: int, text: bytearray) -> bool:
    try:
        data = os.read(end, 1 << 16)
    except BlockingIOError:
        return False
    text += data[: max(KEPT_BYTES - len(text), 0)]
    return bool(data)


def _become_script(path: str, given: int, out: int, err: int, withheld_mb: int) -> NoReturn:
    code = 1
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(given, 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # the session's own connection among them
        sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115 - the script's
        sys.stdout = _writer(1, "strict")
        sys.stderr = _writer(2, "backslashreplace")
        sys.argv = [path]
        _lower_memory(withheld_mb)
        module = ModuleType("__main__")
        module.__file__ = path
        sys.modules["__main__"] = module
        with open(path, encoding="utf-8", errors="surrogatepass") as file:
            source = file.read()
        code = _execute(source, path, module.__dict__)
        # As the interpreter does at its end: it waits for the threads that are no daemons.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
    except BaseException:  # noqa: BLE001 - a fault of this file's, or no memory for it: the script never came to its end
        code = 1
        os.write(2, traceback.format_exc().encode("utf-8", "replace"))
    finally:
        os._exit(code)


def _execute(source: str, name: str, namespace: dict[str, Any]) -> int:
    """Run a script to its end; the exit status."""
    try:
        exec(compile(source, name, "exec", dont_inherit=True), namespace)
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return (stop.code or 0) & 0xFF
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException as error:  # noqa: BLE001 - as the interpreter does at the end of a script
        frames = error.__traceback__.tb_next if error.__traceback__ is not None else None
        traceback.print_exception(type(error), error, frames, file=sys.stderr)
        return 1
    return 0


class _Paper:
    """What a cell leaves besides its output. The surroundings of its interpreter."""

    def __init__(self) -> None:
        self.begin(notebook=False)

    def begin(self, notebook: bool) -> None:
        """Another cell. In a notebook it shows its last expression."""
        self.notebook = notebook
        self.report_text = ""
        self.exit_code = 1
        self.displayed: list[dict[str, Any]] = []
        self.error: list[dict[str, Any]] = []

    def report(self, text: str) -> None:
        """The interpreter is handling the exception that ended the cell."""
        error = sys.exc_info()[1]
        if isinstance(error, SystemExit):
            self.exit_code = error.code & 0xFF if isinstance(error.code, int) else 1
            text = "" if isinstance(error.code, int) else text
        self.report_text += text
        self.error = [{"ename": type(error).__name__, "evalue": _said(error), "traceback": text.splitlines()}]

    def lower_memory(self) -> None:
        """The cell that this runs in has done it."""

    def raise_memory(self) -> None:
        """There must be memory to report that there is none. The next cell has its own limit again."""
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))

    def gave_way(self) -> None:
        """The cell that this runs in is told by its own end."""

    def display(self, *values: Any, **_: Any) -> None:
        """What notebooks have under this name."""
        self.displayed += [shown(value) for value in values]

    def hook(self, value: Any) -> None:
        """``sys.displayhook`` of a cell."""
        if self.notebook and value is not None:
            self.display(value)


_paper = _Paper()
_interpreter = Interpreter(sys.modules["__main__"].__dict__, _paper, "the time limit of this code has passed")
"""One for all cells: they share an event loop."""


def _cell(code: str, stdin: str | None, seconds: float) -> dict[str, Any]:
    global _kept, _errors
    if not _sound(_errors):
        _kept, _errors = _stderr()
    _kept.data.clear()
    # The number of the cell that this runs in: tracebacks find the code under it.
    name = sys._getframe(2).f_code.co_filename
    number = int(name.removeprefix(CELL).removesuffix(">"))
    old_stdin, old_hook = sys.stdin, sys.displayhook
    given = _stdin_file(stdin)
    os.dup2(given, 0)
    os.close(given)
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115 - for this cell
    sys.stderr = _errors
    sys.displayhook = _paper.hook
    old_handler = signal.signal(signal.SIGALRM, _interpreter.interrupt)
    began = time.monotonic()
    try:
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001), AGAIN_SECONDS)
        kind = _interpreter.run(number, code)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old_handler)
        sys.stdin, sys.displayhook = old_stdin, old_hook
    if _sound(_errors):
        _errors.flush()
    late = kind is Kind.INTERRUPTED
    return {
        "return_code": None if late else 0 if kind is Kind.OK else _paper.exit_code,
        "late": late,
        "seconds": time.monotonic() - began,
        "stderr": _kept.data.decode("utf-8", "replace"),
        "report": _paper.report_text,
    }


def _sound(stream: io.TextIOWrapper) -> bool:
    try:
        return not stream.closed
    except ValueError:  # a cell has detached it
        return False


def _said(error: BaseException | None) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - an exception of a cell's own may not be able to say anything
        return ""


def _stdin_file(text: str | None) -> int:
    with tempfile.TemporaryFile(dir=ROOT) as file:
        file.write((text or "").encode("utf-8", "surrogatepass"))
        file.seek(0)
        return os.dup(file.fileno())


def _writer(descriptor: int, errors: str) -> io.TextIOWrapper:
    # A write a line: what a script printed before it was killed is there.
    return io.TextIOWrapper(open(descriptor, "wb", closefd=False), encoding="utf-8", errors=errors, line_buffering=True)


def _lower_memory(withheld_mb: int) -> None:
    # The session's own limit is where to count from: without /proc nobody can ask how much address space there is already.
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (soft - (withheld_mb << 20), hard))


def _keep(ticket: str, outcome: dict[str, Any]) -> None:
    global _ticket, _result
    _ticket, _result = ticket, base64.b64encode(json.dumps(outcome).encode()).decode()
