"""Replay: a new process gets the state of earlier cells, and what is missing is named."""

from __future__ import annotations

import asyncio
import os
import re
import time

import pytest

from aster_sandbox import Sandbox
from tests.sandbox.conftest import levels_here
from tests.sandbox.sandbox_bench import Bench

CRASH = "import os\nos._exit(3)"
KEPT = "the variables and imports of earlier cells are kept]"


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
def test_session_is_restored_whatever_it_holds(bench: Bench, obstacle: str) -> None:
    *_, crash, after = bench.cells(obstacle, "x = 5", CRASH, "x")
    assert crash.output.endswith(KEPT)
    assert after.output == "5"


def test_files_are_restored(bench: Bench) -> None:
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
    assert bench.cells(make, spoil, look)[-1].output == "['a', 'link', 'log'] first 0o100640 one two a/b/f"


def test_random_numbers_continue_after_a_crash(bench: Bench) -> None:
    draw = "random.random(), float(np.random.rand()), randint(0, 10**9)"
    first = f"import random, numpy as np\nfrom sympy.core.random import randint\n{draw}"
    straight = bench.cells(first, draw, draw, seed=3)
    broken = bench.cells(first, draw, "random.random(); import os; os._exit(1)", draw, seed=3)
    assert [call.output for call in (*broken[:2], broken[3])] == [call.output for call in straight]


def test_event_loop_works_after_a_crash(bench: Bench) -> None:
    start = "import asyncio\nq = asyncio.Queue()\nt = asyncio.create_task(q.get())\nawait asyncio.sleep(0)"
    cells = (start, CRASH, "await q.put(7)\nawait asyncio.wait_for(t, 5)", "await asyncio.sleep(0.01, 8)")
    assert [call.output for call in bench.cells(*cells)[2:]] == ["7", "8"]


def test_cell_that_breaks_replay_loses_only_its_own_effects(bench: Bench) -> None:
    session = bench.open()
    bench.do(session.run("x = 1"))
    once = f"import os, time\nif time.time() > {time.time() + 0.5}: os._exit(5)\ny = 1"
    assert bench.do(session.run(once)).status == "ok"
    bench.do(session.run("x += 1"))
    bench.do(asyncio.sleep(0.6))
    crash, after = bench.do(session.run(CRASH)), bench.do(session.run("x, 'y' in globals()"))
    assert crash.output.endswith("are kept, except for what these cells changed: 2]")
    assert after.output == "(2, False)"


def test_interrupted_cell_is_replayed_up_to_the_interrupted_statement(hasty: Bench) -> None:
    cell = "x = 1\nfor y in range(3):\n    x += 10\nimport time\nn = 0\nwhile True:\n    n += 1\nx = 99"
    _, loop, before, crash, after = hasty.cells("a = 7", cell, "x, n > 0", CRASH, "a, x, y, n")
    assert loop.output.endswith("\n[timeout: the cell was interrupted after 0.5 s; all variables are kept]")
    assert before.output == "(31, True)"
    assert crash.output.endswith("are kept, except for what these cells changed: 2 (from line 6 on)]")
    assert after.output == "(7, 31, 2, 0)"


def test_interrupted_await_is_replayed_up_to_its_line(hasty: Bench) -> None:
    cell = "import asyncio\nx = await asyncio.sleep(0, 5)\nawait asyncio.sleep(60)\nx = 6"
    _, crash, after = hasty.cells(cell, CRASH, "x")
    assert crash.output.endswith("are kept, except for what these cells changed: 1 (from line 3 on)]")
    assert after.output == "5"


def test_cell_interrupted_in_its_first_statement_is_reported_as_missing(hasty: Bench) -> None:
    *_, crash, after = hasty.cells("x = 1", "while True: x += 1", CRASH, "x")
    assert crash.output.endswith("are kept, except for what these cells changed: 2]")
    assert after.output == "1"


def test_interrupted_line_with_several_statements_is_not_replayed(hasty: Bench) -> None:
    *_, crash, after = hasty.cells("x = 1", "x = 2; import time; time.sleep(60)", CRASH, "x")
    assert crash.output.endswith("changed: 2]")
    assert after.output == "1"


@pytest.mark.parametrize(
    "loop",
    [
        "while True:\n    try:\n        time.sleep(60)\n    except:\n        pass",
        "while True:\n    try:\n        for i in range(10**9): i * i\n    except BaseException:\n        continue",
        "for i in range(60):\n    try:\n        time.sleep(60)\n    except BaseException as error:\n        last = error",
    ],
    ids=["sleep", "compute", "finite"],
)
def test_loop_that_swallows_interrupts_ends_and_keeps_its_state(hasty: Bench, loop: str) -> None:
    _, stuck, after, same = hasty.cells("x = 1\nimport time, os\nme = os.getpid()", f"x = 2\n{loop}", "x", "me == os.getpid()")
    assert stuck.status == "timeout"
    assert stuck.output.endswith("[timeout: the cell was interrupted after 0.5 s; all variables are kept]")
    assert (after.output, same.output) == ("2", "True")


def test_interrupted_cell_is_not_killed_while_its_traceback_is_written(hasty: Bench) -> None:
    # Formatting this traceback takes longer than the grace time between interrupt and SIGKILL.
    slow = """
import linecache, time
def slowly(*_):
    time.sleep(1.5)
    return []
linecache.updatecache = slowly
x = 2
exec(compile('while True: pass', 'elsewhere.py', 'exec'))
"""
    _, loop, after = hasty.cells("x = 1", slow, "x")
    assert loop.output.endswith("[timeout: the cell was interrupted after 0.5 s; all variables are kept]")
    assert after.output == "2"


def test_replay_has_its_own_time_limit_and_names_the_cells_beyond_it() -> None:
    async def main() -> tuple[str, str]:
        async with Sandbox(cell_seconds=20, replay_seconds=0.5, preload=[]) as sandbox:
            session = await sandbox.open(0)
            later = time.time() + 1.0  # from then on, a cell takes longer than replay_seconds
            for number in range(1, 5):
                slow = f"import time\nif {number} > 2 and time.time() > {later}: time.sleep(60)\n"
                assert (await session.run(f"{slow}v{number} = {number}")).status == "ok"
            await asyncio.sleep(1.1)
            crash = await session.run(CRASH)
            return crash.output, (await session.run("sorted(n for n in globals() if n[0] == 'v')")).output

    crash, after = asyncio.run(main())
    assert crash.endswith("are kept, except for what these cells changed: 3, 4]")
    assert after == "['v1', 'v2']"


def test_cell_that_is_slower_in_replay_is_kept() -> None:
    async def main() -> list[str]:
        async with Sandbox(cell_seconds=0.5, preload=[]) as sandbox, await sandbox.open(0) as session:
            slower = f"import time\nagain = time.time() > {time.time() + 1.0}\ntime.sleep(1.1 if again else 0.1)\nx = 1"
            first = await session.run(slower)
            await asyncio.sleep(1.2)
            return [first.output, *[(await session.run(code)).output for code in ("import os\nos._exit(3)", "x, again")]]

    _, crashed, after = asyncio.run(main())
    assert crashed.endswith("of earlier cells are kept]")
    assert after == "(1, True)"


def test_effects_of_the_setup_are_restored(bench: Bench) -> None:
    setup = "open('given', 'w').write('data')\ntable = open('given')"
    cells = ("table.read(2)", "import os\nos.remove('given')\nos._exit(1)", "table.read(), open('given').read()")
    assert bench.cells(*cells, setup=setup)[-1].output == "('ta', 'data')"


def test_upload_as_large_as_the_memory_limit_is_restored() -> None:
    content = os.urandom(1 << 20) * 64

    async def main() -> None:
        async with Sandbox(memory_mb=64, disk_mb=100, preload=[]) as sandbox, await sandbox.open() as session:
            await session.run("x = 41")
            await session.upload("large", content)
            assert (await session.run("import os\nos._exit(1)")).output.endswith("earlier cells are kept]")
            assert await session.download("large") == content
            await session.upload("large", b"short")
            assert (await session.run("open('large').read(), x")).output == "('short', 41)"

    asyncio.run(main())


def test_uploaded_files_are_restored(bench: Bench) -> None:
    session = bench.open()
    bench.do(session.upload("data/numbers.txt", b"1 2 3"))
    assert bench.do(session.run("open('data/numbers.txt').read()")).output == "'1 2 3'"
    bench.do(session.run("_ = open('data/numbers.txt', 'a').write(' 4')"))
    assert bench.do(session.run(CRASH)).output.endswith(KEPT)
    assert bench.do(session.download("data/numbers.txt")) == b"1 2 3 4"


def test_large_files_can_be_copied_and_invalid_paths_are_os_errors(bench: Bench) -> None:
    session = bench.open()
    content = bytes(range(256)) * (5 << 12)
    bench.do(session.upload("large", content))
    assert bench.do(session.run("import os\nos.path.getsize('large')")).output == str(len(content))
    assert bench.do(session.download("large")) == content
    for path in ("nothing", ".", ""):
        with pytest.raises(OSError, match=re.escape(f"{path}:" if path else "''")):
            bench.do(session.download(path))
    with pytest.raises(OSError, match="proc"):
        bench.do(session.upload("/proc/nothing", b"x"))
    bench.do(session.run("os.mkfifo('pipe')"))
    with pytest.raises(OSError, match="pipe"):
        bench.do(session.download("pipe"))


def test_environment_belongs_to_one_session_and_is_restored(bench: Bench) -> None:
    session = bench.do(bench.sandbox.open(0, environment={"GREETING": "hëllo"}))
    other = bench.open()
    look = "import os\nos.environ.get('GREETING')"
    assert bench.do(session.run(look)).output == "'hëllo'"
    assert bench.do(other.run(look)).output == "[no output]"
    bench.do(session.run("os._exit(1)"))
    assert bench.do(session.run(look)).output == "'hëllo'"
    bench.do(session.close())


@pytest.mark.parametrize("level", levels_here())
def test_session_killed_from_outside_is_restored(level: str) -> None:
    async def main() -> list[str]:
        async with Sandbox(isolation=level, cell_seconds=10, memory_mb=64, preload=[]) as sandbox:
            session = await sandbox.open(0)
            await session.run("x = 5")
            runner = session.runner
            assert runner is not None
            cell = asyncio.create_task(session.run("import time\ntime.sleep(9)"))
            await asyncio.sleep(0.3)
            runner.kill()
            return [(await cell).output, (await session.run("x")).output]

    crash, after = asyncio.run(main())
    assert crash == f"[crashed: the Python interpreter was killed by SIGKILL; {KEPT}"
    assert after == "5"
