"""Shortage of memory and processes, idle sessions and floods: the sandbox waits or evicts, and no state is lost."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from aster_sandbox import Sandbox, SandboxFailure, Session, Settings, housekeeping, pressure, supervisor
from aster_sandbox.cgroups import Groups
from aster_sandbox.isolation import Level, probe
from tests.sandbox.test_lifecycle import runners_of, soon


class Machine:
    """A machine whose free memory the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 10_000.0
        monkeypatch.setattr(pressure, "available_mb", lambda: self.left)
        monkeypatch.setattr(pressure, "FRESH_SECONDS", 0.0)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def settings(**changes: object) -> Settings:
    return Settings.model_validate({"cell_seconds": 10, "memory_mb": 512, "preload": [], **changes})


def need_control_groups() -> Path:
    """A folder of control groups that was created and removed again. Skips the test if none can be created."""
    groups = Groups.find()
    if groups is None:
        pytest.skip("this process may not create control groups that count memory")
    groups.close()
    return Path(groups.folder)


async def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until a condition holds; fails after a generous time."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


def test_idle_session_is_evicted_and_restored_with_its_state() -> None:
    async def main() -> None:
        async with Sandbox(settings(idle_seconds=0.2)) as sandbox:
            session = await sandbox.open(3, "base = 5")
            await session.run("import random\nx = [base, random.random()]\n_ = open('f', 'w').write('text')")
            await session.run("1 / 0")
            expected = await session.run("x")
            await wait_until(lambda: session.runner is None and not runners_of(sandbox))
            again = await session.run("x")
            assert (again.status, again.output) == ("ok", expected.output)
            assert (await session.run("open('f').read()")).output == "'text'"

    asyncio.run(main())


def test_longest_idle_of_very_many_sessions_are_evicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "MAX_PROCESSES", 3)
    monkeypatch.setattr(housekeeping, "MIN_IDLE_SECONDS", 0.1)

    async def main() -> None:
        async with Sandbox(settings()) as sandbox:
            sessions = [await sandbox.open(number) for number in range(8)]
            for number, session in enumerate(sessions):
                await session.run(f"x = {number}")
            await wait_until(lambda: [session.runner is None for session in sessions] == [True] * 5 + [False] * 3)
            assert [(await session.run("x")).output for session in sessions] == [str(number) for number in range(8)]

    asyncio.run(main())


def test_session_that_replay_cannot_restore_is_not_evicted() -> None:
    async def main() -> None:
        async with Sandbox(settings(idle_seconds=0.2, cell_seconds=0.4)) as sandbox:
            session = await sandbox.open(0)
            await session.run("x = 1")
            assert (await session.run("x = 2\nimport time\ntime.sleep(60)")).status == "timeout"
            await asyncio.sleep(1.0)
            assert session.runner is not None
            assert (await session.run("x")).output == "2"

    asyncio.run(main())


def test_new_sessions_and_recovery_wait_for_memory(machine: Machine) -> None:
    async def main() -> None:
        async with Sandbox(settings(reserve_mb=1000)) as sandbox:
            session, _ = await sandbox.open(0), await sandbox.open(0)
            await session.run("x = 7")
            machine.left = 500
            opening = asyncio.create_task(sandbox.open(1))
            recovering = asyncio.create_task(session.run("import os\nos._exit(1)"))
            await asyncio.sleep(0.5)
            assert not opening.done()
            assert not recovering.done()
            machine.left = 5000
            assert (await asyncio.wait_for(recovering, 30)).status == "crashed"
            assert (await session.run("x")).output == "7"
            assert (await (await asyncio.wait_for(opening, 30)).run("1 + 1")).output == "2"

    asyncio.run(main())


def test_only_session_does_not_wait_for_memory(machine: Machine) -> None:
    async def main() -> str:
        machine.left = 1
        async with Sandbox(settings()) as sandbox, await asyncio.wait_for(sandbox.open(0), 30) as session:
            await session.run("x = 2")
            await asyncio.wait_for(session.run("import os\nos._exit(1)"), 30)
            async with await asyncio.wait_for(session.fork(), 30) as branch:
                assert (await branch.run("x")).output == "2"
            return (await asyncio.wait_for(session.run("x"), 30)).output

    assert asyncio.run(main()) == "2"


def test_waiting_for_memory_ends_when_the_session_is_closed_or_time_is_up(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pressure, "PATIENCE_SECONDS", 2.0)

    async def main() -> list[str]:
        machine.left = 1
        admission = pressure.Admission(1000)
        closed = False
        order: list[str] = []

        async def wait(name: str, wanted: Callable[[], bool] = lambda: True) -> None:
            try:
                await admission.wait(lambda: False, wanted)
            except SandboxFailure as error:
                order.append(f"{name}: {'time' if 'sandbox.reserve_mb' in str(error) else 'closed'}")

        waiting = [asyncio.create_task(wait("first")), asyncio.create_task(wait("second"))]
        waiting.append(asyncio.create_task(wait("third", lambda: not closed)))
        await asyncio.sleep(0.1)
        closed = True
        async with asyncio.timeout(2 * pressure.PATIENCE_SECONDS + 1.5):  # one after another would take three times as long
            await asyncio.gather(*waiting)
        return order

    assert asyncio.run(main()) == ["third: closed", "first: time", "second: time"]


def test_waiting_for_memory_ends_with_an_error_that_names_the_setting(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pressure, "PATIENCE_SECONDS", 0.2)

    async def main() -> None:
        async with Sandbox(settings()) as sandbox:
            await sandbox.open(0)
            machine.left = 1
            await sandbox.open(1)

    with pytest.raises(SandboxFailure, match=r"sandbox\.reserve_mb"):
        asyncio.run(main())


def test_longest_idle_sessions_are_evicted_first_when_memory_is_short(machine: Machine) -> None:
    async def main() -> None:
        async with Sandbox(settings(reserve_mb=1000)) as sandbox:
            sessions = [await sandbox.open(number) for number in range(3)]
            for number, session in enumerate(sessions):
                await session.run(f"x = {number}")
            busy = asyncio.create_task(sessions[2].run("import time\ntime.sleep(3)\nx"))
            await asyncio.sleep(1.2)
            machine.left = 500
            await wait_until(lambda: sessions[0].runner is None and sessions[1].runner is None)
            machine.left = 5000
            assert (await busy).output == "2"
            assert [(await session.run("x")).output for session in sessions] == ["0", "1", "2"]

    asyncio.run(main())


def test_no_cell_is_killed_for_memory_while_a_session_is_idle(machine: Machine) -> None:
    count = 2 * housekeeping.AT_ONCE

    async def main() -> None:
        async with Sandbox(settings(reserve_mb=1000, sessions=count + 2, cell_seconds=30)) as sandbox:
            sessions = [await sandbox.open(number) for number in range(count)]
            for number, session in enumerate(sessions):
                await session.run(f"x = {number}")
            hog = await sandbox.open()
            busy = asyncio.create_task(hog.run("import time\ny = b'1' * (200 << 20)\ntime.sleep(60)"))
            await asyncio.sleep(1.2)
            runner = hog.runner
            assert runner is not None
            machine.left = 500
            await wait_until(lambda: all(session.runner is None for session in sessions))
            machine.left = 5000
            assert not runner.killed_for_memory
            busy.cancel()
            with pytest.raises(asyncio.CancelledError):
                await busy
            assert [(await session.run("x")).output for session in sessions] == [str(number) for number in range(count)]

    asyncio.run(main())


def test_session_that_holds_most_memory_loses_only_its_cell(machine: Machine) -> None:
    async def main() -> None:
        async with Sandbox(settings(reserve_mb=1000)) as sandbox:
            hog, small = await sandbox.open(0), await sandbox.open(1)
            await hog.run("x = 1")
            runner = hog.runner
            assert runner is not None
            big = asyncio.create_task(hog.run("y = b'1' * (200 << 20)\nimport time\ntime.sleep(9)"))
            other = asyncio.create_task(small.run("import time\ntime.sleep(2)\n5"))
            await asyncio.sleep(1.0)
            machine.left = 500
            await wait_until(lambda: runner.killed_for_memory)  # after that the session has no runner until memory is free
            machine.left = 5000
            call = await big
            assert call.status == "crashed"
            assert "killed because the machine ran short of memory (the session held 2" in call.output
            assert call.output.endswith("; the variables and imports of earlier cells are kept]")
            assert (await hog.run("x, 'y' in globals()")).output == "(1, False)"
            assert (await other).output == "5"

    asyncio.run(main())


HOGS = {
    "sockets": """
import os, socket, time
def fill():
    pairs = []
    for _ in range(100):
        pair = socket.socketpair()
        pair[0].setblocking(False)
        try:
            while True: pair[0].send(bytes(1 << 16))
        except BlockingIOError:
            pairs.append(pair)
    time.sleep(60)
for _ in range(10):
    if os.fork() == 0: fill()
time.sleep(60)
""",
    "files": "import time\n_ = open('large', 'wb').write(bytes(150 << 20))\ntime.sleep(60)",
}
"""Cells that make the kernel hold memory outside their processes."""


@pytest.mark.parametrize("hog", HOGS)
def test_kernel_memory_counts_for_the_session_that_caused_it(machine: Machine, hog: str) -> None:
    need_control_groups()

    async def main() -> None:
        async with Sandbox(settings(reserve_mb=1000, isolation=probe().best.value)) as sandbox:
            if hog == "files" and sandbox.level is not Level.NAMESPACES:
                pytest.skip("files are in memory only at the level namespaces")
            guilty, innocent = await sandbox.open(0), await sandbox.open(1)
            await guilty.run("x = 1")
            runner = guilty.runner
            assert runner is not None
            other = asyncio.create_task(innocent.run("import time\ny = b'1' * (40 << 20)\ntime.sleep(6)\n5"))
            crash = asyncio.create_task(guilty.run(HOGS[hog]))
            await asyncio.sleep(2.5)
            machine.left = 500
            await wait_until(lambda: runner.killed_for_memory)
            machine.left = 5000
            assert "short of memory" in (await crash).output
            assert (await guilty.run("x")).output == "1"
            assert (await other).output == "5"

    asyncio.run(main())


def test_without_control_groups_further_processes_count_extra(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Groups, "find", lambda: None)

    async def main() -> None:
        async with Sandbox(settings(reserve_mb=1000)) as sandbox:
            guilty, innocent = await sandbox.open(0), await sandbox.open(1)
            runner = guilty.runner
            assert runner is not None
            other = asyncio.create_task(innocent.run("import time\ny = b'1' * (40 << 20)\ntime.sleep(4)\n5"))
            crash = asyncio.create_task(guilty.run(HOGS["sockets"]))
            await asyncio.sleep(1.5)
            machine.left = 500
            await wait_until(lambda: runner.killed_for_memory)
            machine.left = 5000
            assert "short of memory" in (await crash).output
            assert (await other).output == "5"

    asyncio.run(main())


def test_killed_supervisor_leaves_no_control_group() -> None:
    folder = need_control_groups().parent
    code = """
import asyncio
from aster_sandbox import Sandbox
async def main():
    async with Sandbox(preload=[]) as sandbox:
        session = await sandbox.open()
        await session.run("1")
        print(sandbox._groups.folder, flush=True)
        await session.run("import time; time.sleep(60)")
asyncio.run(main())
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    made = Path(parent.stdout.readline().strip())
    assert made.parent == folder
    assert made.is_dir()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert soon(lambda: not made.exists())


def test_sessions_opened_together_are_all_counted() -> None:
    need_control_groups()

    async def one(sandbox: Sandbox, number: int) -> Session:
        session = await sandbox.open(number)
        await session.run("x = b'1' * (40 << 20)")
        return session

    async def main() -> None:
        async with Sandbox(settings()) as sandbox:
            sessions = await asyncio.gather(*(one(sandbox, number) for number in range(16)))
            held = await sandbox._held([session.runner for session in sessions if session.runner is not None])
            assert len(held) == 16
            assert min(held.values()) > 40

    asyncio.run(main())


def test_closed_sandbox_leaves_no_control_group() -> None:
    assert not need_control_groups().exists()

    async def main() -> Path:
        async with Sandbox(settings()) as sandbox:
            sessions = [await sandbox.open(number) for number in range(4)]
            assert {(await session.run("1 + 1")).output for session in sessions} == {"2"}
            assert sandbox._groups is not None
            folder = Path(sandbox._groups.folder)
            assert len(list(folder.glob("session-*"))) == 4
            await sessions[0].close()
            assert len(list(folder.glob("session-*"))) == 3
            return folder

    assert not asyncio.run(main()).exists()


def test_cells_run_while_memory_use_is_measured(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    looking = 0

    def slowly(pids: list[int], _: object) -> dict[int, float]:  # as slow as with very many processes
        nonlocal looking
        looking += 1
        time.sleep(0.5)
        looking -= 1
        return dict.fromkeys(pids, 0.0)

    monkeypatch.setattr(Groups, "find", lambda: None)
    monkeypatch.setattr(supervisor, "held_mb", slowly)

    async def main() -> None:
        async with Sandbox(settings(reserve_mb=1000)) as sandbox, await sandbox.open(0) as session:
            machine.left = 500
            during = 0
            async with asyncio.timeout(20):
                while during < 5:
                    assert (await session.run("1 + 1")).output == "2"
                    during += looking

    asyncio.run(main())


def test_cell_that_starts_just_before_an_eviction_keeps_its_effects() -> None:
    async def main() -> str:
        async with Sandbox(settings(cell_seconds=0.4)) as sandbox, await sandbox.open(0) as session:
            await session.run("x = 1")
            assert session.evictable
            cell = asyncio.create_task(session.run("x = 2\nimport time\ntime.sleep(60)"))  # replay cannot repeat it
            await asyncio.gather(cell, session.evict())
            return (await session.run("x")).output

    assert asyncio.run(main()) == "2"


def test_recovery_killed_for_memory_repeatedly_loses_no_state() -> None:
    async def main() -> None:
        async with Sandbox(settings()) as sandbox, await sandbox.open(0) as session:
            await session.run("import os, time\nx = 7\ntime.sleep(0.2)")
            crash = asyncio.create_task(session.run("os._exit(1)"))
            killed = {session._runner}
            while len(killed) < 8:
                await wait_until(lambda: session._runner not in killed and session.running)
                await asyncio.sleep(0.1)  # it runs the first cell
                killed.add(session._runner)
                session.kill_for_memory("was killed because the machine ran short of memory")
            assert (await crash).output.endswith("the variables and imports of earlier cells are kept]")
            assert (await session.run("x")).output == "7"

    asyncio.run(main())


def test_failed_forks_are_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent / "preloaded")

    async def main() -> list[str]:
        # At this level the zygote and its children can read the test's files.
        async with Sandbox(settings(preload=["scarce_processes"], isolation="rlimits")) as sandbox:
            session = await sandbox.open(0)
            await session.run("x = 3")
            assert sandbox._plan is not None
            tickets = Path(sandbox._plan.root) / "failures"
            tickets.touch()
            tickets.write_bytes(b"x" * 4)
            others = await asyncio.gather(*(sandbox.open(number) for number in range(4)))
            results = [(await other.run("1 + 1")).output for other in others]
            tickets.write_bytes(b"x" * 3)
            assert (await session.run("import os\nos._exit(1)")).status == "crashed"
            return [*results, (await session.run("x")).output]

    assert asyncio.run(main()) == ["2", "2", "2", "2", "3"]


def test_session_that_floods_output_does_not_starve_others() -> None:
    async def main() -> int:
        async with Sandbox(settings()) as sandbox:
            loud, writer, quiet = [await sandbox.open(number) for number in range(3)]
            stop = False

            async def flood(session: Session, code: str) -> int:
                cells = 0
                while not stop:
                    await asyncio.gather(*(session.run(code) for _ in range(20)))
                    cells += 20
                return cells

            floods = [asyncio.create_task(flood(loud, "1")), asyncio.create_task(flood(writer, "print('x' * 10**6)"))]
            for number in range(30):
                assert (await quiet.run(f"{number}")).output == str(number)
            stop = True
            return min(await asyncio.gather(*floods))

    assert asyncio.run(main()) > 0


def test_idle_session_costs_three_descriptors() -> None:
    async def main() -> None:
        async with Sandbox(settings(sessions=200)) as sandbox:
            first = await sandbox.open(0)
            gc.collect()  # close what earlier tests left open now, not in between
            before = len(os.listdir("/proc/self/fd"))
            sessions = await asyncio.gather(*(sandbox.open(number) for number in range(1, 200)))
            calls = await asyncio.gather(*(session.run(f"x = {number}") for number, session in enumerate(sessions)))
            assert {call.status for call in calls} == {"ok"}
            assert abs(len(os.listdir("/proc/self/fd")) - before - 3 * 199) <= 3
            answers = await asyncio.gather(*(session.run("x") for session in sessions))
            assert [call.output for call in answers] == [str(number) for number in range(199)]
            await asyncio.gather(*(session.close() for session in sessions))
            assert len(os.listdir("/proc/self/fd")) <= before + 3
            assert soon(lambda: len(runners_of(sandbox)) == 1)
            assert (await first.run("1 + 1")).output == "2"

    asyncio.run(main())
