"""How one cell runs, inside the session's process: compile, echo, await, report."""

from __future__ import annotations
import __future__

import ast
import asyncio
import contextlib
import inspect
import linecache
import selectors
import traceback
from collections.abc import Callable, Coroutine
from types import CodeType, FrameType
from typing import Any

CELL = "<cell "
"""Every cell's file name starts so: ``<cell 3>``."""
LONGEST_TRACEBACK = 24
BETWEEN_STATEMENTS = frozenset("\n\r;:")
"""Source without these is at most one statement."""
_FUTURE_FLAGS = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)


class CellTimeout(KeyboardInterrupt):
    """Raised in a cell that ran too long. Not an ``Exception``, so that ``except Exception`` does not swallow it."""

    __module__ = "builtins"


class Interpreter:
    """A namespace and the way cells run in it.

    ``report`` takes tracebacks. ``guard`` is entered around the cell's own execution alone: the session lowers its memory
    limit there, so that there is memory left to report with.
    """

    def __init__(
        self,
        namespace: dict[str, Any],
        report: Callable[[str], object],
        guard: contextlib.AbstractContextManager[Any] | None = None,
        timeout_text: str = "",
    ) -> None:
        self.namespace = namespace
        self.interrupted = False
        """Whether a soft interrupt reached the last cell."""
        self._report = report
        self._guard = guard if guard is not None else contextlib.nullcontext()
        self._timeout_text = timeout_text
        self._interruptible = False
        self._flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        self._loop: asyncio.AbstractEventLoop | None = None

    def interrupt(self, _signal: int, _frame: FrameType | None) -> None:
        """Signal handler: raise CellTimeout in the cell, or do nothing where none runs."""
        if self._interruptible:
            self.interrupted = True
            raise CellTimeout(self._timeout_text)

    def descriptors(self) -> frozenset[int]:
        """What the event loop of all cells holds open."""
        if self._loop is None or self._loop.is_closed():
            return frozenset()
        loop: Any = self._loop
        return frozenset((loop._selector.fileno(), loop._ssock.fileno(), loop._csock.fileno()))

    def after_fork(self) -> None:
        """In a copy of the process: give the event loop a selector and a wake-up socket that it does not share with the
        original. asyncio has no public way to do it."""
        if self._loop is None or self._loop.is_closed():
            return
        loop: Any = self._loop
        shared = loop._selector
        loop._selector = selectors.DefaultSelector()
        wakeup = loop._ssock.fileno()
        for key in shared.get_map().values():
            if key.fd != wakeup:
                loop._selector.register(key.fileobj, key.events, key.data)
        shared.close()
        loop._ssock.close()
        loop._csock.close()
        loop._internal_fds -= 1
        loop._make_self_pipe()

    def setup(self, source: str) -> None:
        """Run hidden code. Its file has no source lines, so that no traceback shows them. Raises what it raises."""
        exec(compile(source, "<setup>", "exec", dont_inherit=True), self.namespace)

    def run(self, number: int, source: str) -> str:
        """Run a cell: ``ok`` or ``error``. Writes the traceback of an error. Raises nothing."""
        self.interrupted = False
        status = "ok"
        try:
            try:
                self._interruptible = True
                self._execute(f"{CELL}{number}>", source)
            except SystemExit as stop:
                status = self._exit_status(stop)
            except BaseException as error:  # noqa: BLE001 - whatever a cell raises is its result
                status = "error"
                # Interrupts repeat until the cell gives way; once it has, they must not break its report.
                self._interruptible = not isinstance(error, CellTimeout)
                self._report(short_traceback(error))
            finally:
                self._interruptible = False
        except BaseException as error:  # noqa: BLE001 - an interrupt in the last moment, or an exception that cannot be shown
            self._interruptible = False
            status = "error"
            self._report(f"{type(error).__name__} (its traceback cannot be shown)\n")
        return status

    def _execute(self, name: str, source: str) -> None:
        linecache.cache[name] = (len(source), None, [f"{line}\n" for line in source.split("\n")], name)
        units = self._compile(name, source)
        waits = 0
        for unit in units:
            waits |= unit.co_flags & inspect.CO_COROUTINE
        with self._guard:
            if waits:
                self._await(self._run_units(units))
            else:
                for unit in units:
                    eval(unit, self.namespace)

    async def _run_units(self, units: list[CodeType]) -> None:
        """The whole of a cell that awaits runs in the loop, so that what comes before its ``await`` may start tasks."""
        for unit in units:
            result = eval(unit, self.namespace)
            if unit.co_flags & inspect.CO_COROUTINE:
                await result

    def _compile(self, name: str, source: str) -> list[CodeType]:
        """All statements, and a last expression apart in ``single`` mode: that echoes it and evaluates it once."""
        if BETWEEN_STATEMENTS.isdisjoint(source):
            # One statement, as many cells are: a syntax tree made of objects would take longer than all else.
            try:
                statement = compile(source, name, "single", self._flags, dont_inherit=True)
            except SyntaxError:
                pass  # a comment alone, or an error that is better shown by what follows
            else:
                self._flags |= statement.co_flags & _FUTURE_FLAGS
                return [statement]
        tree = compile(source, name, "exec", self._flags | ast.PyCF_ONLY_AST, dont_inherit=True)
        assert isinstance(tree, ast.Module)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        units = []
        if tree.body:
            units.append(compile(tree, name, "exec", self._flags, dont_inherit=True))
            self._flags |= units[0].co_flags & _FUTURE_FLAGS
        if last is not None:
            units.append(compile(ast.Interactive([last]), name, "single", self._flags, dont_inherit=True))
        return units

    def _await(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Run top-level ``await`` on one event loop for all cells, so that tasks and queues outlive their cell."""
        if self._loop is None or self._loop.is_closed():
            self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        task = self._loop.create_task(coroutine)
        try:
            self._loop.run_until_complete(task)
        except BaseException:
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    self._loop.run_until_complete(task)
            raise

    def _exit_status(self, stop: SystemExit) -> str:
        """``exit()`` ends the cell. Like the interpreter: a status that is no number is a message, and not success."""
        if stop.code is None or stop.code == 0:
            return "ok"
        self._report(f"{stop.code}\n" if not isinstance(stop.code, int) else f"SystemExit: {stop.code}\n")
        return "error"


def short_traceback(error: BaseException) -> str:
    """The traceback with the cells' frames and the innermost library frame alone, for the error and all it is chained to."""
    summary = traceback.TracebackException.from_exception(error, compact=True)
    todo = [summary]
    while todo:
        part = todo.pop()
        part.stack = _trim(part.stack)
        todo += [linked for linked in (part.__cause__, part.__context__, *(part.exceptions or ())) if linked is not None]
    return "".join(summary.format())


def _trim(stack: traceback.StackSummary) -> traceback.StackSummary:
    frames = [frame for frame in stack if frame.filename.startswith(CELL)]
    if stack and stack[-1].filename != __file__ and not stack[-1].filename.startswith(CELL):
        frames.append(stack[-1])
    trimmed = traceback.StackSummary.from_list(frames)
    # A recursion in one line is folded by format() itself; one over several lines is not.
    if len(trimmed.format()) > LONGEST_TRACEBACK:
        trimmed = traceback.StackSummary.from_list(frames[: LONGEST_TRACEBACK // 4] + frames[-LONGEST_TRACEBACK // 2 :])
    return trimmed
