"""State survives failures: timeouts, crashes, forged replies, a killed zygote."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time

import pytest

from aster_sandbox.protocol import Kind, Reply, pack_reply
from tests.sandbox.sandbox_bench import Bench

KEPT = "variables and imports of earlier cells are kept"


def test_loop_is_interrupted_and_its_state_is_kept(hasty: Bench) -> None:
    _, loop, after = hasty.cells("x = 1", "import time\nprint('before')\nx = 2\nwhile True: time.sleep(0.01)", "x")
    assert loop.status == "timeout"
    assert loop.output.startswith("before\n")
    assert loop.output.endswith("[timeout: the cell was interrupted after 0.5 s; all variables are kept]")
    assert after.output == "2"


def test_except_exception_does_not_catch_the_interrupt(hasty: Bench) -> None:
    loop, after = hasty.cells("n = 0\nwhile True:\n    try:\n        n += 1\n    except Exception:\n        pass", "n > 0")
    assert loop.status == "timeout"
    assert after.output == "True"


@pytest.mark.parametrize(
    "own", ["signal.signal(signal.SIGINT, signal.SIG_IGN)", "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})"]
)
def test_cell_that_ignores_or_blocks_sigint_is_interrupted(hasty: Bench, own: str) -> None:
    _, wait, after, again = hasty.cells("x = 1", f"import signal, time\nx = 2\n{own}\ntime.sleep(60)", "x", "time.sleep(60)")
    assert wait.output.endswith("[timeout: the cell was interrupted after 0.5 s; all variables are kept]")
    assert (after.output, again.status) == ("2", "timeout")


def test_await_is_interrupted(hasty: Bench) -> None:
    wait, after = hasty.cells("import asyncio\nawait asyncio.sleep(60)", "await asyncio.sleep(0, 'fine')")
    assert wait.status == "timeout"
    assert after.output == "'fine'"


@pytest.mark.parametrize(
    "code",
    [
        "import signal, time\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\ntime.sleep(60)",
        "import signal, time\nsignal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\ntime.sleep(60)",
        "sum(range(10**12))",
        "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    ],
    ids=["ignores signals", "blocks signals", "loops in C", "stops itself"],
)
def test_uninterruptible_cell_is_killed_and_earlier_state_is_restored(
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
        # A race: it finds its connection closed and exits, or it is killed first.
        ("import os\nos.closerange(0, 4096)", "was killed by|exited with status 1"),
        (
            "import os\nfor fd in range(3, 1024):\n    try: os.write(fd, b'\\0\\0\\0\\2{}')\n    except OSError: pass",
            "own connection",
        ),
        (
            # A complete reply, with a wrong nonce.
            f"import os\nfor fd in range(3, 1024):\n    try: os.write(fd, {pack_reply(bytes(16), Reply(Kind.OK))!r})\n"
            "    except OSError: pass",
            "own connection",
        ),
        (
            "import threading, os\nthreading.Timer(0.05, os._exit, [4]).start()\nimport time\ntime.sleep(5)",
            "exited with status 4",
        ),
    ],
)
def test_crash_keeps_the_state_of_earlier_cells(bench: Bench, code: str, how: str) -> None:
    *_, crash, after = bench.cells("import math\nx = [1]", "x.append(math.factorial(3))", "x.append(2)\n1 / 0", code, "x")
    assert crash.status == "crashed"
    assert re.search(how, crash.output)
    assert crash.output.endswith(f"; the {KEPT}]")
    assert after.output == "[1, 6, 2]"


def test_output_before_a_crash_is_shown(bench: Bench) -> None:
    (crash,) = bench.cells("import os\nprint('last words')\nos._exit(3)")
    assert crash.output.startswith("last words\n[crashed")


def test_recovery_restores_setup_files_and_random_numbers(bench: Bench) -> None:
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


def test_recovery_that_cannot_restore_anything_reports_lost_state(bench: Bench) -> None:
    session = bench.open()
    once = f"import os, time\nx = 1\nif time.time() > {time.time() + 0.5}: os._exit(5)"
    assert bench.do(session.run(once)).status == "ok"
    bench.do(asyncio.sleep(0.6))
    crash, after = (bench.do(session.run(code)) for code in ("os._exit(6)", "'x' in globals()"))
    assert crash.output.endswith("exited with status 6; the variables and imports of earlier cells are lost]")
    assert after.output == "False"


def test_recovery_names_the_cells_that_replay_cannot_repeat(hasty: Bench) -> None:
    thread = "import threading, time, os\nt = threading.Thread(target=threading.Event().wait, daemon=True); t.start()\nx = 1"
    *_, crash, after = hasty.cells(thread, "x = y = 2\ntime.sleep(60)", "y += 1", "os._exit(1)", "x")
    assert crash.output.endswith(f"{KEPT}, except for what these cells changed: 2 (from line 2 on)]")
    assert after.output == "2"


def test_cell_after_the_process_died_between_cells_finds_its_state(bench: Bench) -> None:
    session = bench.open()
    bench.do(
        session.run("import threading, os\nx = 6\nif 'again' not in globals(): threading.Timer(0.1, os._exit, [0]).start()")
    )
    bench.do(asyncio.sleep(0.5))
    assert bench.do(session.run("x")).output == "6"


def test_killed_zygote_is_replaced_and_its_sessions_recover(hasty: Bench) -> None:
    sessions = [hasty.open(seed) for seed in range(3)]
    for number, session in enumerate(sessions):
        assert hasty.do(session.run(f"import os\nx = {number}")).status == "ok"
    os.kill(hasty.zygote_pid(), signal.SIGKILL)
    calls = [hasty.do(session.run("x")) for session in sessions]
    assert [(call.status, call.output) for call in calls] == [("ok", "0"), ("ok", "1"), ("ok", "2")]


def test_cancelled_cell_does_not_affect_the_next(bench: Bench) -> None:
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


def test_broken_builtins_are_restored_for_the_next_cell(bench: Bench) -> None:
    spoil = "import builtins\nbuiltins.len = builtins.BaseException = None\ndel builtins.print\nbuiltins.mine = 5\nx = 2"
    *_, after, again = bench.cells("x = 1", spoil, "print(len('abc'), x, mine)", "x")
    assert (after.output, again.output) == ("3 2 5", "2")


@pytest.mark.parametrize(
    "spoil",
    [
        "import sys\ndel sys.modules\nx = 2",
        "import ctypes, resource\nctypes.CDLL(None).setrlimit(resource.RLIMIT_AS, (ctypes.c_ulong * 2)(2**28, 2**28))\nx = 2",
        "import os\nos.close(501)\nx = 2",
    ],
    ids=["modules", "hard limit", "output"],
)
def test_cell_that_breaks_its_process_loses_only_its_own_effects(bench: Bench, spoil: str) -> None:
    *_, after, again = bench.cells("x = 1", spoil, "x", "x")
    assert (after.status, again.output) == ("ok", "1")
    note = f"[the interpreter had to be replaced before this cell; the {KEPT}, except for what these cells changed: 2]"
    assert after.output == f"{note}\n1"


def test_resource_limits_set_by_a_cell_end_with_it(bench: Bench) -> None:
    kinds = ["AS", "CPU", "DATA", "FSIZE", "NOFILE", "NPROC", "STACK"]
    set_them = "\n".join(f"resource.setrlimit(resource.RLIMIT_{kind}, (2, 2))" for kind in kinds)
    look = f"[resource.getrlimit(getattr(resource, 'RLIMIT_' + kind)) for kind in {kinds}]"
    before, _, after, kept = bench.cells(f"import resource\nx = 5\n{look}", set_them, look, "x, len(bytearray(1 << 20))")
    assert after.output == before.output
    assert kept.output == f"(5, {1 << 20})"


def test_half_a_forged_reply_has_no_effect_on_later_cells(hasty: Bench) -> None:
    forge = "x = 2\nimport os, time\nfor fd in (500, 501): os.write(fd, b'12345')\ntime.sleep(60)"
    _, crash, after, again = hasty.cells("x = 1", forge, "x", "x")
    assert crash.output.endswith(f"wrote to the sandbox's own connection; the {KEPT}]")
    assert (after.output, again.output) == ("1", "1")


def test_cell_that_ended_while_it_was_cancelled_is_rolled_back(bench: Bench) -> None:
    async def main() -> list[str]:
        session = await bench.sandbox.open(1)
        await session.run("x = 8")
        cell = asyncio.create_task(session.run("x = 9"))
        for _ in range(3):
            await asyncio.sleep(0)  # send it
        time.sleep(0.5)  # block the loop until the cell has ended
        cell.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cell
        answers = [(await session.run("x")).output for _ in range(2)]
        await session.close()
        return answers

    assert bench.do(main()) == ["8", "8"]


FORGE = """
import os, sys, time
frame = sys._getframe()
while frame is not None:
    nonce = getattr(frame.f_locals.get("self"), "_nonce", None)
    if nonce:
        break
    frame = frame.f_back
from aster_sandbox.protocol import Kind, Reply, pack_reply
x = 2
_ = os.write(500, pack_reply(nonce, Reply(Kind.OK)))
"""
"""A cell that finds the nonce of its own request and forges the reply (see ``protocol``)."""


@pytest.mark.parametrize(
    "then",
    ["while True: pass", "while True:\n    try: time.sleep(60)\n    except BaseException: pass", "sum(range(10**13))"],
    ids=["loop", "stubborn", "loop in C"],
)
def test_cell_that_forged_its_reply_and_still_runs_is_found_out_quickly(bench: Bench, then: str) -> None:
    """It must take less than a cell's time limit (20 s)."""
    session = bench.open()
    bench.do(session.run("x = 1"))
    assert bench.do(session.run(FORGE + then)).status == "ok"
    began = time.monotonic()
    after = bench.do(session.run("x"))
    assert after.output.startswith(f"[the interpreter had to be replaced before this cell; the {KEPT}, except for what these")
    assert after.output.endswith("cells changed: 2]\n1")
    assert time.monotonic() - began < bench.sandbox.settings.cell_seconds / 2
    assert bench.do(session.run("x")).output == "1"


def test_cell_that_replied_twice_is_replaced(bench: Bench) -> None:
    twice = FORGE.replace("x = 2", "x = 2\n_ = os.write(500, pack_reply(nonce, Reply(Kind.OK)))")
    session = bench.open()
    bench.do(session.run("x = 1"))
    bench.do(session.run(twice))
    after = bench.do(session.run("x"))
    assert (after.status, after.output.splitlines()[-1]) == ("ok", "1")
    assert after.output.startswith("[the interpreter had to be replaced before this cell")
