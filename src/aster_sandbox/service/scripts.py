"""Run a script like ``python script.py`` in a child process, with separate stdout, stderr and return code.

This module runs inside a session."""

from __future__ import annotations

import atexit
import contextlib
import io
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

KEPT_BYTES = 1 << 20
"""How much of stdout, and of stderr, is kept: the first so many bytes."""
LOOK_SECONDS = 0.02


def stdin_file(home: str, text: str | None) -> int:
    """A descriptor from which ``text`` can be read: of a nameless temporary file in ``home``."""
    with tempfile.TemporaryFile(dir=home) as file:
        file.write((text or "").encode("utf-8", "surrogatepass"))
        file.seek(0)
        return os.dup(file.fileno())


def run(home: str, code: str, stdin: str | None, seconds: float, withheld_mb: int) -> dict[str, Any]:
    """Run ``code`` to its end or for ``seconds``. Returns the dict ``return_code``, ``late``, ``seconds``, ``stdout``,
    ``stderr``.

    ``home``: the session's working directory. ``withheld_mb``: how much of the session's memory the script may not use."""
    path = os.path.join(home, "script.py")
    with open(path, "w", encoding="utf-8", errors="surrogatepass") as file:
        file.write(code)
    given = stdin_file(home, stdin)
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
        while _read(end, text):  # read what is left in the pipe
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
    """Read both pipes until the child ends or the deadline passes, then kill its process group. Returns its wait status; None
    if it was late."""
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
    except KeyboardInterrupt:  # the session's own time limit
        status = None
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    if status is None:
        with contextlib.suppress(ProcessLookupError):  # it may not have called setpgid yet
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
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # includes the session's own connection
        given_text = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115 - the script's
        sys.stdin = sys.__stdin__ = given_text  # type: ignore[misc]
        sys.stdout = sys.__stdout__ = _writer(1, "strict")  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = _writer(2, "backslashreplace")  # type: ignore[misc]
        sys.argv = [path]
        _lower_memory(withheld_mb)
        module = ModuleType("__main__")
        module.__file__ = path
        sys.modules["__main__"] = module
        with open(path, encoding="utf-8", errors="surrogatepass") as file:
            source = file.read()
        code = _execute(source, path, module.__dict__)
        # The interpreter also waits for non-daemon threads and runs exit functions at its end.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
    except BaseException:  # noqa: BLE001 - an error in this module, or no memory left for it
        code = 1
        os.write(2, traceback.format_exc().encode("utf-8", "replace"))
    finally:
        os._exit(code)


def _execute(source: str, name: str, namespace: dict[str, Any]) -> int:
    """Run a script to its end. Returns its exit status."""
    try:
        exec(compile(source, name, "exec", dont_inherit=True), namespace)
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return (stop.code or 0) & 0xFF
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException as error:  # noqa: BLE001 - the interpreter prints any exception too
        frames = error.__traceback__.tb_next if error.__traceback__ is not None else None
        traceback.print_exception(type(error), error, frames, file=sys.stderr)
        return 1
    return 0


def _writer(descriptor: int, errors: str) -> io.TextIOWrapper:
    # Line buffered, so that the output before a kill is not lost.
    return io.TextIOWrapper(open(descriptor, "wb", closefd=False), encoding="utf-8", errors=errors, line_buffering=True)


def _lower_memory(withheld_mb: int) -> None:
    # Subtract from the session's limit: without /proc the current size of the address space is not known.
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (soft - (withheld_mb << 20), hard))
