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
from pathlib import Path
from typing import TYPE_CHECKING

from aster.core.errors import UserError
from aster.core.progress import say
from aster.sandbox.handle import ZygoteHandle, ZygoteLost
from aster.sandbox.isolation import Level, Limits, Plan, make_plan, remove_scratch
from aster.sandbox.isolation.guard import remove_tree
from aster.sandbox.output import Clip
from aster.sandbox.process import SessionProcess
from aster.sandbox.protocol import ForkRequest, SandboxFailure
from aster.sandbox.session import Session

if TYPE_CHECKING:
    from aster.core import recipe

DESCRIPTORS_PER_SESSION = 3
SPARE_DESCRIPTORS = 512
NOT_ISOLATED = "sandbox: NOT ISOLATED: cells can reach your files and processes (isolation level rlimits; see `aster doctor`)"


class Sandbox:
    """Runs model-written Python in sessions. Use as ``async with Sandbox(recipe.sandbox) as sandbox``; one event loop."""

    def __init__(self, settings: recipe.Sandbox) -> None:
        self._settings = settings
        self._slots = asyncio.Semaphore(settings.sessions)
        self._sessions: set[Session] = set()
        self._zygote: ZygoteHandle | None = None
        self._zygote_lock = asyncio.Lock()
        self._root: Path | None = None
        self._plan: Plan | None = None
        self._count = itertools.count()
        self._forks: set[asyncio.Task[SessionProcess] | asyncio.Task[None]] = set()

    async def __aenter__(self) -> Sandbox:
        if sys.platform != "linux":
            raise SandboxFailure(f"the sandbox needs Linux (pidfd, prctl); this is {sys.platform}")
        for package in self._settings.preload:
            if importlib.util.find_spec(package) is None:
                raise UserError(f"sandbox.preload: no package {package!r} is installed; install it or take it off the list")
        _allow_descriptors(self._settings.sessions * DESCRIPTORS_PER_SESSION + SPARE_DESCRIPTORS)
        self._root = Path(tempfile.mkdtemp(prefix="aster-sandbox-"))
        try:
            self._plan = await asyncio.to_thread(make_plan, self._settings, str(self._root))
            _say_once(
                NOT_ISOLATED if self._plan.level is Level.RLIMITS else f"sandbox: isolation level {self._plan.level.value}"
            )
            await self._warm()
        except BaseException:
            remove_tree(str(self._root))
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        root, self._root = self._root, None
        await asyncio.gather(*(session.close() for session in list(self._sessions)))
        await asyncio.gather(*self._forks, return_exceptions=True)
        async with self._zygote_lock:
            if self._zygote is not None:
                await self._zygote.stop()
        if root is not None:
            await asyncio.to_thread(remove_tree, str(root))

    @property
    def level(self) -> Level:
        """The isolation level of this sandbox, which was entered."""
        if self._plan is None:
            raise SandboxFailure("the sandbox was not entered with `async with`")
        return self._plan.level

    async def open(self, seed: int, setup: str = "") -> Session:
        """A fresh session; waits while ``sessions`` are alive.

        ``seed`` seeds the global generators of ``random``, and of numpy and sympy where they are preloaded. ``setup`` is Python
        that runs before the first cell and again on recovery; its source is not shown in tracebacks. SandboxFailure where it
        raises.
        """
        await self._slots.acquire()
        session = Session(self._settings, seed, setup, self._fork, self._forget)
        self._sessions.add(session)
        try:
            await session.begin()
        except BaseException:
            await session.close()
            raise
        return session

    async def _fork(self, clip: Clip) -> SessionProcess:
        """A new process. One that comes after the caller was cancelled is ended."""
        task = asyncio.create_task(self._fork_now(clip))
        self._keep(task)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._keep(asyncio.create_task(_bury(task)))
            raise

    def _keep(self, task: asyncio.Task[SessionProcess] | asyncio.Task[None]) -> None:
        self._forks.add(task)
        task.add_done_callback(self._forks.discard)

    async def _fork_now(self, clip: Clip) -> SessionProcess:
        zygote = await self._warm()
        if self._root is None or self._plan is None:
            raise SandboxFailure("the sandbox is closed")
        settings = self._settings
        name = f"session-{next(self._count)}"
        limits = Limits(settings.processes, settings.disk_mb, settings.file_mb, settings.open_files)
        request = ForkRequest(name, limits, settings.memory_mb, f"the cell ran longer than {settings.cell_seconds:g} s")
        remove_files = None  # at this level they go with the session's last process
        if self._plan.level is not Level.NAMESPACES:
            remove_files = functools.partial(remove_scratch, self._plan, name)
        return await SessionProcess.fork(zygote, request, clip, remove_files)

    async def _warm(self) -> ZygoteHandle:
        """The zygote; a new one where the last is gone."""
        async with self._zygote_lock:
            if self._root is None or self._plan is None:
                raise SandboxFailure("the sandbox is closed, or was not entered with `async with`")
            if self._zygote is None or not self._zygote.alive:
                self._zygote = await ZygoteHandle.start(self._plan, self._settings.preload)
            return self._zygote

    def _forget(self, session: Session) -> None:
        self._sessions.discard(session)
        self._slots.release()


async def _bury(task: asyncio.Task[SessionProcess]) -> None:
    """End the process that a task brings."""
    with contextlib.suppress(ZygoteLost, SandboxFailure):  # then it brings none
        await (await task).end()


@functools.cache
def _say_once(text: str) -> None:
    say(text)


def _allow_descriptors(wanted: int) -> None:
    """Raise this process's soft limit of open files where it is too low for so many sessions."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
