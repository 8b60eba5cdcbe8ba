"""Runs scripts and cells inside a session, with stdout, stderr and return code apart.

This file's text is the hidden setup of the sessions behind ``/run_code`` and ``/run_stateful_code`` (``fusion.py`` sends it),
so it uses the standard library alone. A result waits here, and is taken in pieces that a cell's output can hold.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import io
import itertools
import json
import linecache
import os
import resource
import select
import signal
import sys
import tempfile
import threading
import time
import traceback
from types import FrameType, ModuleType
from typing import Any, NoReturn

KEPT_BYTES = 1 << 20
"""Of stdout and of stderr, from the start."""
FETCHED_BYTES = 4 << 20
"""Of all files that are sent back together."""
LOOK_SECONDS = 0.02
ROOT = os.getcwd()
_numbers = itertools.count(1)
_result = ""


class CellTooLate(KeyboardInterrupt):
    """Raised in a cell after ``run_timeout``."""


class Kept(io.TextIOBase):
    """A text stream that keeps the start of what is written to it."""

    def __init__(self) -> None:
        self.text = ""

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, text: str) -> int:
        """Keep what there is room for."""
        self.text += text[: max(KEPT_BYTES - len(self.text), 0)]
        return len(text)


_errors = Kept()
"""``sys.stderr`` of all cells: handlers of ``logging`` hold on to the one they met first."""


def take(start: int, size: int) -> None:
    """Print a piece of the last result, with the length of the whole."""
    sys.stdout.write(f"[[{len(_result)}:{_result[start : start + size]}]]\n")


def run_script(
    code: str, stdin: str | None, seconds: float, withheld_mb: int, files: dict[str, str | None], fetch: list[str]
) -> None:
    """Run ``code`` like ``python script.py`` in a child process, and keep its result.

    ``withheld_mb``: of the memory that the session may use, what the script may not.
    """
    try:
        _put(files)
        outcome = _script(code, stdin, seconds, withheld_mb)
        outcome["files"] = _fetch(fetch)
    except (OSError, ValueError) as error:
        outcome = {"fault": str(error)}
    _keep(outcome)


def run_cell(code: str, stdin: str | None, seconds: float, files: dict[str, str | None], fetch: list[str]) -> None:
    """Run ``code`` in the session's own namespace, without echo, and keep its result. Its stdout is the cell's output."""
    _keep({"fault": "the cell was interrupted"})
    try:
        _put(files)
        outcome = _cell(code, stdin, seconds)
        outcome["files"] = _fetch(fetch)
    except (OSError, ValueError) as error:
        outcome = {"fault": str(error)}
    _keep(outcome)


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


def _cell(code: str, stdin: str | None, seconds: float) -> dict[str, Any]:
    main = sys.modules["__main__"].__dict__
    _errors.text = ""
    name = f"<code {next(_numbers)}>"
    linecache.cache[name] = (len(code), None, [f"{line}\n" for line in code.split("\n")], name)
    old_stdin, old_handler = sys.stdin, signal.signal(signal.SIGALRM, _too_late)
    late = False
    began = time.monotonic()
    given = _stdin_file(stdin)
    os.dup2(given, 0)
    os.close(given)
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115 - for this cell
    sys.stderr = _errors
    status = 1
    try:
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
        status = _execute(code, name, main)
    except KeyboardInterrupt:
        late = True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old_handler)
        sys.stdin = old_stdin
    return {
        "return_code": None if late else status,
        "late": late,
        "seconds": time.monotonic() - began,
        "stderr": _errors.text,
    }


def _execute(source: str, name: str, namespace: dict[str, Any]) -> int:
    """Run to the end; the exit status. Lets a KeyboardInterrupt of ours through."""
    try:
        exec(compile(source, name, "exec", dont_inherit=True), namespace)
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return (stop.code or 0) & 0xFF
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and type(error) is not KeyboardInterrupt:
            raise
        frames = error.__traceback__.tb_next if error.__traceback__ is not None else None
        traceback.print_exception(type(error), error, frames, file=sys.stderr)
        return 1
    return 0


def _too_late(_signal: int, _frame: FrameType | None) -> None:
    raise CellTooLate


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


def _inside(name: str) -> str:
    path = os.path.realpath(os.path.join(ROOT, name))
    if not path.startswith(os.path.realpath(ROOT) + os.sep) or "\0" in name:
        raise ValueError(f"{name!r} is not a path in the working directory")
    return path


def _put(files: dict[str, str | None]) -> None:
    for name, content in files.items():
        if content is None:
            continue
        path = _inside(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(base64.b64decode(content, validate=True))


def _fetch(names: list[str]) -> dict[str, str]:
    found = {}
    left = FETCHED_BYTES
    for name in names:
        path = _inside(name)
        if not os.path.isfile(path):
            continue
        with open(path, "rb") as file:
            data = file.read(left + 1)
        left -= len(data)
        if left < 0:
            raise ValueError(f"fetch_files: more than {FETCHED_BYTES >> 20} MiB")
        found[name] = base64.b64encode(data).decode()
    return found


def _keep(outcome: dict[str, Any]) -> None:
    global _result
    _result = base64.b64encode(json.dumps(outcome).encode()).decode()
