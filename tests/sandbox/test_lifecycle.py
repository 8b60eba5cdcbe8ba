"""Many sessions, the limit of sessions, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
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

from aster_sandbox import Sandbox, SandboxFailure, Settings
from aster_sandbox.isolation import Level
from aster_sandbox.isolation.cradle import READY
from tests.sandbox.conftest import levels_here
from tests.sandbox.sandbox_bench import Bench, zygote_pid


def processes_with(marker: str) -> list[int]:
    """Pids of processes whose environment or command line contains a text."""
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
    """The runners and everything they started: all processes of the sandbox except its own."""
    own = {zygote_pid(sandbox), *inits_of(sandbox)}
    handle = sandbox._zygote
    assert handle is not None
    guard = handle._process.pid
    parent = zygote_pid(sandbox)
    while parent != guard:
        parent = int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1])
        own.add(parent)
    return [pid for pid in below(guard) if pid not in own]


def inits_of(sandbox: Sandbox) -> list[int]:
    """The inits, including those kept ready: the zygote's siblings, children of the cradle."""
    if sandbox.level is not Level.NAMESPACES:
        return []
    zygote = zygote_pid(sandbox)
    cradle = int(Path(f"/proc/{zygote}/stat").read_text().rpartition(")")[2].split()[1])
    return [pid for pid in children(cradle) if pid != zygote]


def below(pid: int) -> list[int]:
    """All descendants of a process."""
    return [each for child in children(pid) for each in (child, *below(child))]


def children(pid: int) -> list[int]:
    """The children of a process with one thread."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return []


def soon(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether a condition becomes true within a generous time."""
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


def test_sessions_beyond_the_limit_wait_and_nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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
        async with Sandbox(Settings(cell_seconds=10, memory_mb=64, sessions=2, preload=[])) as sandbox:
            results = await asyncio.gather(*(one(sandbox, number) for number in range(6)))
            assert soon(lambda: not runners_of(sandbox)), "a closed session left a process"
            assert len(inits_of(sandbox)) in (0, READY)
            left_open = await sandbox.open(0)
            await left_open.run("open('other', 'w').write('x')")
            return results

    assert asyncio.run(main()) == [str(number) for number in range(6)]
    assert most == 2
    assert processes_with(str(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


def test_killed_supervisor_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    code = """
import asyncio, sys, tempfile
from aster_sandbox import Settings
from aster_sandbox import Sandbox
tempfile.tempdir = sys.argv[1]
async def main():
    async with Sandbox(cell_seconds=600, preload=[]) as sandbox:
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


def test_killed_supervisor_of_twenty_busy_sessions_leaves_nothing(tmp_path: Path) -> None:
    code = r"""
import asyncio, sys, tempfile
from aster_sandbox import Settings
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
    async with Sandbox(cell_seconds=600, preload=[]) as sandbox:
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
    assert len(processes_with(root)) >= 30
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert soon(lambda: not processes_with(root))
    assert soon(lambda: not list(tmp_path.iterdir()))


def test_processes_started_by_a_cell_end_with_its_interpreter(bench: Bench) -> None:
    bomb = """
import os, time
for number in range(40):
    if os.fork() == 0:
        if number % 2:
            os.setpgrp()  # leave the cell's process group
        if number % 3 == 0:
            os.fork() and os._exit(0)  # become an orphan
        os.execvp("sleep", ["sleep", "3456"])
os._exit(1)
"""
    before, crash, after = bench.cells("x = 1", bomb, "x")
    assert (before.status, crash.status, after.output) == ("ok", "crashed", "1")
    assert not [pid for pid in processes_with("3456") if b"sleep\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_closed_sessions_and_unentered_sandboxes_fail(bench: Bench) -> None:
    session = bench.open()
    bench.do(session.close())
    bench.do(session.close())
    with pytest.raises(SandboxFailure):
        bench.do(session.run("1"))

    async def never_entered() -> None:
        await Sandbox(Settings()).open(0)

    with pytest.raises(SandboxFailure):
        bench.do(never_entered())


def test_closing_a_session_ends_its_running_cell(bench: Bench) -> None:
    async def main() -> None:
        session = await bench.sandbox.open(0)
        cell = asyncio.create_task(session.run("import time\ntime.sleep(60)"))
        await asyncio.sleep(0.2)
        await session.close()
        with pytest.raises(SandboxFailure):
            await cell

    bench.do(main())


def test_cancelled_open_releases_its_place() -> None:
    async def main() -> None:
        async with Sandbox(Settings(sessions=1, preload=[])) as sandbox:
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


def test_zygote_that_cannot_start_is_a_sandbox_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")

    async def main() -> None:
        async with Sandbox(Settings()):
            raise AssertionError("it started")

    with pytest.raises(SandboxFailure):
        asyncio.run(main())


def test_zygote_does_not_import_torch_pydantic_or_aster() -> None:
    code = "import sys, aster_sandbox.zygote; sys.exit(bool({'torch', 'pydantic', 'aster'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_cancelled_close_still_ends_the_session(bench: Bench) -> None:
    async def main() -> None:
        session = await bench.sandbox.open(0)
        runner = session.runner
        assert runner is not None
        cell = asyncio.create_task(session.run("import time\ntime.sleep(60)"))
        await asyncio.sleep(0.2)
        closing = asyncio.create_task(session.close())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.gather(cell, closing, return_exceptions=True)
        assert closing.cancelled()
        await asyncio.wait_for(asyncio.shield(runner.gone), 20)
        await session.close()
        assert session not in bench.sandbox._sessions

    bench.do(main())


def test_forks_copy_few_mappings_of_each_library() -> None:
    async def main() -> Counter[str]:
        async with Sandbox(Settings(preload=["numpy"])) as sandbox:
            maps = await asyncio.to_thread(Path(f"/proc/{zygote_pid(sandbox)}/maps").read_text)
            assert (await (await sandbox.open(0)).run("import numpy\nfloat(numpy.linalg.norm([3, 4]))")).output == "5.0"
            return Counter(line.split()[5] for line in maps.splitlines() if line.endswith(".so"))

    libraries = asyncio.run(main())
    assert len(libraries) > 20
    # One readable and executable, one writable, and sometimes one more for a gap of the linker. Unmerged there are five.
    assert libraries.total() <= 3.2 * len(libraries)


def test_closing_a_session_while_the_zygote_is_slow_keeps_the_others() -> None:
    async def main() -> None:
        async with Sandbox(Settings(cell_seconds=10, preload=[], sessions=600)) as sandbox:
            session, other = await sandbox.open(0), await sandbox.open(1)
            zygote, runner = sandbox._zygote, other.runner
            assert zygote is not None
            assert runner is not None
            os.kill(zygote_pid(sandbox), signal.SIGSTOP)
            opening = [asyncio.create_task(sandbox.open(number)) for number in range(500)]
            await asyncio.sleep(0.5)
            closing = asyncio.create_task(other.close())
            await asyncio.sleep(0.1)
            assert zygote.alive
            for task in opening:
                task.cancel()
            os.kill(zygote_pid(sandbox), signal.SIGCONT)
            await asyncio.gather(*opening, return_exceptions=True)
            await asyncio.wait_for(closing, 30)
            assert sandbox._zygote is zygote
            assert (await session.run("1 + 1")).output == "2"
            assert soon(lambda: len(runners_of(sandbox)) == 1)

    asyncio.run(main())


def test_open_fails_without_free_descriptors_and_works_later() -> None:
    async def main() -> None:
        async with Sandbox(Settings(cell_seconds=10, preload=[])) as sandbox:
            session = await sandbox.open(0)
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)
            for room in range(8):
                lowest = os.dup(0)
                os.close(lowest)
                resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + room, limit[1]))
                try:
                    with contextlib.suppress(SandboxFailure, OSError):
                        await (await sandbox.open(room)).close()
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, limit)
            await asyncio.sleep(0.3)
            assert sandbox._housekeeping is not None
            assert not sandbox._housekeeping.done()
            assert (await session.run("1 + 1")).output == "2"
            assert (await (await sandbox.open(9)).run("2 + 1")).output == "3"
            assert soon(lambda: len(runners_of(sandbox)) == 2), "a process was left behind"

    asyncio.run(main())


def test_event_loop_runs_while_a_killed_zygote_is_reaped() -> None:
    async def main() -> None:
        async with Sandbox(Settings(cell_seconds=10, preload=[])) as sandbox:
            session = await sandbox.open(0)
            await session.run("x = 1")
            zygote, runner = sandbox._zygote, session.runner
            assert zygote is not None
            assert runner is not None
            guard = zygote._process.pid  # while it is stopped, it cannot reap the zygote
            os.kill(guard, signal.SIGSTOP)
            os.kill(zygote_pid(sandbox), signal.SIGKILL)
            while zygote.alive:
                await asyncio.sleep(0.01)
            waiting = asyncio.create_task(session.run("x"))
            await asyncio.sleep(0.5)
            assert not runner.gone.done()
            os.kill(guard, signal.SIGCONT)
            assert (await asyncio.wait_for(waiting, 60)).output == "1"

    asyncio.run(main())


def test_zygote_survives_a_killed_init(bench: Bench) -> None:
    if bench.sandbox.level is not Level.NAMESPACES:
        pytest.skip("there are no inits at this level")
    session = bench.open()
    bench.do(session.run("x = 5"))
    runner = session.runner
    assert runner is not None
    assert runner.pid is not None
    if os.geteuid() != 0:
        pytest.skip("only root can see which init is the session's")
    namespace = os.readlink(f"/proc/{runner.pid}/ns/pid")
    (init,) = [pid for pid in inits_of(bench.sandbox) if os.readlink(f"/proc/{pid}/ns/pid") == namespace]
    os.kill(init, signal.SIGKILL)
    bench.do(asyncio.wait_for(asyncio.shield(runner.gone), 20))
    assert bench.do(session.run("x")).output == "5"
    assert session.runner is not runner


def test_signals_ignored_by_the_supervisor_are_not_ignored_in_sessions() -> None:
    async def main() -> str:
        async with Sandbox(preload=[]) as sandbox, await sandbox.open() as session:
            look = "import signal\nsorted(n.name for n in signal.valid_signals() if signal.getsignal(n) is signal.SIG_IGN)"
            return (await session.run(look)).output

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert asyncio.run(main()) == "['SIGPIPE', 'SIGXFSZ']"
    finally:
        signal.signal(signal.SIGHUP, before)


def test_orphans_of_a_session_are_reaped(bench: Bench) -> None:
    orphans = """
import os, time
for _ in range(20):
    if os.fork() == 0:
        if os.fork():
            os._exit(0)
        time.sleep(0.05)
        os._exit(0)
    os.wait()
"""
    # Twice as many as a session's limit of processes.
    calls = bench.cells(orphans, *["import time\ntime.sleep(0.1)", orphans] * 5, "os.wait()")
    assert {call.status for call in calls[:-1]} == {"ok"}
    assert calls[-1].output.endswith("ChildProcessError: [Errno 10] No child processes")


DAEMON = """
import os, time
if os.fork() == 0:
    if os.fork() == 0:
        time.sleep(1000)
    os._exit(0)
_ = os.wait()
"""


@pytest.mark.parametrize("level", levels_here())
def test_closing_many_sessions_ends_everything_they_started(level: str) -> None:
    async def main() -> None:
        async with Sandbox(Settings.model_validate({"isolation": level, "preload": [], "sessions": 40})) as sandbox:
            sessions = await asyncio.gather(*(sandbox.open(number) for number in range(40)))
            calls = await asyncio.gather(*(session.run(DAEMON) for session in sessions))
            assert {call.status for call in calls} == {"ok"}, calls
            assert len(runners_of(sandbox)) == 80
            stays = sessions.pop()
            await asyncio.gather(*(session.close() for session in sessions))
            assert soon(lambda: len(runners_of(sandbox)) == 2), "only the open session and its daemon should be left"
            assert (await stays.run("1 + 1")).output == "2"
            assert len(runners_of(sandbox)) == 2

    asyncio.run(main())
