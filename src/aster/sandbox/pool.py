"""All keepers of a sandbox: those made in advance, and those that sessions have."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from aster.sandbox.handle import ZygoteHandle, ZygoteLost
from aster.sandbox.isolation import Level, Limits, Plan, remove_scratch
from aster.sandbox.keeper_handle import KeeperHandle
from aster.sandbox.protocol import ForkRequest, SandboxFailure

if TYPE_CHECKING:
    from aster.core import recipe

READY = 2
"""Keepers made in advance, so that a session that is opened now and then waits for one fork and not for two."""
KEEPER_ATTEMPTS = 3
"""Keepers asked for where the zygote dies each time."""


class Pool:
    """All keepers of a sandbox. ``zygote`` brings the process that forks them."""

    def __init__(self, settings: recipe.Sandbox, plan: Plan, zygote: Callable[[], Awaitable[ZygoteHandle]]) -> None:
        self.keepers: set[KeeperHandle] = set()
        """Those that live, free ones too."""
        self._free: list[KeeperHandle] = []
        self._plan = plan
        self._limits = Limits(settings.processes, settings.disk_mb, settings.file_mb, settings.open_files)
        self._memory_mb = settings.memory_mb
        self._timeout_text = f"the cell ran longer than {settings.cell_seconds:g} s"
        self._zygote = zygote
        self._count = itertools.count()
        self._removals: set[asyncio.Task[None]] = set()
        self._ended = False

    @property
    def idle(self) -> bool:
        """Whether no keeper has a runner."""
        return not any(keeper.runners for keeper in self.keepers)

    async def take(self) -> KeeperHandle:
        """A keeper without a session: a free one, or a new one, which may still be on its way. SandboxFailure where the zygote
        cannot be had."""
        while self._free:
            keeper = self._free.pop()
            if keeper.alive:
                return keeper
        return await self._make()

    async def prepare(self) -> None:
        """Have some keepers ready."""
        self._free = [keeper for keeper in self._free if keeper.alive]
        while len(self._free) < READY:
            self._free.append(await self._make())

    def clear(self) -> int:
        """End all free keepers. Returns how many that were."""
        free, self._free = self._free, []
        for keeper in free:
            keeper.close()
        return len(free)

    async def end(self) -> None:
        """Wait for the removals under way. The files of other keepers are from here on the caller's to remove."""
        self._ended = True
        await asyncio.gather(*self._removals)

    async def _make(self) -> KeeperHandle:
        for _ in range(KEEPER_ATTEMPTS):
            keeper = KeeperHandle(await self._zygote(), next(self._count))
            name = f"session-{keeper.number}"
            self.keepers.add(keeper)
            keeper.gone.add_done_callback(functools.partial(self._lost, keeper, name))
            try:
                await keeper.fork(ForkRequest(name, self._limits, self._memory_mb, self._timeout_text))
                return keeper
            except ZygoteLost:
                continue
        raise SandboxFailure("the sandbox's parent process keeps dying")

    def _lost(self, keeper: KeeperHandle, name: str, _: asyncio.Future[int | None]) -> None:
        self.keepers.discard(keeper)
        if self._plan.level is not Level.NAMESPACES and not self._ended:  # there its files went with it
            task = asyncio.ensure_future(asyncio.to_thread(remove_scratch, self._plan, name))
            self._removals.add(task)
            task.add_done_callback(self._removals.discard)
