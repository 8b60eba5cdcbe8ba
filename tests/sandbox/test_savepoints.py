"""Savepoints: what was computed once is not computed again, and the session's files come back with its variables."""

from __future__ import annotations

import asyncio

import pytest

from aster.core import recipe
from aster_sandbox import Sandbox
from aster_sandbox.isolation import Level
from aster_sandbox.pressure import _anonymous_mb
from tests.sandbox.conftest import levels_here
from tests.sandbox.sandbox_bench import Bench

CRASH = "import os\nos._exit(3)"
KEPT = "the variables and imports of earlier cells are kept]"
MARK = "import os\nwith open(os.environ['HOME'] + '/../mark', 'a') as mark:\n    _ = mark.write('x')\n"
"""Counts how often its cell ran, beside the working directory, where nothing is rolled back."""
COUNT = "__import__('os').path.getsize(__import__('os').environ['HOME'] + '/../mark')"
SIBLINGS = """
import os, signal, time
time.sleep(0.2)  # a savepoint is made after the reply
keeper = os.getppid()
def alive(pid):
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
siblings = [pid for pid in range(2, 100) if pid != os.getpid() and alive(pid)]
"""
"""Where a session has a process namespace, which this needs, its numbers are small."""


def expensive(code: str = "") -> str:
    """A cell that is worth a savepoint."""
    burn = "import time\nuntil = time.process_time() + 0.3\nwhile time.process_time() < until:\n    pass"
    return f"{MARK}{burn}\n{code}"


@pytest.fixture
def namespaced(bench: Bench) -> Bench:
    """A bench whose sessions have a process namespace."""
    if bench.sandbox.level is not Level.NAMESPACES:
        pytest.skip("cells would signal processes of the machine: this needs the isolation level namespaces")
    return bench


def test_an_expensive_cell_is_not_repeated_and_the_cells_after_it_are(bench: Bench) -> None:
    *_, crash, after, count = bench.cells("x = [1]", expensive("x.append(2)"), "x.append(3)", CRASH, "x", COUNT)
    assert crash.output == f"[crashed: the Python interpreter exited with status 3; {KEPT}"
    assert (after.output, count.output) == ("[1, 2, 3]", "1")


def test_time_that_was_slept_is_not_slept_again(bench: Bench) -> None:
    sleep = f"{MARK}import time\ntime.sleep(0.5)"
    assert [call.output for call in bench.cells("x = 1", sleep, CRASH, "x", COUNT)[3:]] == ["1", "1"]


def test_one_savepoint_serves_many_crashes(bench: Bench) -> None:
    session = bench.open()
    bench.do(session.run(expensive("x = 1")))
    for number in range(2, 6):
        assert bench.do(session.run(f"x += {number}; import os; os._exit(1)")).status == "crashed"
        assert bench.do(session.run(f"x = {number}\nx")).output == str(number)
    assert bench.do(session.run(COUNT)).output == "1"


def test_an_interrupted_cell_survives_a_later_crash(hasty: Bench) -> None:
    _, wait, crash, after = hasty.cells("x = 1", "import time\nx = 2\ntime.sleep(60)", CRASH, "x")
    assert wait.output.endswith("\n[timeout: the cell was interrupted after 0.5 s; all variables are kept]")
    assert crash.output.endswith(KEPT)
    assert after.output == "2"


def test_a_cell_that_waits_for_its_children_does_not_meet_the_savepoint(bench: Bench) -> None:
    wait = "import os, time\ntime.sleep(0.2)\nos.wait()"
    assert bench.cells(expensive(), wait)[1].output.endswith("ChildProcessError: [Errno 10] No child processes")


@pytest.mark.parametrize(
    "what", ["os.killpg(0, signal.SIGKILL)", "[os.kill(p, signal.SIGTERM) for p in siblings]; os._exit(1)"]
)
def test_what_a_cell_kills_by_accident_is_not_its_savepoint(namespaced: Bench, what: str) -> None:
    *_, found, crash, after, count = namespaced.cells(expensive("x = 5"), SIBLINGS + "len(siblings)", what, "x", COUNT)
    assert found.output == "1"
    assert crash.status == "crashed"
    assert (after.output, count.output) == ("5", "1")


def test_where_the_savepoint_is_killed_replay_remains(namespaced: Bench) -> None:
    *_, crash, after, count = namespaced.cells(
        expensive("x = 5"), SIBLINGS, "[os.kill(p, 9) for p in siblings]; os._exit(1)", "x", COUNT
    )
    assert crash.output.endswith(KEPT)
    assert (after.output, count.output) == ("5", "2")


@pytest.mark.parametrize("what", ["os.kill(keeper, 9); os._exit(1)", "os.kill(keeper, signal.SIGSTOP); os._exit(1)"])
def test_the_keeper_is_out_of_reach(namespaced: Bench, what: str) -> None:
    session = namespaced.open()
    made = [namespaced.do(session.run(code)) for code in ("x = 5", SIBLINGS)]
    keeper = session.keeper
    crash, after = namespaced.do(session.run(what)), namespaced.do(session.run("x"))
    assert ({call.status for call in made}, crash.status, after.output) == ({"ok"}, "crashed", "5")
    assert session.keeper is keeper
    assert keeper is not None


def test_where_the_keeper_is_killed_another_one_and_replay_take_its_place() -> None:
    async def main() -> list[str]:
        settings = recipe.Sandbox(isolation=levels_here()[-1], cell_seconds=10, memory_mb=64, preload=[])
        async with Sandbox(settings) as sandbox, await sandbox.open(0) as session:
            calls = [
                await session.run(code) for code in ("x = 5", "import os, time\nos.kill(os.getppid(), 9); time.sleep(9)", "x")
            ]
            return [str(call.status) for call in calls] + [calls[2].output]

    assert asyncio.run(main()) == ["ok", "crashed", "ok", "5"]


def test_a_cell_that_is_slower_in_replay_is_kept() -> None:
    slower = """
import os, time
mark = os.path.dirname(os.getcwd()) + "/mark"  # outside the working directory: it is not rolled back
again = os.path.exists(mark)
open(mark, "w").close()
time.sleep(1.1 if again else 0.1)
x = 1
"""

    async def main() -> list[str]:
        async with Sandbox(recipe.Sandbox(cell_seconds=0.5, preload=[])) as sandbox, await sandbox.open(0) as session:
            return [(await session.run(code)).output for code in (slower, "os._exit(3)", "x, again")]

    crashed, after = asyncio.run(main())[1:]
    assert crashed.endswith("of earlier cells are kept]")
    assert after == "(1, True)"


FORGE = """
import os, socket, time
registry = socket.socket(fileno=os.dup(503))
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
def send(message, descriptor=theirs.fileno()):
    socket.send_fds(registry, [message], [descriptor])
"""
"""Reaches the socket over which savepoints and branches make themselves known to the keeper."""


@pytest.mark.parametrize(
    "what",
    [
        "send(b'{\"branched\": Infinity}')",
        "send(b'[' * 4000)",
        "send(b'\"saved\"')",
        "null = os.open('/dev/null', 0)\nfor _ in range(1000): send(b'{}', null)",
        "send(b'{\"saved\": 0}', registry.fileno())",
        "theirs.setblocking(False)\ntry:\n    while theirs.send(b'x' * 1000): pass\nexcept BlockingIOError: pass\n"
        "send(b'{\"saved\": 0}')\nif os.fork() == 0:\n    os.setpgrp()\n    time.sleep(1000)",
    ],
    ids=["no number", "deep", "no message", "no socket", "the keeper's own socket", "a full bell"],
)
def test_nonsense_does_not_disturb_the_keeper(bench: Bench, what: str) -> None:
    session = bench.open()
    bench.do(session.run("x = 5"))
    branch = bench.fork(session)
    keeper = session.keeper
    assert keeper is not None
    assert bench.do(session.run(f"{FORGE}{what}\ntime.sleep(0.1)")).status == "ok"
    assert bench.do(session.run("os._exit(1)")).status == "crashed"
    assert [bench.do(one.run("x")).output for one in (session, branch, bench.fork(session))] == ["5", "5", "5"]
    assert session.keeper is keeper is branch.keeper


def test_no_number_of_forged_branches_makes_the_keeper_grow(bench: Bench) -> None:
    session = bench.open()
    keeper = session.keeper
    assert keeper is not None
    keeper.tell("who")
    bench.do(asyncio.sleep(0.2))
    assert keeper.pid is not None
    before = _anonymous_mb(keeper.pid)
    many = f"{FORGE}for n in range(10**1000, 10**1000 + 10_000): send(b'{{\"branched\": %d}}' % n)"
    assert bench.do(session.run(many)).status == "ok"
    bench.do(asyncio.sleep(0.2))
    assert session.keeper is keeper
    assert _anonymous_mb(keeper.pid) - before < 2


@pytest.mark.parametrize(
    "obstacle",
    [
        "import threading\nt = threading.Thread(target=threading.Event().wait, daemon=True); t.start()",
        "import subprocess\np = subprocess.Popen(['sleep', '100'])",
        "import os\npipe = os.pipe()\n_ = os.write(pipe[1], b'5')",
        "import tempfile\nf = tempfile.TemporaryFile()\n_ = f.write(b'5')",
        "import mmap\nm = mmap.mmap(-1, 4096)\nm[:1] = b'5'",
        "import os\ndef broken():\n    raise BlockingIOError(11, 'Resource temporarily unavailable')\nos.fork = broken",
    ],
    ids=["threads", "children", "pipes", "nameless files", "shared memory", "no fork"],
)
def test_what_a_fork_cannot_copy_is_rebuilt_by_replay(bench: Bench, obstacle: str) -> None:
    *_, crash, after, count = bench.cells(obstacle, expensive("x = 5"), CRASH, "x", COUNT)
    assert crash.output.endswith(KEPT)
    assert (after.output, count.output) == ("5", "2")


def test_files_come_back_as_the_earlier_cells_left_them(bench: Bench) -> None:
    make = """
import os
os.makedirs('a/b')
_ = open('a/b/f', 'w').write('first')
_ = open('gone', 'w').write('x')
os.chmod('a/b/f', 0o640)
os.symlink('a/b/f', 'link')
os.remove('gone')
log = open('log', 'w+')
_ = log.write('one ')
log.flush()
"""
    spoil = """
import shutil
shutil.rmtree('a')
os.remove('link')
_ = open('new', 'w').write('x')
_ = log.write('bad')
log.flush()
os._exit(1)
"""
    look = """
_ = log.write('two')
log.flush()
print(sorted(os.listdir()), open('link').read(), oct(os.stat('a/b/f').st_mode), open('log').read(), os.readlink('link'))
"""
    for code in (make, make + expensive()):  # by replay, and from a savepoint
        *_, last, _ = calls = bench.cells(code, spoil, look, COUNT)
        assert last.output == "['a', 'link', 'log'] first 0o100640 one two a/b/f"
    assert calls[-1].output == "1"


def test_a_working_directory_that_is_too_large_to_copy_is_said(bench: Bench) -> None:
    large = "_ = open('f', 'wb').write(bytes(20 << 20))\nx = 1\n"
    spoil = "open('f', 'w').write('bad')\nimport os\nos._exit(1)"
    *_, crash, after, count = bench.cells(expensive(large), "x = 2", spoil, "x", COUNT)
    assert crash.output.endswith("; the files in the working directory were too large to be copied, and are as they were left]")
    assert (after.output, count.output) == ("2", "1")
    *_, crash, after = bench.cells(large, CRASH, "import os\nos.path.getsize('f')")
    assert (crash.output[-len(KEPT) :], after.output) == (KEPT, str(20 << 20))  # replay has no such limit


def test_random_numbers_go_on_as_if_nothing_had_happened(bench: Bench) -> None:
    draw = "random.random(), float(np.random.rand()), randint(0, 10**9)"
    first = f"import random, numpy as np\nfrom sympy.core.random import randint\n{draw}"
    straight = bench.cells(first, draw, draw, seed=3)
    broken = bench.cells(first, expensive(draw), "random.random(); import os; os._exit(1)", draw, seed=3)
    assert [call.output for call in (*broken[:2], broken[3])] == [call.output for call in straight]


def test_the_event_loop_works_on_in_a_savepoint(bench: Bench) -> None:
    start = "import asyncio\nq = asyncio.Queue()\nt = asyncio.create_task(q.get())\nawait asyncio.sleep(0)"
    cells = (start, expensive(), CRASH, "await q.put(7)\nawait asyncio.wait_for(t, 5)", "await asyncio.sleep(0.01, 8)")
    assert [call.output for call in bench.cells(*cells)[3:]] == ["7", "8"]


def test_a_cell_that_breaks_replay_costs_its_own_effects_alone(bench: Bench) -> None:
    once = "import os\nif os.path.exists('../mark'): os._exit(5)\nopen('../mark', 'w').close()\ny = 1"
    *_, crash, after = bench.cells("x = 1", once, "x += 1", CRASH, "x, 'y' in globals()")
    assert crash.output.endswith("are kept, except for what these cells changed: 2]")
    assert after.output == "(2, False)"


def test_what_the_setup_made_comes_back_and_an_expensive_setup_is_not_repeated(bench: Bench) -> None:
    setup = "open('given', 'w').write('data')\ntable = open('given')"
    cells = ("table.read(2)", "import os\nos.remove('given')\nos._exit(1)", "table.read(), open('given').read()")
    for code in (setup, expensive(setup)):
        *_, last, count = bench.cells(*cells, COUNT, setup=code)
        assert last.output == "('ta', 'data')"
    assert count.output == "1"
