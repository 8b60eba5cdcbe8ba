"""``session.fork()``: a second session that has run the same cells."""

from __future__ import annotations

import asyncio

import pytest

from aster_sandbox import CellResult, Sandbox, SandboxFailure, Session, Settings
from tests.sandbox.sandbox_bench import Bench


def outputs(bench: Bench, session: Session, *codes: str) -> list[str]:
    return [bench.do(session.run(code)).output for code in codes]


def test_fork_has_the_state_and_is_independent(bench: Bench) -> None:
    session = bench.open(seed=4)
    outputs(
        bench, session, "import random, os\nx = [random.random()]\n_ = open('f', 'w').write('both')\nlog = open('log', 'a')"
    )
    fork = bench.fork(session)
    ours = outputs(bench, session, "x.append(1)\n_ = log.write('ours')\nlog.flush()\n_ = open('f', 'w').write('ours')")
    theirs = outputs(bench, fork, "x.append(2)\n_ = log.write('theirs')\nlog.flush()\n_ = open('g', 'w').write('theirs')")
    assert ours == theirs == ["[no output]"]
    look = "len(x), x[1], open('log').read(), open('f').read(), os.path.exists('g'), os.getcwd() == os.environ['HOME']"
    assert outputs(bench, session, look) == ["(2, 1, 'ours', 'ours', False, True)"]
    assert outputs(bench, fork, look) == ["(2, 2, 'theirs', 'both', True, True)"]
    assert outputs(bench, session, "random.random()") == outputs(bench, fork, "random.random()")


def test_fork_can_have_its_own_seed_and_keeps_it_after_a_crash(bench: Bench) -> None:
    session = bench.open(seed=4)
    outputs(bench, session, "import random, os, numpy as np")
    draw = "random.random(), float(np.random.rand())"
    one, other, again = (bench.fork(session, seed) for seed in (1, 2, 1))
    drawn = [outputs(bench, fork, draw, draw) for fork in (one, other, again)]
    assert drawn[0] == drawn[2]
    assert set(drawn[0]).isdisjoint(drawn[1])
    assert bench.do(one.run("os._exit(1)")).status == "crashed"
    assert bench.do(again.run("os._exit(1)")).status == "crashed"
    assert outputs(bench, one, draw) == outputs(bench, again, draw)


def test_closing_a_session_or_its_fork_does_not_affect_the_other(bench: Bench) -> None:
    for close_first in (True, False):
        session = bench.open()
        outputs(bench, session, "x = 1\n_ = open('f', 'w').write('text')")
        fork = bench.fork(session)
        closed, kept = (session, fork) if close_first else (fork, session)
        outputs(bench, kept, "import subprocess\np = subprocess.Popen(['sleep', '100'])")
        bench.do(closed.close())
        assert outputs(bench, kept, "p.poll() is None, x, open('f').read()") == ["(True, 1, 'text')"]
        with pytest.raises(SandboxFailure):
            bench.do(closed.run("1"))
        with pytest.raises(SandboxFailure):
            bench.do(closed.fork())


def test_forks_and_their_parent_recover_from_crashes(bench: Bench) -> None:
    session = bench.open()
    outputs(bench, session, "import os\nx = [0]", "_ = open('f', 'w').write('a')")
    fork = bench.fork(session)
    outputs(bench, fork, "x.append(1)\n_ = open('f', 'a').write('b')")
    grandchild = bench.fork(fork)
    outputs(bench, grandchild, "x.append(2)")
    for one, expected in ((fork, "([0, 1], 'ab')"), (session, "([0], 'a')"), (grandchild, "([0, 1, 2], 'ab')")):
        for death in ("os._exit(1)", "os.kill(os.getpid(), 9)"):
            assert bench.do(one.run(f"x.append('bad'); open('f', 'w').close(); {death}")).status == "crashed"
            assert outputs(bench, one, "x, open('f').read()") == [expected]


def test_fork_counts_against_the_limit_of_sessions() -> None:
    async def main() -> CellResult:
        async with Sandbox(Settings(sessions=2, preload=[])) as sandbox:
            session = await sandbox.open(0)
            await session.run("x = 3")
            fork = await session.fork()
            waiting = asyncio.create_task(fork.fork())
            await asyncio.sleep(0.1)
            assert not waiting.done()
            await session.close()
            async with await asyncio.wait_for(waiting, 30) as third:
                return await third.run("x")

    assert asyncio.run(main()).output == "3"


def test_many_forks_at_once(bench: Bench) -> None:
    async def main() -> list[str]:
        async with await bench.sandbox.open(1) as session:
            await session.run("x = 10")
            forks = await asyncio.gather(*(session.fork() for _ in range(12)))
            calls = await asyncio.gather(*(fork.run(f"x += {n}\nx") for n, fork in enumerate(forks)))
            await asyncio.gather(*(fork.close() for fork in forks))
            return [call.output for call in calls] + [(await session.run("x")).output]

    assert bench.do(main()) == [*(str(10 + n) for n in range(12)), "10"]


@pytest.mark.parametrize("seconds", [0.0, 0.002, 0.01])
def test_cancelled_fork_does_not_affect_its_parent(bench: Bench, seconds: float) -> None:
    async def main() -> list[str]:
        async with await bench.sandbox.open(1) as session:
            await session.run("_ = open('f', 'wb').write(bytes(4 << 20))\nx = 1")  # so that a fork takes a while
            forking = asyncio.create_task(session.fork())
            await asyncio.sleep(0)
            await asyncio.sleep(seconds)
            cancelled = forking.cancel()
            assert cancelled or seconds  # with a pause, a fast machine may have finished the fork
            await asyncio.wait([forking])
            if not cancelled:
                await forking.result().close()
            return [(await session.run("x += 1\nx")).output for _ in range(2)]

    assert bench.do(main()) == ["2", "3"]


def test_unfinished_fork_is_not_evicted_as_idle() -> None:
    async def main() -> str:
        async with Sandbox(Settings(cell_seconds=10, preload=[], idle_seconds=0.1)) as sandbox:
            session = await sandbox.open(0)
            await session.run("for n in range(3000): _ = open(f'f{n}', 'w').write('x' * 1000)")
            # The fork waits for this cell and then writes many files.
            busy = asyncio.create_task(session.run("import time\ntime.sleep(1)\nx = 5"))
            await asyncio.sleep(0.1)
            fork = await asyncio.wait_for(session.fork(), 30)
            await busy
            return (await fork.run("x")).output

    assert asyncio.run(main()) == "5"


def test_seeding_a_fork_whose_cells_broke_random_fails(bench: Bench) -> None:
    session = bench.open()
    outputs(bench, session, "import random\ndef broken(*_):\n    raise ValueError\nrandom.seed = broken\nx = 1")
    with pytest.raises(SandboxFailure):
        bench.do(session.fork(seed=3))
    assert outputs(bench, session, "x") == ["1"]


def test_first_cell_of_a_fork_reports_missing_state(hasty: Bench) -> None:
    session = hasty.open()
    for code in ("x = 1", "x = 2\nwhile True: x += 1"):
        hasty.do(session.run(code))
    fork = hasty.fork(session)
    first, second = (hasty.do(fork.run("x")).output for _ in range(2))
    note = "[this session's cells had to be run again; the variables and imports of earlier cells are kept, except for what"
    assert first == f"{note} these cells changed: 2 (from line 2 on)]\n2"
    assert second == "2"
    assert int(hasty.do(session.run("x")).output) > 2
