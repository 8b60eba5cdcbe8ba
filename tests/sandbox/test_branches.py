"""``session.fork()``: two sessions with one past."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from aster.core import recipe
from aster.core.types import ToolCall
from aster_sandbox import Sandbox, SandboxFailure, Session
from tests.sandbox.sandbox_bench import Bench


def outputs(bench: Bench, session: Session, *codes: str) -> list[str]:
    return [bench.do(session.run(code)).output for code in codes]


def test_a_branch_has_the_state_and_goes_its_own_way(bench: Bench) -> None:
    session = bench.open(seed=4)
    outputs(
        bench, session, "import random, os\nx = [random.random()]\n_ = open('f', 'w').write('both')\nlog = open('log', 'a')"
    )
    branch = bench.fork(session)
    ours = outputs(bench, session, "x.append(1)\n_ = log.write('ours')\nlog.flush()\n_ = open('f', 'w').write('ours')")
    theirs = outputs(bench, branch, "x.append(2)\n_ = log.write('theirs')\nlog.flush()\n_ = open('g', 'w').write('theirs')")
    assert ours == theirs == ["[no output]"]
    look = "len(x), x[1], open('log').read(), open('f').read(), os.path.exists('g'), os.getcwd() == os.environ['HOME']"
    assert outputs(bench, session, look) == ["(2, 1, 'ours', 'ours', False, True)"]
    assert outputs(bench, branch, look) == ["(2, 2, 'theirs', 'both', True, True)"]
    assert outputs(bench, session, "random.random()") == outputs(bench, branch, "random.random()")


def test_a_branch_can_be_given_other_random_numbers_and_keeps_them(bench: Bench) -> None:
    session = bench.open(seed=4)
    outputs(bench, session, "import random, os, numpy as np")
    draw = "random.random(), float(np.random.rand())"
    one, other, again = (bench.fork(session, seed) for seed in (1, 2, 1))
    drawn = [outputs(bench, branch, draw, draw) for branch in (one, other, again)]
    assert drawn[0] == drawn[2]
    assert set(drawn[0]).isdisjoint(drawn[1])
    assert bench.do(one.run("os._exit(1)")).status == "crashed"
    assert bench.do(again.run("os._exit(1)")).status == "crashed"
    assert outputs(bench, one, draw) == outputs(bench, again, draw)


def test_closing_either_leaves_the_other_untouched(bench: Bench) -> None:
    for close_first in (True, False):
        session = bench.open()
        outputs(bench, session, "x = 1\n_ = open('f', 'w').write('text')")
        branch = bench.fork(session)
        closed, kept = (session, branch) if close_first else (branch, session)
        outputs(bench, kept, "import subprocess\np = subprocess.Popen(['sleep', '100'])")
        bench.do(closed.close())
        assert outputs(bench, kept, "p.poll() is None, x, open('f').read()") == ["(True, 1, 'text')"]
        with pytest.raises(SandboxFailure, match="closed"):
            bench.do(closed.run("1"))
        with pytest.raises(SandboxFailure, match="closed"):
            bench.do(closed.fork())


def test_a_branch_recovers_like_any_session_and_so_does_its_parent(bench: Bench) -> None:
    session = bench.open()
    outputs(bench, session, "import os\nx = [0]", "_ = open('f', 'w').write('a')")
    branch = bench.fork(session)
    outputs(bench, branch, "x.append(1)\n_ = open('f', 'a').write('b')")
    grandchild = bench.fork(branch)
    outputs(bench, grandchild, "x.append(2)")
    for one, expected in ((branch, "([0, 1], 'ab')"), (session, "([0], 'a')"), (grandchild, "([0, 1, 2], 'ab')")):
        for death in ("os._exit(1)", "os.kill(os.getpid(), 9)"):
            assert bench.do(one.run(f"x.append('bad'); open('f', 'w').close(); {death}")).status == "crashed"
            assert outputs(bench, one, "x, open('f').read()") == [expected]
    # The common keeper, too, can go: each line then gets a keeper of its own.
    keeper = session.keeper
    assert keeper is not None
    assert keeper is branch.keeper is grandchild.keeper
    keeper.close()
    assert outputs(bench, branch, "x") == ["[0, 1]"]
    assert outputs(bench, session, "x") == ["[0]"]
    assert outputs(bench, grandchild, "x") == ["[0, 1, 2]"]


def test_where_no_fork_is_possible_the_branch_is_rebuilt(bench: Bench) -> None:
    session = bench.open()
    outputs(
        bench, session, "import threading\nx = 1\nt = threading.Thread(target=threading.Event().wait, daemon=True); t.start()"
    )
    branch = bench.fork(session)
    assert outputs(bench, branch, "x += 1\nx, t.is_alive()") == ["(2, True)"]
    assert outputs(bench, session, "x") == ["1"]
    outputs(bench, session, "import os\nif 'again' not in globals(): threading.Timer(0.05, os._exit, [0]).start()")
    bench.do(asyncio.sleep(0.3))
    assert outputs(bench, bench.fork(session), "x") == ["1"]  # nothing was there to fork


def test_where_the_files_take_too_long_to_copy_the_branch_is_rebuilt_and_its_parent_untouched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent / "preloaded")
    monkeypatch.setattr("aster_sandbox.session.BRANCH_SECONDS", 4)
    write = "import os\nmine = os.urandom(8)\nfor n in range(20): _ = open(f'f{n}', 'w').write(str(n))"

    async def main() -> tuple[list[str], list[str]]:
        async with Sandbox(recipe.Sandbox(preload=["slow_copies"])) as sandbox, await sandbox.open(0) as session:
            await session.run(write)
            before = (await session.run("mine, os.getpid()")).output
            async with await session.fork() as branch:
                files = [(await one.run("len(os.listdir()), open('f19').read()")).output for one in (session, branch)]
            return [before, (await session.run("mine, os.getpid()")).output], files

    (before, after), files = asyncio.run(main())
    assert before == after
    assert files == ["(20, '19')"] * 2


def test_a_branch_counts_as_a_session() -> None:
    async def main() -> ToolCall:
        async with Sandbox(recipe.Sandbox(sessions=2, preload=[])) as sandbox:
            session = await sandbox.open(0)
            await session.run("x = 3")
            branch = await session.fork()
            waiting = asyncio.create_task(branch.fork())
            await asyncio.sleep(0.1)
            assert not waiting.done()
            await session.close()
            async with await asyncio.wait_for(waiting, 30) as third:
                return await third.run("x")

    assert asyncio.run(main()).output == "3"


def test_the_event_loops_of_branches_do_not_wake_each_other(bench: Bench) -> None:
    async def main() -> list[str]:
        async with await bench.sandbox.open(1) as session:
            await session.run("import asyncio, os\nasync def loop():\n    return asyncio.get_running_loop()")
            socket = "os.fstat((await loop())._ssock.fileno()).st_ino"
            await session.run(socket)
            async with await session.fork() as branch:
                assert (await session.run(socket)).output != (await branch.run(socket)).output
                waiting = asyncio.create_task(session.run("await asyncio.sleep(1.5, 'slept')"))
                await asyncio.sleep(0.3)
                calls = [await branch.run("await asyncio.wait_for(asyncio.to_thread(lambda: 5), 10)") for _ in range(3)]
                return [call.output for call in (*calls, await waiting)]

    assert bench.do(main()) == ["5", "5", "5", "'slept'"]


def test_many_branches_at_once(bench: Bench) -> None:
    async def main() -> list[str]:
        async with await bench.sandbox.open(1) as session:
            await session.run("x = 10")
            branches = await asyncio.gather(*(session.fork() for _ in range(12)))
            calls = await asyncio.gather(*(branch.run(f"x += {n}\nx") for n, branch in enumerate(branches)))
            await asyncio.gather(*(branch.close() for branch in branches))
            return [call.output for call in calls] + [(await session.run("x")).output]

    assert bench.do(main()) == [*(str(10 + n) for n in range(12)), "10"]


@pytest.mark.parametrize("seconds", [0.0, 0.002, 0.01])
def test_a_cancelled_fork_does_not_disturb_its_parent(bench: Bench, seconds: float) -> None:
    async def main() -> list[str]:
        async with await bench.sandbox.open(1) as session:
            await session.run("_ = open('f', 'wb').write(bytes(4 << 20))\nx = 1")  # so that a fork takes a while
            forking = asyncio.create_task(session.fork())
            await asyncio.sleep(0)
            await asyncio.sleep(seconds)
            cancelled = forking.cancel()
            assert cancelled or seconds  # on some machine it is there by then
            await asyncio.wait([forking])
            if not cancelled:
                await forking.result().close()
            return [(await session.run("x += 1\nx")).output for _ in range(2)]

    assert bench.do(main()) == ["2", "3"]


def test_a_branch_in_the_making_is_not_idle() -> None:
    async def main() -> str:
        async with Sandbox(recipe.Sandbox(cell_seconds=10, preload=[], idle_seconds=0.1)) as sandbox:
            session = await sandbox.open(0)
            await session.run("for n in range(3000): _ = open(f'f{n}', 'w').write('x' * 1000)")
            # The branch waits for this cell, and then for its copies of many files.
            busy = asyncio.create_task(session.run("import time\ntime.sleep(1)\nx = 5"))
            await asyncio.sleep(0.1)
            branch = await asyncio.wait_for(session.fork(), 30)
            await busy
            return (await branch.run("x")).output

    assert asyncio.run(main()) == "5"


def test_a_branch_whose_cells_broke_the_generator_cannot_be_seeded(bench: Bench) -> None:
    session = bench.open()
    outputs(bench, session, "import random\ndef broken(*_):\n    raise ValueError\nrandom.seed = broken\nx = 1")
    with pytest.raises(SandboxFailure, match="cannot be given a seed"):
        bench.do(session.fork(seed=3))
    assert outputs(bench, session, "x") == ["1"]
