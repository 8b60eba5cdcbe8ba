"""Many sessions, limits, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from aster.core import recipe
from aster_sandbox import Sandbox, SandboxFailure
from aster_sandbox.pool import READY
from tests.sandbox.sandbox_bench import Bench, zygote_pid


def processes_with(marker: str) -> list[int]:
    """Pids of living processes whose environment or command line holds a text."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            known = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if marker.encode() in known:
            found.append(int(entry.name))
    return found


def runners_of(sandbox: Sandbox) -> list[int]:
    """What cells run in, and what they started: all processes below the keepers, which are the zygote's children."""
    keepers = children(zygote_pid(sandbox))
    found = [pid for keeper in keepers for pid in children(keeper)]
    for pid in found:
        found += children(pid)
    return found


def children(pid: int) -> list[int]:
    """The child processes of a process of one thread."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return []


def soon(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether a condition comes true within generous time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def test_many_sessions_run_at_once_each_with_its_own_state(bench: Bench) -> None:
    async def one(number: int) -> list[str]:
        async with await bench.sandbox.open(number) as session:
            calls = [
                await session.run(f"x = {number}"),
                await session.run("import time\ntime.sleep(0.3)"),
                await session.run("x * 2"),
            ]
            return [call.output for call in calls]

    async def all_of_them() -> list[list[str]]:
        return await asyncio.gather(*(one(number) for number in range(40)))

    assert [result[-1] for result in bench.do(all_of_them())] == [str(2 * number) for number in range(40)]


def test_sessions_beyond_the_limit_wait_and_nothing_is_left_after_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    alive = 0
    most = 0

    async def one(sandbox: Sandbox, number: int) -> str:
        nonlocal alive, most
        session = await sandbox.open(number)
        alive += 1
        most = max(most, alive)
        await session.run("import subprocess, os\nopen('file', 'w').write('x')")
        await session.run("p = subprocess.Popen(['sleep', '1000'], process_group=0)")
        result = await session.run(f"os.fork() or (os.setpgrp(), os.fork(), __import__('time').sleep(1000))\n{number}")
        alive -= 1
        await session.close()
        return result.output

    async def main() -> list[str]:
        async with Sandbox(recipe.Sandbox(cell_seconds=10, memory_mb=64, sessions=2, preload=[])) as sandbox:
            results = await asyncio.gather(*(one(sandbox, number) for number in range(6)))
            assert soon(lambda: len(runners_of(sandbox)) <= READY), "a closed session leaves nothing"
            left_open = await sandbox.open(0)
            await left_open.run("open('other', 'w').write('x')")
            return results

    assert asyncio.run(main()) == [str(number) for number in range(6)]
    assert most == 2
    assert processes_with(str(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


def test_no_process_and_no_file_outlives_a_killed_parent(tmp_path: Path) -> None:
    code = """
import asyncio, sys, tempfile
from aster.core import recipe
from aster_sandbox import Sandbox
tempfile.tempdir = sys.argv[1]
async def main():
    async with Sandbox(recipe.Sandbox(cell_seconds=600, preload=[])) as sandbox:
        busy, idle = await sandbox.open(0), await sandbox.open(1)
        await busy.run("import subprocess; p = subprocess.Popen(['sleep', '1000'], process_group=0)")
        task = asyncio.create_task(busy.run("while True: pass"))
        await idle.run("1")
        print("ready", flush=True)
        await task
asyncio.run(main())
"""
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"ready\n"
    root = f"{tmp_path}/aster-sandbox-"
    assert len(processes_with(root)) >= 4
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert soon(lambda: not processes_with(root))
    assert soon(lambda: not list(tmp_path.iterdir()))


def test_nothing_is_left_of_twenty_busy_sessions_whose_supervisor_was_killed(tmp_path: Path) -> None:
    code = r"""
import asyncio, sys, tempfile
from aster.core import recipe
from aster_sandbox import Sandbox
tempfile.tempdir = sys.argv[1]
WORK = [
    "while True: pass",
    "open('f', 'wb').write(bytes(1 << 20)); import time; time.sleep(600)",
    "import os; [os.fork() for _ in range(3)]; os.setpgrp() if os.getpid() % 2 else None; __import__('time').sleep(600)",
    "while True: print('x' * 1000)",
    "import os\nos.fork() or (os.setpgrp(), os.fork(), __import__('time').sleep(600))\nwhile True: pass",
]
async def main():
    async with Sandbox(recipe.Sandbox(cell_seconds=600, preload=[])) as sandbox:
        sessions = await asyncio.gather(*(sandbox.open(number) for number in range(15)))
        sessions += await asyncio.gather(*(session.fork() for session in sessions[:5]))
        await asyncio.gather(*(s.run("until = 0.3; import time\nwhile time.process_time() < until: pass") for s in sessions))
        tasks = [asyncio.create_task(s.run(WORK[number % len(WORK)])) for number, s in enumerate(sessions)]
        await asyncio.sleep(1)
        print("ready", flush=True)
        await asyncio.gather(*tasks)
asyncio.run(main())
"""
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"ready\n"
    root = f"{tmp_path}/aster-sandbox-"
    assert len(processes_with(root)) >= 40
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert soon(lambda: not processes_with(root))
    assert soon(lambda: not list(tmp_path.iterdir()))


def test_what_a_cell_started_dies_with_its_interpreter(bench: Bench) -> None:
    bomb = """
import os, time
for number in range(40):
    if os.fork() == 0:
        if number % 2:
            os.setpgrp()  # not in the cell's group any more
        if number % 3 == 0:
            os.fork() and os._exit(0)  # and nobody's child
        os.execvp("sleep", ["sleep", "3456"])
os._exit(1)
"""
    before, crash, after = bench.cells("x = 1", bomb, "x")
    assert (before.status, crash.status, after.output) == ("ok", "crashed", "1")
    assert not [pid for pid in processes_with("3456") if b"sleep\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_closed_things_say_so(bench: Bench) -> None:
    session = bench.open()
    bench.do(session.close())
    bench.do(session.close())
    with pytest.raises(SandboxFailure, match="closed"):
        bench.do(session.run("1"))

    async def never_entered() -> None:
        await Sandbox(recipe.Sandbox()).open(0)

    with pytest.raises(SandboxFailure, match="async with"):
        bench.do(never_entered())


def test_closing_a_session_ends_its_running_cell(bench: Bench) -> None:
    async def main() -> None:
        session = await bench.sandbox.open(0)
        cell = asyncio.create_task(session.run("import time\ntime.sleep(60)"))
        await asyncio.sleep(0.2)
        await session.close()
        with pytest.raises(SandboxFailure, match="closed"):
            await cell

    bench.do(main())


def test_a_cancelled_open_gives_its_place_back() -> None:
    async def main() -> None:
        async with Sandbox(recipe.Sandbox(sessions=1, preload=[])) as sandbox:
            for wait in (0.0, 0.001, 0.004):
                opening = asyncio.create_task(sandbox.open(0))
                await asyncio.sleep(wait)
                opening.cancel()
                await asyncio.gather(opening, return_exceptions=True)
                if not opening.cancelled():
                    await opening.result().close()
            session = await asyncio.wait_for(sandbox.open(1), 30)
            assert (await session.run("1 + 1")).output == "2"

    asyncio.run(main())


def test_a_zygote_that_cannot_start_is_a_sandbox_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")

    async def main() -> None:
        async with Sandbox(recipe.Sandbox()):
            raise AssertionError("it started")

    with pytest.raises(SandboxFailure, match="did not come up"):
        asyncio.run(main())


def test_the_sandbox_imports_no_torch_and_no_pydantic() -> None:
    code = "import sys, aster_sandbox.zygote; sys.exit(bool({'torch', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_cancelled_close_ends_the_session_all_the_same(bench: Bench) -> None:
    async def main() -> None:
        session = await bench.sandbox.open(0)
        keeper = session.keeper
        assert keeper is not None
        cell = asyncio.create_task(session.run("import time\ntime.sleep(60)"))
        await asyncio.sleep(0.2)
        closing = asyncio.create_task(session.close())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.gather(cell, closing, return_exceptions=True)
        assert closing.cancelled()
        await asyncio.wait_for(asyncio.shield(keeper.gone), 20)
        await session.close()
        assert session not in bench.sandbox._sessions

    bench.do(main())


def test_forks_copy_few_mappings_of_each_library() -> None:
    async def main() -> Counter[str]:
        async with Sandbox(recipe.Sandbox(preload=["numpy"])) as sandbox:
            maps = await asyncio.to_thread(Path(f"/proc/{zygote_pid(sandbox)}/maps").read_text)
            assert (await (await sandbox.open(0)).run("import numpy\nfloat(numpy.linalg.norm([3, 4]))")).output == "5.0"
            return Counter(line.split()[5] for line in maps.splitlines() if line.endswith(".so"))

    libraries = asyncio.run(main())
    assert len(libraries) > 20
    # What is for reading and running; what may be written; and where the linker left a gap, one more. It makes five.
    assert libraries.total() <= 3.2 * len(libraries)


def test_killing_a_keeper_while_the_zygote_has_much_to_do_costs_no_other_session() -> None:
    async def main() -> None:
        async with Sandbox(recipe.Sandbox(cell_seconds=10, preload=[], sessions=600)) as sandbox:
            session = await sandbox.open(0)
            zygote, keeper = sandbox._zygote, session.keeper
            assert zygote is not None
            assert keeper is not None
            os.kill(zygote_pid(sandbox), signal.SIGSTOP)
            opening = [asyncio.create_task(sandbox.open(number)) for number in range(500)]
            await asyncio.sleep(0.5)
            zygote.kill(keeper.number)
            assert zygote.alive
            for task in opening:
                task.cancel()
            os.kill(zygote_pid(sandbox), signal.SIGCONT)
            await asyncio.gather(*opening, return_exceptions=True)
            await asyncio.wait_for(asyncio.shield(keeper.gone), 30)
            assert sandbox._zygote is zygote
            assert (await session.run("1 + 1")).output == "2"

    asyncio.run(main())


def test_where_descriptors_run_out_the_sandbox_goes_on_when_there_are_some_again() -> None:
    async def main() -> None:
        async with Sandbox(recipe.Sandbox(cell_seconds=10, preload=[])) as sandbox:
            assert sandbox._pool is not None
            session = await sandbox.open(0)
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)
            for room in range(8):
                sandbox._pool.clear()
                await asyncio.sleep(0.05)
                lowest = os.dup(0)
                os.close(lowest)
                resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + room, limit[1]))
                sandbox._pool.wanting.set()
                await asyncio.sleep(0.15)
                resource.setrlimit(resource.RLIMIT_NOFILE, limit)
            assert sandbox._house is not None
            assert not sandbox._house.done()
            sandbox._pool.wanting.set()
            await asyncio.sleep(1.0)
            assert len(sandbox._pool.keepers) == 1 + READY  # none was left behind
            assert (await session.run("1 + 1")).output == "2"

    asyncio.run(main())


def test_the_loop_goes_on_while_a_dead_zygote_is_buried() -> None:
    async def main() -> None:
        async with Sandbox(recipe.Sandbox(cell_seconds=10, preload=[])) as sandbox:
            session = await sandbox.open(0)
            await session.run("x = 1")
            zygote, keeper = sandbox._zygote, session.keeper
            assert zygote is not None
            assert keeper is not None
            guard = zygote._process.pid  # stopped, it takes its time to bury the zygote
            os.kill(guard, signal.SIGSTOP)
            os.kill(zygote_pid(sandbox), signal.SIGKILL)
            while zygote.alive:
                await asyncio.sleep(0.01)
            waiting = asyncio.create_task(session.run("x"))
            await asyncio.sleep(0.5)
            assert not keeper.gone.done()
            os.kill(guard, signal.SIGCONT)
            assert (await asyncio.wait_for(waiting, 60)).output == "1"

    asyncio.run(main())
