"""The sandbox: one zygote, many sessions, at most so many at once."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import resource
import sys
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING

from aster.core.errors import UserError
from aster.core.progress import say
from aster.sandbox.handle import ZygoteHandle
from aster.sandbox.housekeeping import keep_house
from aster.sandbox.isolation import Level, Plan, make_plan
from aster.sandbox.isolation.guard import remove_tree
from aster.sandbox.keeper_handle import KeeperHandle
from aster.sandbox.output import Clip
from aster.sandbox.pool import Place, Pool
from aster.sandbox.pressure import Admission
from aster.sandbox.protocol import SandboxFailure
from aster.sandbox.session import Session

if TYPE_CHECKING:
    from aster.core import recipe

DESCRIPTORS_PER_SESSION = 3
"""Control socket, connection, output."""
SPARE_DESCRIPTORS = 512
NOT_ISOLATED = "sandbox: NOT ISOLATED: cells can reach your files and processes (isolation level rlimits; see `aster doctor`)"


class Sandbox:
    """Runs model-written Python in sessions. Use as ``async with Sandbox(recipe.sandbox) as sandbox``; one event loop.

    ``beside_sampler``: sessions leave ``spare_processors`` to this process."""

    def __init__(self, settings: recipe.Sandbox, *, beside_sampler: bool = False) -> None:
        self.settings = settings
        self._spare_processors = settings.spare_processors if beside_sampler else 0
        self._slots = asyncio.Semaphore(settings.sessions)
        self._sessions: set[Session] = set()
        self._zygote: ZygoteHandle | None = None
        self._zygote_lock = asyncio.Lock()
        self._plan: Plan | None = None
        self._entered = False
        self._admission = Admission(settings.reserve_mb)
        self._pool: Pool | None = None
        self._house: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Sandbox:
        if sys.platform != "linux":
            raise SandboxFailure(f"the sandbox needs Linux (pidfd, prctl); this is {sys.platform}")
        for package in self.settings.preload:
            if importlib.util.find_spec(package) is None:
                raise UserError(f"sandbox.preload: no package {package!r} is installed; install it or take it off the list")
        _allow_descriptors(self.settings.sessions * DESCRIPTORS_PER_SESSION + SPARE_DESCRIPTORS)
        root = tempfile.mkdtemp(prefix="aster-sandbox-")
        try:
            self._plan = await asyncio.to_thread(make_plan, self.settings, root, self._spare_processors)
            _say_once(
                NOT_ISOLATED if self._plan.level is Level.RLIMITS else f"sandbox: isolation level {self._plan.level.value}"
            )
            self._entered = True
            await self._warm()
        except BaseException:
            self._entered = False
            remove_tree(root)
            raise
        self._pool = Pool(self.settings, self._plan, self._warm)
        self._house = asyncio.create_task(keep_house(self._sessions, self._pool, self._admission, self.settings))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._entered = False
        if self._house is not None:
            self._house.cancel()
            await asyncio.gather(self._house, return_exceptions=True)
        await asyncio.gather(*(session.close() for session in list(self._sessions)))
        if self._pool is not None:
            await self._pool.end()
        async with self._zygote_lock:
            if self._zygote is not None:
                await self._zygote.stop()
        if self._plan is not None:
            await asyncio.to_thread(remove_tree, self._plan.root)

    @property
    def level(self) -> Level:
        """The isolation level of this sandbox, which was entered."""
        if self._plan is None:
            raise SandboxFailure("the sandbox was not entered with `async with`")
        return self._plan.level

    async def open(self, seed: int, setup: str = "") -> Session:
        """A fresh session; waits while ``sessions`` are alive, or while memory is short.

        ``seed`` seeds the global generators of ``random``, and of numpy and sympy where they are preloaded. ``setup`` is Python
        that runs before the first cell, and again where a session is rebuilt from its start; its source is not shown in
        tracebacks. SandboxFailure where it raises.
        """
        session = await self.adopt(seed, setup)
        try:
            await session.begin()
        except BaseException:
            await session.close()
            raise
        return session

    # ----- for sessions

    async def adopt(self, seed: int, setup: str) -> Session:
        """A session without a process, as soon as there may be one more."""
        await self._slots.acquire()
        session = Session(self, seed, setup)
        self._sessions.add(session)
        return session

    def forget(self, session: Session) -> None:
        """It is closed."""
        self._sessions.discard(session)
        self._slots.release()

    async def admit(self, wanted: Callable[[], bool], own: KeeperHandle | None = None) -> None:
        """Wait for memory. SandboxFailure where there is none for long, or the process is not ``wanted`` any more."""
        pool = self._keepers()
        await self._admission.wait(lambda: pool.idle_beside(own), wanted)

    async def take_place(self, clip: Clip) -> Place:
        """A place that no session has; its output goes to ``clip``. SandboxFailure where the zygote cannot be had."""
        return await self._keepers().take(clip)

    def _keepers(self) -> Pool:
        if self._pool is None or not self._entered:
            raise SandboxFailure("the sandbox is closed, or was not entered with `async with`")
        return self._pool

    async def _warm(self) -> ZygoteHandle:
        """The zygote; a new one where the last is gone."""
        async with self._zygote_lock:
            if self._plan is None or not self._entered:
                raise SandboxFailure("the sandbox is closed, or was not entered with `async with`")
            if self._zygote is None or not self._zygote.alive:
                self._zygote = await ZygoteHandle.start(self._plan, self.settings.preload)
            return self._zygote


@functools.cache
def _say_once(text: str) -> None:
    say(text)


def _allow_descriptors(wanted: int) -> None:
    """Raise this process's soft limit of open files where it is too low for so many sessions."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
