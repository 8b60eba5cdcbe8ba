"""Tracebacks for cells: short, with a line number for every frame, and without the host's folders."""

from __future__ import annotations

import contextlib
import linecache
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from types import CodeType
from typing import Any

CELL = "<cell "
"""The beginning of every cell's file name, such as ``<cell 3>``."""
LONGEST_TRACEBACK = 24
PACKAGES = f"{os.sep}site-packages{os.sep}"
_LIBRARY = os.path.dirname(os.__file__) + os.sep
_HERE = os.path.dirname(__file__) + os.sep


def short_traceback(error: BaseException) -> str:
    """The traceback of an error and of all it is chained to, with only the cells' frames and the innermost library frame."""
    summary = traceback.TracebackException.from_exception(error, compact=True)
    numbers = _missing_numbers(error)
    todo = [summary]
    while todo:
        part = todo.pop()
        part.stack = _trim(part.stack, numbers)
        todo += [linked for linked in (part.__cause__, part.__context__, *(part.exceptions or ())) if linked is not None]
    text = "".join(summary.format())
    for each in _chain(error):
        if isinstance(each, ImportError) and isinstance(each.path, str):  # "cannot import name ... from ... (path)"
            text = text.replace(f"({each.path})", f"({short_path(each.path)})")
    return text


def message(error: BaseException) -> str:
    """An error's type and text, as the last line of a traceback has them."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - whatever a cell's class raises
        text = "<exception str() failed>"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def short_path(path: str) -> str:
    """A library file's path without the host's folders, for instance ``numpy/linalg/_linalg.py``."""
    _, packages, rest = path.rpartition(PACKAGES)
    if packages:
        return rest
    if path.startswith(_LIBRARY):
        return path[len(os.path.dirname(_LIBRARY[:-1])) + 1 :]
    return path


def shorten_paths() -> None:
    """Make every traceback and warning of this process, including those that cells print themselves, use ``short_path``."""
    summary: Any = traceback.StackSummary
    format_frame = summary.format_frame_summary

    def short_frame(self: traceback.StackSummary, frame: traceback.FrameSummary, **colours: Any) -> str | None:
        if frame.filename.startswith(_HERE) or frame.filename == "<frozen runpy>":
            return None  # leaves the frame out
        return str(format_frame(self, frame, **colours)).replace(f'"{frame.filename}"', f'"{short_path(frame.filename)}"', 1)

    summary.format_frame_summary = short_frame
    warnings.formatwarning = short_warning
    threading.excepthook = report_thread
    sys.unraisablehook = report_unraisable


def short_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """A warning as ``warnings`` formats it, with the short path; without a path if it comes from this package."""
    if filename.startswith(_HERE):
        return f"{category.__name__}: {message}\n"
    source = linecache.getline(filename, lineno) if line is None else line
    return f"{short_path(filename)}:{lineno}: {category.__name__}: {message}\n" + (
        f"  {source.strip()}\n" if source.strip() else ""
    )


def report_thread(arguments: threading.ExceptHookArgs) -> None:
    """Report an exception that ended a thread, as ``threading`` does, with the short traceback."""
    if arguments.exc_type is not SystemExit and arguments.exc_value is not None and sys.stderr is not None:
        name = arguments.thread.name if arguments.thread is not None else threading.get_ident()
        _report(f"Exception in thread {name}:", arguments.exc_value)


def report_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """Report an exception that cannot be caught (for instance in ``__del__``), as Python does, with the short traceback."""
    if unraisable.exc_value is None or sys.stderr is None:
        return
    place = ""
    if unraisable.object is not None:
        try:
            place = f": {unraisable.object!r}"
        except Exception:  # noqa: BLE001 - whatever a cell's class raises
            place = ": <object repr() failed>"
    _report(f"{unraisable.err_msg or 'Exception ignored in'}{place}", unraisable.exc_value)


def _report(what: str, error: BaseException) -> None:
    """Write an error to stderr, if that is possible: a cell may have closed it."""
    try:
        text = short_traceback(error)
    except BaseException:  # noqa: BLE001 - for instance from the handler of an alarm
        text = f"{message(error)}\n"
    with contextlib.suppress(Exception):
        sys.stderr.write(f"{what}\n{text}")


def line_in(code: CodeType, line: int | None, instruction: int) -> int:
    """The line of an instruction. If ``line`` is None, as for cleanup code, the line of the last instruction before it that has
    one."""
    if line is not None:
        return line
    found = code.co_firstlineno
    for start, _, each in code.co_lines():
        if start > instruction:
            break
        found = each if each is not None else found
    return found


def _missing_numbers(error: BaseException) -> dict[tuple[str, str], int]:
    """Line numbers for the frames without one in the traceback of an error and of all it is chained to, by (file, function)."""
    numbers: dict[tuple[str, str], int] = {}
    for each in _chain(error):
        trace = each.__traceback__
        while trace is not None:
            code = trace.tb_frame.f_code
            if trace.tb_lineno is None:
                numbers[code.co_filename, code.co_name] = line_in(code, None, trace.tb_lasti)
            trace = trace.tb_next
    return numbers


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and all errors it is chained to, each once."""
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        each = todo.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        todo += [each.__cause__, each.__context__, *(each.exceptions if isinstance(each, BaseExceptionGroup) else ())]


def _trim(stack: traceback.StackSummary, numbers: dict[tuple[str, str], int]) -> traceback.StackSummary:
    frames = [_shown(frame, numbers) for frame in stack if frame.filename.startswith(CELL)]
    if stack and not stack[-1].filename.startswith((CELL, _HERE)):
        frames.append(_shown(stack[-1], numbers))
    trimmed = traceback.StackSummary.from_list(frames)
    # format() folds a recursion in one line itself, but not one over several lines.
    if len(trimmed.format()) > LONGEST_TRACEBACK:
        trimmed = traceback.StackSummary.from_list(frames[: LONGEST_TRACEBACK // 4] + frames[-LONGEST_TRACEBACK // 2 :])
    return trimmed


def _shown(frame: traceback.FrameSummary, numbers: dict[tuple[str, str], int]) -> traceback.FrameSummary:
    number = frame.lineno if frame.lineno is not None else numbers.get((frame.filename, frame.name), 1)
    line = frame.line
    if frame.lineno is None:
        line = linecache.getline(frame.filename, number).strip()
    return traceback.FrameSummary(short_path(frame.filename), number, frame.name, lookup_line=False, line=line)
