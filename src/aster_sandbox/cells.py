"""Run one cell inside the session process: compile, echo the last expression, await, interrupt, report errors."""

from __future__ import annotations
import __future__

import asyncio
import ctypes
import linecache
from ast import Expr, Interactive, Module, PyCF_ALLOW_TOP_LEVEL_AWAIT, PyCF_ONLY_AST
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from inspect import CO_COROUTINE
from sys import setprofile, settrace
from types import CodeType, FrameType
from typing import Any, Protocol

from aster_sandbox.protocol import INTERRUPT, Kind
from aster_sandbox.repair import advice, as_written, repair
from aster_sandbox.traces import CELL, line_in, message, short_traceback

BETWEEN_STATEMENTS = frozenset("\n\r;:")
"""Source without any of these characters is at most one statement."""
SINGLE_INTERRUPTS = 2
"""So many interrupts of a cell raise once each. Each later one raises again at every step of the interpreter, so that code
which swallows it (``except: pass`` in a loop) gets it again at once, also outside its ``try``."""
_trip = ctypes.pythonapi.PyErr_SetInterruptEx
_INTERRUPT = int(INTERRUPT)
_lines = linecache.cache
"""The original ``linecache.cache``: the lines of all cells and of files in tracebacks. A cell may replace the attribute."""
_FUTURE_FLAGS = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)


class CellTimeout(KeyboardInterrupt):
    """Raised in a cell that ran too long. Not an ``Exception``, so that ``except Exception`` does not catch it."""

    __module__ = "builtins"


class CellProcess(Protocol):
    """What an ``Interpreter`` needs from the process it runs in."""

    def report(self, text: str) -> None:
        """Write a traceback to the cell's output."""

    def lower_memory(self) -> None:
        """Set the address-space limit for a cell's code."""

    def raise_memory(self) -> None:
        """Lift that limit after the cell's code has ended, so that there is memory to report a MemoryError. May be called
        several times."""

    def reporting(self) -> None:
        """Tell the supervisor that an interrupt has ended the cell and its traceback follows."""


def _is_usable(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether an event loop can still run. A cell may have closed it or its descriptors."""
    try:
        if (selector := getattr(loop, "_selector", None)) is not None:
            selector.select(0)
        if (waker := getattr(loop, "_ssock", None)) is not None:
            waker.getpeername()
    except (OSError, ValueError):
        return False
    return not loop.is_closed()


class Interpreter:
    """Runs cells in one namespace."""

    def __init__(self, namespace: dict[str, Any], surroundings: CellProcess, timeout_text: str = "") -> None:
        self.namespace = namespace
        self.finished = -1
        """If the last cell was interrupted: how many of its top-level statements had ended when the first interrupt came."""
        self.line = 0
        """If the last cell was interrupted: the line in which the next statement begins."""
        self.exit_status = 0
        """The exit status of a program that ends as the last cell did."""
        self._process = surroundings
        self._timeout_text = timeout_text
        self._interruptible = False
        self._interrupts = 0
        self._interrupted_at: dict[tuple[CodeType, int], int] = {}
        """Code positions at which repeated interrupts came, with their counts."""
        self._name = ""
        self._awaited: Any = None
        self._flags = PyCF_ALLOW_TOP_LEVEL_AWAIT
        self._loop: asyncio.AbstractEventLoop | None = None

    def interrupt(self, _signal: int, frame: FrameType | None) -> None:
        """Signal handler for the supervisor's interrupt: raise CellTimeout in the cell, or do nothing if none runs."""
        if not self._interruptible:
            return
        if not self._interrupts:
            self.line = self._line_reached(frame)
        self._interrupts += 1
        error = CellTimeout(self._timeout_text)
        if self._interrupts > SINGLE_INTERRUPTS and frame is not None:
            place = frame.f_code, frame.f_lasti
            times = self._interrupted_at[place] = self._interrupted_at.get(place, 0) + 1
            # Trip the signal again. The interpreter checks for signals after each call in its bytecode, so a plain call of
            # _trip would be interrupted by its own effect before the next line; a call made by an iterator is not. Every second
            # interrupt at the same position is skipped: Python 3.12 counts the jump at the end of an ``except`` as part of the
            # ``try`` before it, so an exception raised there would come back forever.
            for _ in map(_trip, (_INTERRUPT,)):
                if times % 2:
                    raise error
                return
        raise error

    def handler_of_sigint(self) -> Callable[[int, FrameType | None], None]:
        """A stand-in for Python's own SIGINT handler, with the same name, that does nothing while no cell runs."""

        def default_int_handler(_signal: int, _frame: FrameType | None, /) -> None:
            if self._interruptible:
                raise KeyboardInterrupt

        default_int_handler.__module__, default_int_handler.__qualname__ = "_signal", "default_int_handler"
        return default_int_handler

    def setup(self, source: str) -> None:
        """Run a session's setup code. Tracebacks do not show its source lines. Raises what the code raises."""
        exec(compile(source, "<setup>", "exec", dont_inherit=True), self.namespace)

    def run(self, number: int, source: str, limit: int = -1) -> Kind:
        """Run cell ``number``, or only its first ``limit`` top-level statements. Reports the traceback of an error; raises
        nothing."""
        self.finished, self.line = -1, 0
        self._interrupts = self.exit_status = 0
        if self._interrupted_at:
            self._interrupted_at.clear()
        self._awaited = None
        self._name = f"{CELL}{number}>"
        kind = Kind.OK
        try:
            try:
                self._interruptible = True
                self._execute(source, limit)
                self._interruptible = False
                settrace(None)
                setprofile(None)
            except BaseException as error:  # noqa: BLE001 - whatever a cell raises is its result
                # No call may come before this line: interrupts repeat until the cell stops, and would break its report.
                self._interruptible = False
                settrace(None)
                setprofile(None)
                self._process.raise_memory()
                kind = self._ended_by(error)
        except BaseException as error:  # noqa: BLE001 - a late interrupt, or an exception that cannot be formatted
            self._interruptible = False
            kind = Kind.ERROR
            self.exit_status = 1
            self._process.report(f"{message(error)} (its traceback cannot be shown)\n")
        self._process.raise_memory()
        if not self._interrupts:
            return kind
        self._count_finished(source)
        return Kind.INTERRUPTED

    def _ended_by(self, error: BaseException) -> Kind:
        if isinstance(error, SystemExit):
            return self._exit(error)
        self.exit_status = 1
        if self._interrupts:
            self._process.reporting()
        else:
            self._interruptible = True  # an exception's own __str__ may run forever
        try:
            text = short_traceback(error)
            if isinstance(error, SyntaxError) and not self._interrupts:
                text += advice(error)
        except Exception:  # noqa: BLE001 - a cell may have broken the traceback module; report the error without it
            text = f"{message(error)} (its traceback cannot be shown)\n"
        self._interruptible = False
        self._process.report(text)
        return Kind.ERROR

    def _execute(self, source: str, limit: int) -> None:
        units = self._compile(source, limit)
        waits = 0
        for unit in units:
            waits |= unit.co_flags & CO_COROUTINE
        self._process.lower_memory()
        if waits:
            self._await(units)
        else:
            for unit in units:
                eval(unit, self.namespace)

    async def _run_units(self, units: list[CodeType]) -> None:
        """Run a cell that awaits, all of it in the event loop, so that code before its ``await`` can start tasks."""
        for unit in units:
            result = eval(unit, self.namespace)
            if unit.co_flags & CO_COROUTINE:
                self._awaited = result
                await result

    def _compile(self, source: str, limit: int) -> list[CodeType]:
        """Compile a cell into code objects to run in order. A last expression is compiled in ``single`` mode, which echoes its
        value."""
        self._register_lines(source)
        if limit < 0 and BETWEEN_STATEMENTS.isdisjoint(source):
            # Many cells are one statement; building a syntax tree of Python objects would take most of their time.
            try:
                statement = compile(source, self._name, "single", self._flags, dont_inherit=True)
            except SyntaxError:
                pass  # only a comment, or an error that the code below reports better
            else:
                self._flags |= statement.co_flags & _FUTURE_FLAGS
                return [statement]
        tree = self._parse(source)
        last = None
        if limit >= 0:
            del tree.body[limit:]
        elif tree.body and isinstance(tree.body[-1], Expr):
            last = tree.body.pop()
        units = []
        if tree.body:
            units.append(compile(tree, self._name, "exec", self._flags, dont_inherit=True))
            self._flags |= units[0].co_flags & _FUTURE_FLAGS
        if last is not None:
            units.append(compile(Interactive([last]), self._name, "single", self._flags, dont_inherit=True))
        return units

    def _parse(self, source: str) -> Module:
        """The syntax tree of a cell. A cell that is no valid Python is repaired first, if possible."""
        flags = self._flags | PyCF_ONLY_AST
        meant = None
        if source.lstrip().startswith("In [") and "In" not in self.namespace:
            meant = repair(source, flags)  # IPython's prompt would be valid Python, an annotation of ``In``
        if meant is None:
            try:
                tree = compile(source, self._name, "exec", flags, dont_inherit=True)
            except SyntaxError as error:
                meant = repair(source, flags)
                if meant is None:
                    raise error from None
        if meant is not None:  # outside the except block, so that its error is not chained to the first
            self._register_lines(as_written(source, meant))
            tree = compile(meant, self._name, "exec", flags, dont_inherit=True)
        assert isinstance(tree, Module)
        return tree

    def _register_lines(self, source: str) -> None:
        """Register the cell's lines for tracebacks."""
        if linecache.cache is not _lines:
            linecache.cache = _lines
        _lines[self._name] = (len(source), None, [f"{line}\n" for line in source.split("\n")], self._name)

    def _await(self, units: list[CodeType]) -> None:
        """Run a cell that awaits on an event loop that all cells share, so that tasks and queues outlive their cell."""
        if self._loop is None or not _is_usable(self._loop):
            self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        context = copy_context()
        task = self._loop.create_task(self._run_units(units), context=context)
        try:
            self._loop.run_until_complete(task)
        except BaseException:
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError):
                    self._loop.run_until_complete(task)
            raise
        finally:
            for variable, value in context.items():  # context variables that the cell set stay set for later cells
                variable.set(value)

    def _line_reached(self, frame: FrameType | None) -> int:
        """The line that the cell's own code has reached; 0 if it has not begun."""
        while frame is not None:
            if frame.f_code.co_filename == self._name and frame.f_code.co_name == "<module>":
                return line_in(frame.f_code, frame.f_lineno, frame.f_lasti)
            frame = frame.f_back
        waiting = getattr(self._awaited, "cr_frame", None)
        return 0 if waiting is None else line_in(waiting.f_code, waiting.f_lineno, waiting.f_lasti)

    def _count_finished(self, source: str) -> None:
        """Set ``finished`` and ``line`` from the line that the first interrupt reached. Of several statements in that line,
        none counts as finished."""
        reached, self.finished, self.line = self.line, 0, 1
        try:
            statements = self._parse(source).body
        except (SyntaxError, ValueError, MemoryError, RecursionError):  # the interrupt came before the cell was parsed
            return
        for place, statement in enumerate(statements):
            if reached <= (statement.end_lineno or 0):
                self.finished, self.line = place, statement.lineno
                return
        self.finished = len(statements)

    def _exit(self, stop: SystemExit) -> Kind:
        """``exit()`` ends only the cell. As in the interpreter, a status that is no number is printed and means failure."""
        if stop.code is None or stop.code == 0:
            return Kind.OK
        self.exit_status = stop.code & 0xFF if isinstance(stop.code, int) else 1
        self._process.report(f"{stop.code}\n" if not isinstance(stop.code, int) else f"SystemExit: {stop.code}\n")
        return Kind.ERROR
