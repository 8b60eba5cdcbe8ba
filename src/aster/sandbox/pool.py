"""All keepers of a sandbox: those that sessions have, and those made in advance, each with a runner that waits for its seed."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aster.sandbox.handle import ZygoteHandle, ZygoteLost
from aster.sandbox.isolation import Level, Limits, Plan, remove_scratch
from aster.sandbox.keeper_handle import KeeperHandle
from aster.sandbox.output import Clip
from aster.sandbox.protocol import ForkRequest, SandboxFailure
from aster.sandbox.runner import Runner

if TYPE_CHECKING:
    from aster.core import recipe

READY = 2
"""Places made in advance, so that a session that is opened now and then waits for no fork."""
KEEPER_ATTEMPTS = 3
"""Keepers asked for where the zygote dies each time."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a session can go: a keeper's first line, with a runner on its way."""

    keeper: KeeperHandle
    line: int
    runner: Runner


class Pool:
    """All keepers of a sandbox. ``zygote`` brings the process that forks them."""

    def __init__(self, settings: recipe.Sandbox, plan: Plan, zygote: Callable[[], Awaitable[ZygoteHandle]]) -> None:
        self.keepers: set[KeeperHandle] = set()
        """Those that live, free ones too."""
        self.wanting = asyncio.Event()
        """Fewer places are ready than should be."""
        self._ready: list[Place] = []
        self._plan = plan
        self._limits = Limits(settings.processes, settings.disk_mb, settings.file_mb, settings.open_files)
        self._memory_mb = settings.memory_mb
        self._output_characters = settings.output_characters
        self._timeout_text = f"the cell ran longer than {settings.cell_seconds:g} s"
        self._zygote = zygote
        self._count = itertools.count()
        self._removals: set[asyncio.Task[None]] = set()
        self._ended = False

    def idle_beside(self, own: KeeperHandle | None) -> bool:
        """Whether no session has a runner, but for those of one keeper."""
        waiting = {place.keeper for place in self._ready}
        return not any(keeper.runners for keeper in self.keepers - waiting if keeper is not own)

    async def take(self, clip: Clip) -> Place:
        """A place whose runner's output goes to ``clip``: one that is ready, or a new one, whose processes may still be on
        their way. SandboxFailure where the zygote cannot be had."""
        self.wanting.set()
        while self._ready:
            place = self._ready.pop(0)
            if not place.runner.doomed:
                place.runner.clip = clip
                return place
            _end(place)
        return await self._make(clip)

    async def prepare(self) -> None:
        """Have some places ready."""
        self.wanting.clear()
        for place in [place for place in self._ready if place.runner.doomed]:
            self._ready.remove(place)
            _end(place)
        while len(self._ready) < READY:
            self._ready.append(await self._make(Clip(self._output_characters)))

    def clear(self) -> int:
        """End all places that are ready. Returns how many that were."""
        self.wanting.clear()
        ready, self._ready = self._ready, []
        for place in ready:
            _end(place)
        return len(ready)

    async def end(self) -> None:
        """End what is ready, and wait for the removals under way. From here on the files of other keepers are the caller's to
        remove."""
        self.clear()
        self._ended = True
        await asyncio.gather(*self._removals)

    async def _make(self, clip: Clip) -> Place:
        for _ in range(KEEPER_ATTEMPTS):
            zygote = await self._zygote()
            keeper: KeeperHandle | None = None
            try:
                keeper = KeeperHandle(zygote, next(self._count))
                name = f"session-{keeper.number}"
                self.keepers.add(keeper)
                keeper.gone.add_done_callback(functools.partial(self._lost, keeper, name))
                await keeper.fork(ForkRequest(name, self._limits, self._memory_mb, self._timeout_text))
                line = keeper.new_line()
                runner = Runner(keeper, line, clip)
                await runner.launch(-1)
                return Place(keeper, line, runner)
            except ZygoteLost:
                continue
            except OSError as error:  # no descriptors are left
                if keeper is not None:
                    keeper.close()
                raise SandboxFailure(f"no place could be made for a session: {error}") from error
        raise SandboxFailure("the sandbox's parent process keeps dying")

    def _lost(self, keeper: KeeperHandle, name: str, _: asyncio.Future[int | None]) -> None:
        self.keepers.discard(keeper)
        if self._plan.level is not Level.NAMESPACES and not self._ended:  # there its files went with it
            task = asyncio.ensure_future(asyncio.to_thread(remove_scratch, self._plan, name))
            self._removals.add(task)
            task.add_done_callback(self._removals.discard)


def _end(place: Place) -> None:
    place.keeper.close()
    place.runner.release()
