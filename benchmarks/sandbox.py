"""The sandbox beside Jupyter, ``python -c`` with replay, and bare fork; at the isolation level that the default gives.

    python benchmarks/sandbox.py [--json] [--quick] [--idle 2000] [--jupyter-sessions 64]

Contestants, in turns, so that a slow moment of the machine slows all of them; every answer is checked:

- **aster**: ``Sandbox`` with a recipe's defaults, but for the number of sessions alive at once.
- **jupyter**: ipykernel through jupyter_client's asyncio client, one kernel a session. A cell is done when its output, ``idle``
  and its reply are there.
- **replay**: ``python -c`` in a fresh process a cell, which runs the earlier cells again. It is given only what the cell needs
  as earlier cells, and as many processes at once as there are cores.
- **floor**: a process with the zygote's libraries, warmed up in the same way, forks; the child sends one byte back over a
  socket pair and exits. No isolation, no seeds, no interpreter state.

What is measured:

- *start*: ``open``: until the session says that it is ready (``Sandbox.open``; Jupyter's ``start_new_async_kernel`` with its
  ``wait_for_ready``). ``answered``: and until a first cell ``1`` was answered. ``ended``: and until it was closed (aster: all
  its processes and files are gone; jupyter: killed). The floor's ``answered`` is fork and the byte there and back, its
  ``ended`` also the wait for the child. One session at a time.
- *cell*: one cell at a time, contestants in turns, so that a cell finds its processes asleep.
- *cells/s*: at 1, 64 and 512 sessions, each of which sends its next cell when it has the answer. Until the last cell begun
  within the time is answered. Warm: every session has run such a cell. The kernels are idle while aster's sessions run.
- *memory*: PSS of all processes below this one with the sessions, less that without them, over their number. ``new``: after
  the first cell; ``used``: after six typical ones with sympy and numpy. Page tables are not in it.
- *density*: PSS of sessions that ran a trajectory of eight cells as models write them, in turn four different ones
  (``_sandbox_trajectories.py``), counted as *memory*.
- *recovery*: after five typical cells one calls ``os._exit``. ``reply``: until the session could take the next cell with its
  earlier state (jupyter: notice, restart, ready, the five cells again); ``next``: the next cell, which needs that state.
- *idle*: sessions with one cell behind them and no other work. PSS of all processes, this one included, and the fall of
  MemAvailable, which has the page tables too. Then 50 of them are asked for their state.

Ratios are medians of the ratios within a round; ``ranges`` has the least and the greatest. Speed ratios: above 1 is aster
faster. Memory: aster's over theirs, below 1 is aster smaller.

- ``start_vs_jupyter``: Jupyter's ``answered`` over aster's.
- ``start_vs_fork``: the floor's ``answered`` over aster's; 0.25 is four times slower than bare fork.
- ``life_vs_fork``: the floor's ``ended`` over aster's.
- ``cells64_vs_jupyter``: cells/s of ``1+1`` at 64 sessions.
- ``cpu_cells_vs_limit``: aster's cells/s of 10 ms CPU at 64 sessions over cores / 0.010 s.
- ``memory_vs_jupyter``: ``used``; ``memory_new_vs_jupyter``: ``new``.
- ``sessions_per_gib``: 1,024 MiB over a session's memory in *density*.

Wanted: ``start_vs_jupyter`` 20, ``cells64_vs_jupyter`` 40, ``cpu_cells_vs_limit`` .85 and ``sessions_per_gib`` 135 or more;
``memory_vs_jupyter`` .22 or less.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import itertools
import os
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from _machine import facts, print_json
from _memory import available, pss, pss_below
from _sandbox_cells import CPU_SECONDS, TYPICAL, Kind, make_kinds
from _sandbox_contestants import Aster, Contestant, Floor, Jupyter, Replay, Session
from _sandbox_result import Result, print_tables
from _sandbox_trajectories import TRAJECTORIES

from aster.terminal import say
from aster_sandbox import Sandbox, Settings

AT_ONCE = 4
"""Sessions that are opened or closed at the same time."""
KERNEL_MIB, SESSION_MIB, SPARE_MIB = 100, 5, 2048
"""Memory reckoned for a kernel and for an idle session, and left alone, when it is decided whether they fit."""
PACKAGES = ("aster-tir", "ipykernel", "jupyter_client", "ipython", "pyzmq", "sympy", "numpy", "scipy", "networkx", "mpmath")
"""Whose versions the result names."""
Item = TypeVar("Item")


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    starts: int
    block: int
    """Starts of aster and the floor for each of Jupyter's."""
    cells: int
    rounds: int
    seconds: float
    """Of one measurement of cells/s."""
    memory_sessions: int
    recoveries: int
    crowd: int
    large_crowd: int
    idle: int


FULL = Scale(12, 6, cells=32, rounds=3, seconds=1.5, memory_sessions=16, recoveries=5, crowd=64, large_crowd=512, idle=2000)
QUICK = Scale(2, 2, cells=2, rounds=1, seconds=0.2, memory_sessions=4, recoveries=1, crowd=2, large_crowd=4, idle=20)


async def measure_starts(contestants: dict[str, Contestant], floor: Floor, scale: Scale, result: Result) -> None:
    """Start, first answer and end of single sessions."""
    for _ in range(scale.starts):
        for name, contestant in contestants.items():
            times = [await start_once(contestant) for _ in range(scale.block if name == "aster" else 1)]
            for column, key in zip(zip(*times, strict=True), ("open", "answered", "ended"), strict=True):
                result.add(1e3 * statistics.median(column), "start_ms", name, key)
        for key, values in floor.fork(scale.block).items():
            result.add(1e3 * statistics.median(values), "start_ms", "floor", key)


async def start_once(contestant: Contestant) -> tuple[float, float, float]:
    """Seconds until it was open, had answered, and was closed."""
    began = time.perf_counter()
    session = await contestant.open()
    opened = time.perf_counter()
    await check(session.run, "1", "1")
    answered = time.perf_counter()
    await session.close()
    return opened - began, answered - began, time.perf_counter() - began


async def measure_memory(contestants: dict[str, Contestant], count: int, result: Result) -> None:
    """Marginal memory of ``count`` sessions, one contestant after the other, with no other sessions about."""
    for name, contestant in contestants.items():
        before = pss_below()
        sessions = await open_many(contestant, count)
        await asyncio.gather(*(check(session.run, "1", "1") for session in sessions))
        result.add((pss_below() - before) / count, "memory_mib", name, "new")
        for session in sessions:
            for code, answer in TYPICAL:
                await check(session.run, code, answer)
        result.add((pss_below() - before) / count, "memory_mib", name, "used")
        await close_many(sessions)


async def measure_density(contestant: Contestant, count: int, result: Result) -> None:
    """Marginal memory of ``count`` sessions after eight real cells each."""
    before = pss_below()
    sessions = await open_many(contestant, count)
    for session, trajectory in zip(sessions, itertools.cycle(TRAJECTORIES), strict=False):
        for code, answer in trajectory:
            await check(session.run, code, answer)
    held = (pss_below() - before) / count
    result.add(held, "density_mib", "aster", "after eight cells")
    result.ratios["sessions_per_gib"] = [1024 / held]
    await close_many(sessions)


async def measure_recovery(contestants: dict[str, Contestant], rounds: int, result: Result) -> None:
    """An interpreter that ends, after five cells, and the cell after that."""
    for _ in range(rounds):
        for name, contestant in contestants.items():
            session = await contestant.open()
            for code, answer in TYPICAL[:-1]:
                await check(session.keep, code, answer)
            began = time.perf_counter()
            await session.crash()
            crashed = time.perf_counter()
            await check(session.run, *TYPICAL[-1])
            result.add(1e3 * (crashed - began), "recovery_ms", name, "reply")
            result.add(1e3 * (time.perf_counter() - crashed), "recovery_ms", name, "next")
            await session.close()


async def measure_cells(contestants: dict[str, Contestant], kinds: list[Kind], turns: int, result: Result) -> None:
    """Single cells in turns. Replay, the slowest, gets every fourth turn."""
    sessions = {name: await contestant.open() for name, contestant in contestants.items()}
    for kind in kinds:
        for session in sessions.values():
            await prepare(kind, session)
        for turn in range(turns):
            for name, session in sessions.items():
                if name != "replay" or turn % 4 == 0:
                    code, answer = next(kind.cells)
                    began = time.perf_counter()
                    await check(session.run, code, answer)
                    result.add(1e3 * (time.perf_counter() - began), "cell_ms", name, kind.name)
    await close_many(sessions.values())


async def measure_rates(
    contestants: dict[str, tuple[Contestant, int]], title: str, kinds: list[Kind], scale: Scale, result: Result
) -> None:
    """Cells a second of each contestant with so many sessions."""
    groups: dict[str, list[Session]] = {}
    for name, (contestant, count) in contestants.items():
        groups[name] = await open_many(contestant, count)
    for kind in kinds:
        for group in groups.values():
            await in_groups(group, functools.partial(prepare, kind))
        for _ in range(scale.rounds):
            for name, group in groups.items():
                result.add(await rate(group, kind, scale.seconds), "cells_per_second", title, name, kind.name)
    await close_many(itertools.chain.from_iterable(groups.values()))


async def prepare(kind: Kind, session: Session) -> None:
    """Run what this kind needs before, and a first cell of it."""
    if kind.before:
        await session.keep(kind.before)
    await check(session.run, *next(kind.cells))


async def rate(sessions: list[Session], kind: Kind, seconds: float) -> float:
    """Cells a second of sessions that all work, each on one cell at a time."""
    began = time.perf_counter()

    async def work(session: Session) -> int:
        count = 0
        while time.perf_counter() - began < seconds:
            code, answer = next(kind.cells)
            await check(session.run, code, answer)
            count += 1
        return count

    return sum(await asyncio.gather(*map(work, sessions))) / (time.perf_counter() - began)


async def measure_idle(contestant: Contestant, count: int, with_pss: bool, result: Result) -> None:
    """Hold many sessions that do nothing."""
    free, began = available(), time.perf_counter()

    async def settle(number: int) -> Session:
        session = await contestant.open()
        await check(session.run, f"state = {number}\nstate", str(number))
        return session

    sessions = await in_groups(range(count), settle)
    result.add(count, "idle", "sessions")
    result.add(time.perf_counter() - began, "idle", "open_seconds")
    result.add(free - available(), "idle", "available_fell_mib")
    if with_pss:
        result.add(pss_below() + pss(os.getpid()), "idle", "pss_mib")
    for number in random.Random(0).sample(range(count), min(50, count)):
        began = time.perf_counter()
        await check(sessions[number].run, "state", str(number))
        result.add(1e3 * (time.perf_counter() - began), "idle", "wake_ms")
    began = time.perf_counter()
    await close_many(sessions)
    result.add(time.perf_counter() - began, "idle", "close_seconds")


async def check(run: Callable[[str], Awaitable[str]], code: str, answer: str) -> None:
    """Run a cell; a wrong answer ends the benchmark."""
    output = await run(code)
    if output != answer:
        raise SystemExit(f"{code!r} was answered with {output!r} instead of {answer!r}")


async def open_many(contestant: Contestant, count: int) -> list[Session]:
    """Sessions that are ready."""
    return await in_groups(range(count), lambda _: contestant.open())


async def close_many(sessions: Iterable[Session]) -> None:
    """End sessions."""
    await in_groups(sessions, lambda session: session.close())


async def in_groups(items: Iterable[Item], work: Callable[[Item], Awaitable[Any]]) -> list[Any]:
    """The results of ``work`` on all items, a few at a time."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(item: Item) -> Any:
        async with places:
            return await work(item)

    return await asyncio.gather(*map(one, items))


async def measure(scale: Scale, idle: int, kernels: int, result: Result) -> str:
    """Everything. Returns the isolation level."""
    settings = Settings(sessions=max(scale.large_crowd, idle))
    kinds, cores = make_kinds(), len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        async with Sandbox(settings) as sandbox:
            aster, jupyter, replay = Aster(sandbox), Jupyter(folder), Replay()
            stateful: dict[str, Contestant] = {"aster": aster, "jupyter": jupyter}
            everyone = stateful | {"replay": replay}
            for contestant in everyone.values():  # into the page cache, whatever it reads
                await start_once(contestant)
            with_pss = True
            try:
                pss_below()
            except PermissionError:
                with_pss = False
                result.skipped["PSS"] = "this user may not read the sessions' smaps_rollup; root may"
            say("memory")
            if with_pss:
                await measure_memory(stateful, scale.memory_sessions, result)
                await measure_density(aster, scale.memory_sessions, result)
            say("start")
            with Floor(settings.preload) as floor:
                await measure_starts(everyone, floor, scale, result)
            say("recovery")
            await measure_recovery(everyone, scale.recoveries, result)
            say("cell")
            await measure_cells(everyone, kinds, scale.cells, result)
            say("cells/s, 1 session")
            await measure_rates({name: (one, 1) for name, one in everyone.items()}, "1", kinds, scale, result)
            say(f"cells/s, {scale.crowd} sessions, {kernels} kernels")
            crowds: dict[str, tuple[Contestant, int]] = {
                "aster": (aster, scale.crowd),
                "jupyter": (jupyter, kernels),
                "replay": (replay, cores),
            }
            await measure_rates(crowds, str(scale.crowd), kinds, scale, result)
            say(f"cells/s, {scale.large_crowd} sessions")
            await measure_rates({"aster": (aster, scale.large_crowd)}, str(scale.large_crowd), kinds, scale, result)
            result.skipped[f"jupyter at {scale.large_crowd}"] = "so many kernels need 50 GiB and minutes to start"
            result.skipped[f"replay at {scale.large_crowd}"] = (
                "it has as many processes as cores, however many sessions there are"
            )
            if idle:
                say(f"{idle} idle sessions")
                await measure_idle(aster, idle, with_pss, result)
            level = sandbox.level.value
    compare(scale.crowd, kernels, cores, result)
    return level


def compare(crowd: int, kernels: int, cores: int, result: Result) -> None:
    """The ratios."""
    start, memory, rates = "start_ms", "memory_mib", ("cells_per_second", str(crowd))
    result.ratio("start_vs_jupyter", (start, "jupyter", "answered"), (start, "aster", "answered"))
    result.ratio("start_vs_fork", (start, "floor", "answered"), (start, "aster", "answered"))
    result.ratio("life_vs_fork", (start, "floor", "ended"), (start, "aster", "ended"))
    result.ratio("memory_vs_jupyter", (memory, "aster", "used"), (memory, "jupyter", "used"))
    result.ratio("memory_new_vs_jupyter", (memory, "aster", "new"), (memory, "jupyter", "new"))
    if crowd != FULL.crowd:
        result.skipped["cells64_vs_jupyter"] = result.skipped["cpu_cells_vs_limit"] = "--quick has no 64 sessions"
        return
    busy = result.rounds[(*rates, "aster", "10 ms CPU")]
    result.ratios["cpu_cells_vs_limit"] = [value * CPU_SECONDS / cores for value in busy]
    if kernels == crowd:
        result.ratio("cells64_vs_jupyter", (*rates, "aster", "1+1"), (*rates, "jupyter", "1+1"))
    else:
        result.skipped["cells64_vs_jupyter"] = (
            f"there were {kernels} kernels: see --jupyter-sessions, and the memory that is free"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--idle", type=int, help=f"idle sessions to hold; 0: none (default {FULL.idle})")
    parser.add_argument(
        "--jupyter-sessions", type=int, help="kernels beside 64 sessions (default 64, or what the memory holds)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a little of everything, in half a minute; its numbers mean nothing"
    )
    parser.add_argument("--json", action="store_true", help="the result as JSON in the last line")
    options = parser.parse_args()
    scale = QUICK if options.quick else FULL
    result = Result()
    room = available() - SPARE_MIB
    kernels = options.jupyter_sessions or max(1, min(scale.crowd, int(room / KERNEL_MIB)))
    idle = scale.idle if options.idle is None else options.idle
    if idle * SESSION_MIB > room:
        result.skipped["idle"] = f"{idle} sessions need about {idle * SESSION_MIB} MiB; {room:.0f} are free"
        idle = 0
    machine = facts(*PACKAGES)  # before: the load that it names is the others'
    level = asyncio.run(measure(scale, idle, kernels, result))
    report = {"benchmark": "sandbox", "level": level, "kernels": kernels, "quick": options.quick} | result.as_json()
    print_tables(report)
    if options.json:
        print_json(report | {"machine": machine})


if __name__ == "__main__":
    main()
