"""The sandbox: one zygote, many sessions, at most so many at once."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import itertools
import resource
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from aster_sandbox.cgroups import Groups
from aster_sandbox.errors import SandboxFailure, SettingsError
from aster_sandbox.fonts import make_list
from aster_sandbox.handle import ZygoteHandle, ZygoteLost, environment
from aster_sandbox.housekeeping import run_housekeeping
from aster_sandbox.isolation import Level, Plan, make_plan, remove_scratch
from aster_sandbox.isolation.guard import remove_tree
from aster_sandbox.output import Clip
from aster_sandbox.pressure import Admission, held_mb
from aster_sandbox.runner import Runner
from aster_sandbox.session import Origin, Session
from aster_sandbox.settings import Settings

DESCRIPTORS_PER_SESSION = 3
"""Connection, output, pidfd."""
SPARE_DESCRIPTORS = 512
OWN_DESCRIPTORS = 16
"""What the sandbox itself has open, about."""
LEAST_DESCRIPTORS = 512
"""A session has some at fixed numbers, the last of them 502."""
ZYGOTE_ATTEMPTS = 3
"""Runners asked for where the zygote dies each time."""
NOT_ISOLATED = "sandbox: NOT ISOLATED: cells can reach your files and processes (isolation level rlimits; see `aster doctor`)"


class Sandbox:
    """Runs model-written Python in sessions. Use as ``async with Sandbox() as sandbox``; one event loop."""

    def __init__(self, settings: Settings | None = None, *, beside_sampler: bool = False, **fields: Any) -> None:
        """``settings``, or their ``fields`` that are not the defaults: ``Sandbox(cell_seconds=5)``.

        ``beside_sampler``: sessions leave ``spare_processors`` to this process, which samples a policy.
        SettingsError for a field that is unknown, or a value that it cannot have.
        """
        self.settings = settings if settings is not None else make_settings(**fields)
        self._spare_processors = self.settings.spare_processors if beside_sampler else 0
        self._slots = asyncio.Semaphore(self.settings.sessions)
        self._sessions: set[Session] = set()
        self._runners: set[Runner] = set()
        self._numbers = itertools.count()
        self._removals: set[asyncio.Task[None]] = set()
        self._zygote: ZygoteHandle | None = None
        self._zygote_lock = asyncio.Lock()
        self._plan: Plan | None = None
        self._groups: Groups | None = None
        self._entered = False
        self._admission = Admission(self.settings.reserve_mb)
        self._housekeeping: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Sandbox:
        if sys.platform != "linux":
            raise SandboxFailure(f"the sandbox needs Linux (pidfd, prctl); this is {sys.platform}")
        for package in self.settings.preload:
            if importlib.util.find_spec(package) is None:
                raise SettingsError(f"sandbox.preload: no package {package!r} is installed; install it or take it off the list")
        if self.settings.echo == "ipython" and importlib.util.find_spec("IPython") is None:
            raise SettingsError("sandbox.echo: ipython needs the package IPython; install ipython, or set echo to python")
        wanted = self.settings.sessions * DESCRIPTORS_PER_SESSION + SPARE_DESCRIPTORS
        most = allow_descriptors(wanted)
        if most < LEAST_DESCRIPTORS:
            raise SandboxFailure(
                f"the sandbox needs {LEAST_DESCRIPTORS} open files, and this process may have {most} (ulimit -Hn)"
            )
        if most < wanted:
            _print_once(
                f"sandbox: this process may have {most} open files (ulimit -Hn), enough for about "
                f"{max(0, most - OWN_DESCRIPTORS) // DESCRIPTORS_PER_SESSION} of sandbox.sessions: {self.settings.sessions}"
            )
        root = tempfile.mkdtemp(prefix="aster-sandbox-")
        try:
            self._groups = Groups.find()
            groups = self._groups.folder if self._groups is not None else ""
            self._plan = await asyncio.to_thread(make_plan, self.settings, root, self._spare_processors, groups)
            _print_once(
                NOT_ISOLATED if self._plan.level is Level.RLIMITS else f"sandbox: isolation level {self._plan.level.value}"
            )
            self._entered = True
            fonts = asyncio.ensure_future(asyncio.to_thread(self._list_fonts))
            try:
                await self._warm()
            finally:
                await fonts
        except BaseException:
            self._entered = False
            if self._zygote is not None:
                await self._zygote.stop()
            if self._groups is not None:
                self._groups.close()
            remove_tree(root)
            raise
        self._housekeeping = asyncio.create_task(run_housekeeping(self._sessions, self._admission, self.settings, self._held))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._entered = False
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)  # it goes on where this is cancelled: nobody else would end the processes

    async def _close(self) -> None:
        try:
            if self._housekeeping is not None:
                self._housekeeping.cancel()
                with contextlib.suppress(asyncio.CancelledError):  # any other end of it is a fault, and shown
                    await self._housekeeping
            await asyncio.gather(*(session.close() for session in list(self._sessions)))
        finally:
            async with self._zygote_lock:
                if self._zygote is not None:
                    await self._zygote.stop()
            await asyncio.gather(*self._removals)
            if self._groups is not None:
                self._groups.close()
            if self._plan is not None:
                await asyncio.to_thread(remove_tree, self._plan.root)

    @property
    def level(self) -> Level:
        """The isolation level of this sandbox, which was entered."""
        if self._plan is None:
            raise SandboxFailure("the sandbox was not entered with `async with`")
        return self._plan.level

    async def open(self, seed: int = 0, setup: str = "", environment: Mapping[str, str] | None = None) -> Session:
        """A fresh session; waits while ``sessions`` are alive, or while memory is short.

        ``seed`` seeds the global generators of ``random``, and of numpy and sympy where they are preloaded. ``setup`` is Python
        that runs before the first cell, and again where a session is rebuilt from its start; its source is not shown in
        tracebacks. SandboxFailure where it raises. ``environment``: variables for the session, beside those that all have.
        """
        session = await self.adopt(Origin(seed, setup, environment))
        try:
            await session.begin()
        except BaseException:
            await session.close()
            raise
        return session

    # ----- for sessions

    @property
    def processes(self) -> int:
        """How many sessions have a process."""
        return len(self._runners)

    async def adopt(self, origin: Origin) -> Session:
        """A session without a process, as soon as there may be one more."""
        await self._slots.acquire()
        session = Session(self, origin)
        self._sessions.add(session)
        return session

    def forget(self, session: Session) -> None:
        """It is closed."""
        self._sessions.discard(session)
        self._slots.release()

    async def launch(self, clip: Clip, wanted: Callable[[], bool]) -> Runner:
        """A process whose output goes to ``clip``, when there is memory for it; it may still be on its way.

        SandboxFailure where there is no memory for long, where the zygote cannot be had, or where the process is not ``wanted``
        any more.
        """
        self._require_entered()
        await self._admission.wait(lambda: not self._runners, wanted)
        for _ in range(ZYGOTE_ATTEMPTS):
            try:
                zygote = await self._warm()
            except SettingsError as error:  # it was loaded once
                raise SandboxFailure(str(error)) from error
            try:
                runner = Runner(zygote, next(self._numbers), clip)
            except OSError as error:  # no descriptors are left
                raise SandboxFailure(f"no process could be started for a session: {error}") from error
            name = f"session-{runner.number}"
            self._runners.add(runner)
            runner.gone.add_done_callback(functools.partial(self._on_gone, runner, name))
            try:
                await runner.launch(name)
            except ZygoteLost:
                runner.release()
                continue
            except BaseException:
                runner.release()
                raise
            return runner
        raise SandboxFailure("the sandbox's parent process keeps dying")

    def _list_fonts(self) -> None:
        if self._plan is not None and self._plan.fonts:
            with contextlib.suppress(OSError):  # then each session makes its own
                make_list(self._plan.fonts, environment(Path(self._plan.root)))

    async def charge(self, runner: Runner) -> None:
        """From here on, what is held for a process and all that it starts is counted: its first cell is about to begin."""
        if self._groups is not None:
            await runner.forked  # of many that are opened together, the first could run a cell before their pids are known
            with contextlib.suppress(OSError):  # no descriptor is left: the next cell tries again
                if (pid := runner.pid) is not None:
                    self._groups.add(runner.number, pid)
                runner.charged = True
        else:
            runner.charged = True

    def _on_gone(self, runner: Runner, name: str, _: asyncio.Future[int | None]) -> None:
        self._runners.discard(runner)
        if self._groups is not None:
            self._groups.remove(runner.number)
        if self._plan is not None and self._plan.level is not Level.NAMESPACES:  # there its files went with it
            task = asyncio.ensure_future(asyncio.to_thread(remove_scratch, self._plan, name))
            self._removals.add(task)
            task.add_done_callback(self._removals.discard)

    async def _held(self, runners: list[Runner]) -> dict[Runner, float]:
        """MiB that processes hold, with all that they started. For hundreds of sessions that is thousands of files: a thread
        reads them, and cells go on meanwhile."""
        if (groups := self._groups) is not None:
            return await asyncio.to_thread(lambda: {runner: groups.held_mb(runner.number) for runner in runners})
        pids = {pid: runner for runner in runners if (pid := runner.pid) is not None}
        warm = self._zygote.pid if self._zygote is not None else None
        held = await asyncio.to_thread(held_mb, list(pids), warm)
        return {pids[pid]: size for pid, size in held.items()}

    def _require_entered(self) -> None:
        if self._plan is None or not self._entered:
            raise SandboxFailure("the sandbox is closed, or was not entered with `async with`")

    async def _warm(self) -> ZygoteHandle:
        """The zygote; a new one where the last is gone."""
        async with self._zygote_lock:
            self._require_entered()
            assert self._plan is not None
            if self._zygote is None or not self._zygote.alive:
                self._zygote = await ZygoteHandle.start(self._plan)
            return self._zygote


def make_settings(**fields: Any) -> Settings:
    """Settings with these fields. SettingsError, in one line, for one that is unknown or has a value that it cannot have."""
    import pydantic

    try:
        return Settings(**fields)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SettingsError(f"sandbox.{where}: {first['msg']}") from None


@functools.cache
def _print_once(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def allow_descriptors(wanted: int) -> int:
    """Raise this process's soft limit of open files to ``wanted``, as far as it may, where it is lower. Returns how many there
    can be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most
