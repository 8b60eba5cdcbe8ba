"""The sandbox: one zygote and the sessions whose processes it forks."""

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
from aster_sandbox.history import Origin
from aster_sandbox.housekeeping import run_housekeeping
from aster_sandbox.isolation import Level, Plan, make_plan, remove_scratch
from aster_sandbox.isolation.guard import remove_tree
from aster_sandbox.output import Clip
from aster_sandbox.pressure import Admission, held_mb
from aster_sandbox.runner import Runner
from aster_sandbox.session import Session
from aster_sandbox.settings import Settings

DESCRIPTORS_PER_SESSION = 3
"""The connection, the output pipe and the pidfd."""
SPARE_DESCRIPTORS = 512
OWN_DESCRIPTORS = 16
"""Approximate number of descriptors that the sandbox itself has open."""
LEAST_DESCRIPTORS = 512
"""A session process uses fixed descriptor numbers up to 502."""
ZYGOTE_ATTEMPTS = 3
"""How often a runner is requested if the zygote dies each time."""
NOT_ISOLATED = "sandbox: NOT ISOLATED: cells can reach your files and processes (isolation level rlimits; see `aster doctor`)"


class Sandbox:
    """Runs model-written Python in stateful sessions. Use it as ``async with Sandbox() as sandbox``, on one event loop."""

    def __init__(self, settings: Settings | None = None, *, beside_sampler: bool = False, **fields: Any) -> None:
        """``settings``, or single ``fields`` of them: ``Sandbox(cell_seconds=5)``.

        ``beside_sampler``: whether this process also samples a policy, so that sessions leave it ``spare_processors``.
        Raises SettingsError for an unknown field or an invalid value.
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
                raise SettingsError(f"sandbox.preload: {package!r} is not installed; install it or remove it from the list")
        if self.settings.echo == "ipython" and importlib.util.find_spec("IPython") is None:
            raise SettingsError("sandbox.echo: ipython needs the package IPython; install ipython, or set echo to python")
        _provide_descriptors(self.settings.sessions)
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
        await asyncio.shield(self._closing)  # if this is cancelled, closing must go on: nothing else ends the processes

    async def _close(self) -> None:
        try:
            if self._housekeeping is not None:
                self._housekeeping.cancel()
                with contextlib.suppress(asyncio.CancelledError):  # any other exception is a bug and is raised
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
        """The isolation level of the sessions. Raises SandboxFailure before the sandbox was entered."""
        if self._plan is None:
            raise SandboxFailure("the sandbox was not entered with `async with`")
        return self._plan.level

    async def open(self, seed: int = 0, setup: str = "", environment: Mapping[str, str] | None = None) -> Session:
        """Open a new session; waits while ``sessions`` sessions are alive or memory is short.

        ``seed``: for the global generators of ``random``, and of numpy and sympy if they are preloaded. ``setup``: Python that
        runs before the first cell, and again when the session is restored; tracebacks do not show its source.
        ``environment``: environment variables, in addition to those of every session. Raises SandboxFailure if the setup raises
        or no process starts, and SettingsError for an invalid environment.
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
        """The number of sessions that have a process."""
        return len(self._runners)

    async def adopt(self, origin: Origin) -> Session:
        """Make a session, without a process, as soon as ``sessions`` allows it."""
        await self._slots.acquire()
        session = Session(self, origin)
        self._sessions.add(session)
        return session

    def forget(self, session: Session) -> None:
        """Release the place of a session that was closed."""
        self._sessions.discard(session)
        self._slots.release()

    async def launch(self, clip: Clip, wanted: Callable[[], bool]) -> Runner:
        """Start a process as soon as there is memory for it; ``clip`` receives its output. Does not wait for the fork.

        Raises SandboxFailure if memory stays short, the zygote does not start, or the process is no longer ``wanted``.
        """
        self._require_entered()
        await self._admission.wait(lambda: not self._runners, wanted)
        for _ in range(ZYGOTE_ATTEMPTS):
            try:
                zygote = await self._warm()
            except SettingsError as error:  # a package cannot be imported now, although it could before
                raise SandboxFailure(str(error)) from error
            try:
                runner = Runner(zygote, next(self._numbers), clip)
            except OSError as error:  # no descriptor is left
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
            with contextlib.suppress(OSError):  # without it each session makes its own list
                make_list(self._plan.fonts, environment(Path(self._plan.root)))

    async def charge(self, runner: Runner) -> None:
        """Count the memory of a process and of all that it starts, from now on. Called before its first cell."""
        with contextlib.suppress(OSError):  # no descriptor is left; the next cell tries again
            if self._groups is not None:
                await runner.forked  # if many sessions are opened together, its pid may not be known yet
                if (pid := runner.pid) is not None:
                    self._groups.add(runner.number, pid)
            runner.charged = True

    def _on_gone(self, runner: Runner, name: str, _: asyncio.Future[int | None]) -> None:
        self._runners.discard(runner)
        if self._groups is not None:
            self._groups.remove(runner.number)
        if self._plan is not None and self._plan.level is not Level.NAMESPACES:  # there the tmpfs ended with the process
            task = asyncio.ensure_future(asyncio.to_thread(remove_scratch, self._plan, name))
            self._removals.add(task)
            task.add_done_callback(self._removals.discard)

    async def _held(self, runners: list[Runner]) -> dict[Runner, float]:
        """The MiB that processes hold, including all that they started. A thread reads the files (thousands for hundreds of
        sessions), so that cells run meanwhile."""
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
        """The zygote; starts a new one if the last one has ended."""
        async with self._zygote_lock:
            self._require_entered()
            assert self._plan is not None
            if self._zygote is None or not self._zygote.alive:
                self._zygote = await ZygoteHandle.start(self._plan)
            return self._zygote


def make_settings(**fields: Any) -> Settings:
    """Settings with these fields. Raises SettingsError, in one line, for an unknown field or an invalid value."""
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


def _provide_descriptors(sessions: int) -> None:
    """Raise this process's limit of open files for so many sessions. Warns on stderr if it stays too low for all of them;
    raises SandboxFailure if it is too low for any."""
    wanted = sessions * DESCRIPTORS_PER_SESSION + SPARE_DESCRIPTORS
    most = allow_descriptors(wanted)
    if most < LEAST_DESCRIPTORS:
        raise SandboxFailure(
            f"the sandbox needs {LEAST_DESCRIPTORS} open files, and this process may have {most}; raise ulimit -Hn"
        )
    if most < wanted:
        enough = max(0, most - OWN_DESCRIPTORS) // DESCRIPTORS_PER_SESSION
        _print_once(
            f"sandbox: this process may have {most} open files, enough for about {enough} sessions "
            f"(sandbox.sessions is {sessions}); raise ulimit -Hn"
        )


def allow_descriptors(wanted: int) -> int:
    """Raise this process's soft limit of open files to ``wanted`` if it is lower, as far as the hard limit allows. Returns how
    many files it can have open, at most ``wanted``."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most
