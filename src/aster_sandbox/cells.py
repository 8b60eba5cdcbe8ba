"""How one cell runs, inside the session's process: compile, echo, await, interrupt, report."""

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
"""Source without these is at most one statement."""
SINGLE_INTERRUPTS = 2
"""So many interrupts of a cell come alone. Each later one repeats itself at every step of the interpreter, so that what
swallows it (``except: pass`` in a loop) meets it again at once, also where it has no handler around itself."""
_trip = ctypes.pythonapi.PyErr_SetInterruptEx
_INTERRUPT = int(INTERRUPT)
_lines = linecache.cache
"""The lines of all cells, and of the files that tracebacks have shown."""
_FUTURE_FLAGS = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)


class CellTimeout(KeyboardInterrupt):
    """Raised in a cell that ran too long. Not an ``Exception``, so that ``except Exception`` does not swallow it."""

    __module__ = "builtins"


class CellProcess(Protocol):
    """What an interpreter needs of the process it is in."""

    def report(self, text: str) -> None:
        """Write a traceback."""

    def lower_memory(self) -> None:
        """Set the address-space limit that a cell's code runs under."""

    def raise_memory(self) -> None:
        """Lift that limit: the cell's code has ended, and there must be memory and stack to report a MemoryError. Called once
        or more."""

    def reporting(self) -> None:
        """The cell has ended by an interrupt; its report comes."""


def _is_usable(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether an event loop can still run: a cell may have closed it, or the descriptors that it needs."""
    try:
        if (selector := getattr(loop, "_selector", None)) is not None:
            selector.select(0)
        if (waker := getattr(loop, "_ssock", None)) is not None:
            waker.getpeername()
    except (OSError, ValueError):
        return False
    return not loop.is_closed()


class Interpreter:
    """A namespace and the way cells run in it."""

    def __init__(self, namespace: dict[str, Any], surroundings: CellProcess, timeout_text: str = "") -> None:
        self.namespace = namespace
        self.finished = -1
        """Of the last cell, where it was interrupted: how many of its statements had ended when the first interrupt came."""
        self.line = 0
        """And the line in which the next of them begins."""
        self.exit_status = 0
        """What a program would end with that ended as the last cell did."""
        self._process = surroundings
        self._timeout_text = timeout_text
        self._interruptible = False
        self._interrupts = 0
        self._interrupted_at: dict[tuple[CodeType, int], int] = {}
        """Where the later interrupts found the interpreter, and how often."""
        self._name = ""
        self._awaited: Any = None
        self._flags = PyCF_ALLOW_TOP_LEVEL_AWAIT
        self._loop: asyncio.AbstractEventLoop | None = None

    def interrupt(self, _signal: int, frame: FrameType | None) -> None:
        """Handler of the supervisor's signal: raise CellTimeout in the cell, or do nothing where none runs."""
        if not self._interruptible:
            return
        if not self._interrupts:
            self.line = self._line_reached(frame)
        self._interrupts += 1
        error = CellTimeout(self._timeout_text)
        if self._interrupts > SINGLE_INTERRUPTS and frame is not None:
            place = frame.f_code, frame.f_lasti
            times = self._interrupted_at[place] = self._interrupted_at.get(place, 0) + 1
            # The interpreter looks for signals after each call that its bytecode makes, so a call written here would be
            # interrupted by its own effect before the line after it. One that an iterator makes is not. And every second one in
            # the same place passes: Python 3.12 takes the jump at the end of an ``except`` for a part of the ``try`` before it,
            # so that what is raised there comes back for ever.
            for _ in map(_trip, (_INTERRUPT,)):
                if times % 2:
                    raise error
                return
        raise error

    def handler_of_sigint(self) -> Callable[[int, FrameType | None], None]:
        """What stands for Python's own handler: it does nothing where no cell runs, and has its name."""

        def default_int_handler(_signal: int, _frame: FrameType | None, /) -> None:
            if self._interruptible:
                raise KeyboardInterrupt

        default_int_handler.__module__, default_int_handler.__qualname__ = "_signal", "default_int_handler"
        return default_int_handler

    def setup(self, source: str) -> None:
        """Run hidden code. Its file has no source lines, so that no traceback shows them. Raises what it raises."""
        exec(compile(source, "<setup>", "exec", dont_inherit=True), self.namespace)

    def run(self, number: int, source: str, limit: int = -1) -> Kind:
        """Run a cell, or its first ``limit`` statements. Writes the traceback of an error. Raises nothing."""
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
                # Without a call before this line: interrupts repeat until the cell gives way, and must not break its report.
                self._interruptible = False
                settrace(None)
                setprofile(None)
                self._process.raise_memory()
                kind = self._ended_by(error)
        except BaseException as error:  # noqa: BLE001 - an interrupt in the last moment, or an exception that cannot be shown
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
            self._interruptible = True  # what an exception says of itself may take for ever
        try:
            text = short_traceback(error)
            if isinstance(error, SyntaxError) and not self._interrupts:
                text += advice(error)
        except Exception:  # noqa: BLE001 - a cell may have spoilt what writes tracebacks: the error itself is what counts
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
        """The whole of a cell that awaits runs in the loop, so that what comes before its ``await`` may start tasks."""
        for unit in units:
            result = eval(unit, self.namespace)
            if unit.co_flags & CO_COROUTINE:
                self._awaited = result
                await result

    def _compile(self, source: str, limit: int) -> list[CodeType]:
        """All statements, and a last expression apart in ``single`` mode: that echoes it and evaluates it once."""
        self._show(source)
        if limit < 0 and BETWEEN_STATEMENTS.isdisjoint(source):
            # One statement, as many cells are: a syntax tree made of objects would take longer than all else.
            try:
                statement = compile(source, self._name, "single", self._flags, dont_inherit=True)
            except SyntaxError:
                pass  # a comment alone, or an error that is better shown by what follows
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
        """The syntax tree; of what is no Python, but can be read as a cell, that of what is meant."""
        flags = self._flags | PyCF_ONLY_AST
        meant = None
        if source.lstrip().startswith("In [") and "In" not in self.namespace:
            meant = repair(source, flags)  # IPython's prompt would be an annotation of what does not exist
        if meant is None:
            try:
                tree = compile(source, self._name, "exec", flags, dont_inherit=True)
            except SyntaxError as error:
                meant = repair(source, flags)
                if meant is None:
                    raise error from None
        if meant is not None:  # out here, so that its own error is not chained to the first
            self._show(as_written(source, meant))
            tree = compile(meant, self._name, "exec", flags, dont_inherit=True)
        assert isinstance(tree, Module)
        return tree

    def _show(self, source: str) -> None:
        """Let tracebacks find the cell's lines."""
        if linecache.cache is not _lines:
            linecache.cache = _lines
        _lines[self._name] = (len(source), None, [f"{line}\n" for line in source.split("\n")], self._name)

    def _await(self, units: list[CodeType]) -> None:
        """Run top-level ``await`` on one event loop for all cells, so that tasks and queues outlive their cell."""
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
            for variable, value in context.items():  # what the cell set in its task is for later cells too
                variable.set(value)

    def _line_reached(self, frame: FrameType | None) -> int:
        """The line that the cell's own code has come to; 0 where it has not begun."""
        while frame is not None:
            if frame.f_code.co_filename == self._name and frame.f_code.co_name == "<module>":
                return line_in(frame.f_code, frame.f_lineno, frame.f_lasti)
            frame = frame.f_back
        waiting = getattr(self._awaited, "cr_frame", None)
        return 0 if waiting is None else line_in(waiting.f_code, waiting.f_lineno, waiting.f_lasti)

    def _count_finished(self, source: str) -> None:
        """How many statements ended before the line at which the first interrupt came. Of several in one line, none has."""
        reached, self.finished, self.line = self.line, 0, 1
        try:
            statements = self._parse(source).body
        except (SyntaxError, ValueError, MemoryError, RecursionError):  # it was interrupted before it was read
            return
        for place, statement in enumerate(statements):
            if reached <= (statement.end_lineno or 0):
                self.finished, self.line = place, statement.lineno
                return
        self.finished = len(statements)

    def _exit(self, stop: SystemExit) -> Kind:
        """``exit()`` ends the cell. Like the interpreter: a status that is no number is a message, and not success."""
        if stop.code is None or stop.code == 0:
            return Kind.OK
        self.exit_status = stop.code & 0xFF if isinstance(stop.code, int) else 1
        self._process.report(f"{stop.code}\n" if not isinstance(stop.code, int) else f"SystemExit: {stop.code}\n")
        return Kind.ERROR
