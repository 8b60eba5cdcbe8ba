"""Keepers that serve no session: made in advance, or left by a session that is over."""

from __future__ import annotations

import asyncio
import functools
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from aster.sandbox.handle import ZygoteHandle, ZygoteLost
from aster.sandbox.keeper_handle import KeeperHandle
from aster.sandbox.protocol import ForkRequest, SandboxFailure

if TYPE_CHECKING:
    from aster.core import recipe

READY = 2
"""Keepers made in advance, so that a session that is opened now and then waits for one fork and not for two."""
MOST_FREE = 128
"""Keepers of closed sessions that are kept for the next ones."""
FREE_SECONDS = 60.0
"""A keeper that no session has wanted for so long is one too many."""
KEEPER_ATTEMPTS = 3
"""Keepers asked for where the zygote dies each time."""


class Pool:
    """All keepers of a sandbox. ``zygote`` brings the process that forks them."""

    def __init__(self, settings: recipe.Sandbox, zygote: Callable[[], Awaitable[ZygoteHandle]]) -> None:
        self.keepers: set[KeeperHandle] = set()
        """Those that live, free ones too."""
        self._free: list[KeeperHandle] = []
        self._memory_mb = settings.memory_mb
        self._timeout_text = f"the cell ran longer than {settings.cell_seconds:g} s"
        self._zygote = zygote
        self._count = itertools.count()

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

    def give(self, keeper: KeeperHandle) -> None:
        """Take a keeper back whose last session is over."""
        if keeper.alive and len(self._free) < MOST_FREE:
            keeper.free_since = time.monotonic()
            self._free.append(keeper)
        else:
            keeper.close()

    async def prepare(self) -> None:
        """Have some keepers ready, and not too many."""
        self._free = [keeper for keeper in self._free if keeper.alive]
        # The longest free come first.
        while len(self._free) > READY and time.monotonic() - self._free[0].free_since > FREE_SECONDS:
            self._free.pop(0).close()
        while len(self._free) < READY:
            self.give(await self._make())

    def clear(self) -> int:
        """End all free keepers. Returns how many that were."""
        free, self._free = self._free, []
        for keeper in free:
            keeper.close()
        return len(free)

    async def _make(self) -> KeeperHandle:
        for _ in range(KEEPER_ATTEMPTS):
            keeper = KeeperHandle(await self._zygote(), next(self._count))
            self.keepers.add(keeper)
            keeper.gone.add_done_callback(functools.partial(self._lost, keeper))
            try:
                await keeper.fork(ForkRequest(f"session-{keeper.number}", self._memory_mb, self._timeout_text))
                return keeper
            except ZygoteLost:
                continue
        raise SandboxFailure("the sandbox's parent process keeps dying")

    def _lost(self, keeper: KeeperHandle, _: asyncio.Future[int | None]) -> None:
        self.keepers.discard(keeper)
