"""Nothing lost: timeouts, crashes, forgeries, a dying zygote."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time

import pytest

from aster_sandbox import Session
from aster_sandbox.protocol import Reply, pack_reply
from tests.sandbox.sandbox_bench import Bench

KEPT = "variables and imports of earlier cells are kept"


def test_a_loop_is_interrupted_and_its_state_is_kept(hasty: Bench) -> None:
    _, loop, after = hasty.cells("x = 1", "import time\nprint('before')\nx = 2\nwhile True: time.sleep(0.01)", "x")
    assert loop.status == "timeout"
    assert loop.output.startswith("before\n")
    assert loop.output.endswith("[timeout: the cell was interrupted after 0.5 s; all variables are kept]")
    assert after.output == "2"


def test_except_exception_does_not_swallow_the_interrupt(hasty: Bench) -> None:
    loop, after = hasty.cells("n = 0\nwhile True:\n    try:\n        n += 1\n    except Exception:\n        pass", "n > 0")
    assert loop.status == "timeout"
    assert after.output == "True"


def test_an_await_is_interrupted(hasty: Bench) -> None:
    wait, after = hasty.cells("import asyncio\nawait asyncio.sleep(60)", "await asyncio.sleep(0, 'fine')")
    assert wait.status == "timeout"
    assert after.output == "'fine'"


@pytest.mark.parametrize(
    "code",
    [
        "import time\nx = 9\nwhile True:\n    try:\n        time.sleep(60)\n    except BaseException:\n        pass",
        "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(60)",
        "sum(range(10**12))",
        "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    ],
    ids=["swallows interrupts", "ignores signals", "loops in C", "stops itself"],
)
def test_a_cell_that_will_not_stop_is_killed_and_the_earlier_state_rebuilt(
    hasty: Bench, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aster_sandbox.runner.GRACE_SECONDS", 0.2)
    _, stuck, after = hasty.cells("x = 1", code, "x")
    assert stuck.status == "timeout"
    assert stuck.output.endswith(f"so it was killed; the {KEPT}]")
    assert (after.status, after.output) == ("ok", "1")


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("import os\nprint('last words')\nos._exit(3)", "exited with status 3"),
        ("import ctypes\nctypes.string_at(0)", "was killed by SIGSEGV"),
        ("import os\nos.kill(os.getpid(), 9)", "was killed by SIGKILL"),
        ("import os\nos.kill(os.getpid(), 40)", "was killed by signal 40"),
        # It finds its connection gone and exits, or is killed first: a race, and either is true.
        ("import os\nos.closerange(0, 4096)", "was killed by|exited with status 1"),
        (
            "import os\nfor fd in range(3, 1024):\n    try: os.write(fd, b'\\0\\0\\0\\2{}')\n    except OSError: pass",
            "own connection",
        ),
        (
            # A whole reply, but for the nonce.
            f"import os\nfor fd in range(3, 1024):\n    try: os.write(fd, {pack_reply(bytes(16), Reply(True))!r})\n"
            "    except OSError: pass",
            "own connection",
        ),
        (
            "import threading, os\nthreading.Timer(0.05, os._exit, [4]).start()\nimport time\ntime.sleep(5)",
            "exited with status 4",
        ),
    ],
)
def test_a_dead_interpreter_costs_no_earlier_state(bench: Bench, code: str, how: str) -> None:
    *_, crash, after = bench.cells("import math\nx = [1]", "x.append(math.factorial(3))", "x.append(2)\n1 / 0", code, "x")
    assert crash.status == "crashed"
    assert re.search(how, crash.output)
    assert crash.output.endswith(f"; the {KEPT}]")
    assert after.output == "[1, 6, 2]"


def test_output_before_a_crash_is_shown(bench: Bench) -> None:
    (crash,) = bench.cells("import os\nprint('last words')\nos._exit(3)")
    assert crash.output.startswith("last words\n[crashed")


def test_recovery_brings_back_setup_files_and_random_numbers(bench: Bench) -> None:
    cells = [
        "import random, os\na = random.random()\nopen('f', 'w').write('text')",
        "ask()",
        "random.random(), open('f').read(), ask()",
    ]
    straight = bench.cells(*cells, seed=5, setup="n = 0\ndef ask():\n    global n\n    n += 1\n    return n")
    broken = bench.cells(
        *cells[:2],
        "random.random(); os._exit(1)",
        cells[2],
        seed=5,
        setup="n = 0\ndef ask():\n    global n\n    n += 1\n    return n",
    )
    assert broken[-1].output == straight[-1].output
    assert straight[-1].output.endswith("2)")


def test_a_recovery_that_cannot_work_says_that_state_is_lost(bench: Bench) -> None:
    once = "import os\nx = 1\nif os.path.exists('../mark'): os._exit(5)\nopen('../mark', 'w').close()"  # not rolled back there
    _, crash, after = bench.cells(once, "os._exit(6)", "'x' in globals()")
    assert crash.output.endswith("exited with status 6; the variables and imports of earlier cells are lost]")
    assert after.output == "False"


def test_cells_that_replay_cannot_repeat_are_named(hasty: Bench) -> None:
    thread = "import threading, time, os\nt = threading.Thread(target=threading.Event().wait, daemon=True); t.start()\nx = 1"
    *_, crash, after = hasty.cells(thread, "x = y = 2\ntime.sleep(60)", "y += 1", "os._exit(1)", "x")
    assert crash.output.endswith(f"{KEPT}, except for what these cells changed: 2, 3]")
    assert after.output == "1"


def test_a_cell_after_a_silent_death_finds_its_state(bench: Bench) -> None:
    session = bench.open()
    bench.do(
        session.run("import threading, os\nx = 6\nif 'again' not in globals(): threading.Timer(0.1, os._exit, [0]).start()")
    )
    bench.do(asyncio.sleep(0.5))
    assert bench.do(session.run("x")).output == "6"


def test_a_killed_zygote_is_replaced_and_its_sessions_recover(hasty: Bench) -> None:
    sessions = [hasty.open(seed) for seed in range(3)]
    for number, session in enumerate(sessions):
        assert hasty.do(session.run(f"import os\nx = {number}")).status == "ok"
    os.kill(hasty.zygote_pid(), signal.SIGKILL)
    calls = [hasty.do(session.run("x")) for session in sessions]
    assert [(call.status, call.output) for call in calls] == [("ok", "0"), ("ok", "1"), ("ok", "2")]


def test_a_cancelled_cell_does_not_disturb_the_next(bench: Bench) -> None:
    session = bench.open()

    async def cancel() -> None:
        await session.run("x = 8")
        cell = asyncio.create_task(session.run("import time\nx = 9\nprint('noise')\ntime.sleep(60)"))
        await asyncio.sleep(0.2)
        cell.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cell

    bench.do(cancel())
    assert bench.do(session.run("x")).output == "8"


def test_a_cell_whose_process_cannot_take_the_next_costs_its_own_effects_alone(bench: Bench) -> None:
    spoil = "import builtins\nbuiltins.len = builtins.BaseException = None\nx = 2"
    *_, after, again = bench.cells("x = 1", spoil, "x", "x")
    assert (after.status, after.output.splitlines()[-1], again.output) == ("ok", "1", "1")


def test_a_cell_that_forged_half_a_reply_leaves_nothing(hasty: Bench) -> None:
    forge = "x = 2\nimport os, time\nfor fd in (500, 501): os.write(fd, b'12345')\ntime.sleep(60)"
    _, crash, after, again = hasty.cells("x = 1", forge, "x", "x")
    assert crash.output.endswith(f"wrote to the sandbox's own connection; the {KEPT}]")
    assert (after.output, again.output) == ("1", "1")


async def cancel_as_it_ends(session: Session, processor_seconds: float) -> None:
    """Run a cell that sets ``x`` to 9, and cancel it when it has ended and a savepoint was made of it."""
    code = (
        f"import time\nuntil = time.process_time() + {processor_seconds}\nwhile time.process_time() < until:\n    pass\nx = 9"
    )
    cell = asyncio.create_task(session.run(code))
    for _ in range(3):
        await asyncio.sleep(0)  # it is sent
    time.sleep(2)  # meanwhile it ends
    cell.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cell


def test_a_reply_that_nobody_took_costs_no_savepoint(hasty: Bench) -> None:
    """Only a savepoint brings an interrupted cell back."""
    session = hasty.open()
    assert hasty.do(session.run("x = 1\nimport time\ntime.sleep(60)")).status == "timeout"
    for _ in range(2):
        hasty.do(cancel_as_it_ends(session, 0.3))
        assert [hasty.do(session.run("x")).output for _ in range(2)] == ["1", "1"]


def test_a_cell_that_was_cancelled_as_it_ended_leaves_nothing_in_a_savepoint(bench: Bench) -> None:
    session = bench.open()
    bench.do(session.run("x = 8"))
    bench.do(cancel_as_it_ends(session, 0.4))
    assert [bench.do(session.run("x")).output for _ in range(2)] == ["8", "8"]
