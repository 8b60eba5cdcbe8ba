"""Changes that a cell makes to its process are undone for the next cell: one small case for each mechanism.

``corpus/`` has two thousand more cases."""

from __future__ import annotations

import pytest

from tests.sandbox.sandbox_bench import Bench


@pytest.mark.parametrize(
    ("cell", "after", "answer"),
    [
        ("import sys\ndel sys.stdout, sys.stderr, sys.stdin", "print(1)", "1"),
        ("import sys\nsys.stdout.write = lambda text: 0", "print(1)", "1"),
        ("import sys\nsys.stdout.buffer.write = len", "print(1)", "1"),
        ("import sys\nsys.stdout.reconfigure(newline='\\r')", "print('a')\nprint('b')", "a\nb"),
        ("import io, sys\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer)", "print(1)", "1"),
        ("import os, sys\nsys.stdout = os.fdopen(1, 'wb', 0)", "print(1)", "1"),
        (
            "import os\nf = open('f', 'w')\nf.write('a\\nb\\n')\nf.close()\nos.dup2(os.open('f', os.O_RDONLY), 0)\ninput()",
            "try: print(input())\nexcept EOFError: print('nothing')",
            "nothing",
        ),
        ("import os\nos.set_blocking(1, False)", "print('x' * 300_000)\nprint('end')", "end"),
        ("import os\nfor n in range(1024):\n    try: os.set_blocking(n, False)\n    except OSError: pass\nx = 1", "x", "1"),
        (
            "import os, signal\n_, end = os.pipe()\nos.set_blocking(end, False)\n_ = signal.set_wakeup_fd(end)",
            "signal.set_wakeup_fd(-1)",
            "-1",
        ),
        ("import linecache\nlinecache.cache = None", "1 // 0", "ZeroDivisionError: integer division or modulo by zero"),
        ("__builtins__ = {'print': print}", "len('ab')", "2"),
        ("import ast\nast.Expr = ast.Module = None", "x = 1\nx", "1"),
        ("import os\nos.chmod('.', 0)\nx = 1", "x", "1"),
        (
            "import asyncio, decimal\ndecimal.getcontext().prec = 3\nawait asyncio.sleep(0)",
            "decimal.Decimal(1) / 3",
            "Decimal('0.333')",
        ),
        (
            "import fcntl, os\nfcntl.fcntl(1, fcntl.F_SETFL, os.O_WRONLY | os.O_DIRECT)\nfor n in range(5): print('mine', n)",
            "print('next')",
            "next",
        ),
        (
            "import threading\nthreading.settrace(print)\nthreading.setprofile(print)",
            "threading.gettrace(), threading.getprofile()",
            "(None, None)",
        ),
        ("import sys\ntry: sys.addaudithook(print)\nexcept RuntimeError: x = 1", "x", "1"),
        ("import sys\nsys.setrecursionlimit(60)", "def f(n): return n and f(n - 1)\nf(500)", "0"),
    ],
)
def test_next_cell_starts_clean(hasty: Bench, cell: str, after: str, answer: str) -> None:
    first, second = hasty.cells(cell, after)
    assert first.status == "ok", first.output
    assert second.output.endswith(answer)


def test_output_in_packet_mode_is_complete(hasty: Bench) -> None:
    packets = "import fcntl, os\nfcntl.fcntl(1, fcntl.F_SETFL, os.O_WRONLY | os.O_DIRECT)\nfor n in range(5): print('mine', n)"
    assert [call.output for call in hasty.cells(packets, "1")] == ["\n".join(f"mine {n}" for n in range(5)), "1"]


def test_await_works_after_a_cell_closed_the_event_loops_descriptors(hasty: Bench) -> None:
    cells = ["import asyncio, os\nawait asyncio.sleep(0, 1)", "os.closerange(3, 200)", "await asyncio.sleep(0, 2)"]
    assert [call.output for call in hasty.cells(*cells)] == ["1", "[no output]", "2"]


def test_buffered_output_appears_in_the_cell_that_wrote_it(hasty: Bench) -> None:
    cells = ["import os, sys\nsys.stdout.reconfigure(line_buffering=False)\nprint('mine')\nos.close(1)", "1"]
    assert [call.output for call in hasty.cells(*cells)] == ["mine", "1"]


def test_blocked_signals_are_delivered_to_the_cell_that_blocked_them(hasty: Bench) -> None:
    handled, died, after = hasty.cells(
        "import os, signal\nsignal.signal(signal.SIGUSR1, lambda *_: print('came'))\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\nos.kill(os.getpid(), signal.SIGUSR1)",
        "x = 1\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\nos.kill(os.getpid(), signal.SIGTERM)",
        "signal.pthread_sigmask(signal.SIG_BLOCK, [])",
    )
    assert handled.output == "came"
    assert (died.status, after.output) == ("crashed", "set()")
    assert "was killed by SIGTERM" in died.output


def test_repeating_alarm_with_a_raising_handler_ends_with_its_cell(hasty: Bench) -> None:
    alarms = (
        "import signal\ndef handler(*_): raise TimeoutError\nsignal.signal(signal.SIGALRM, handler)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)\ntry: sum(range(10_000))\nexcept TimeoutError: pass"
    )
    for first, second in [hasty.cells(alarms, "1 + 1") for _ in range(5)]:
        assert first.status in ("ok", "error")
        assert second.output == "2"


@pytest.mark.parametrize(
    "interrupt",
    ["import os, signal\nos.kill(os.getpid(), signal.SIGINT)", "import signal\nsignal.raise_signal(signal.SIGINT)"],
)
def test_sigint_sent_by_a_cell_is_not_a_timeout(hasty: Bench, interrupt: str) -> None:
    caught, raised = hasty.cells(
        f"try:\n    {interrupt.replace(chr(10), chr(10) + '    ')}\nexcept KeyboardInterrupt: print('caught')", interrupt
    )
    assert (caught.status, caught.output) == ("ok", "caught")
    assert (raised.status, raised.output.splitlines()[-1]) == ("error", "KeyboardInterrupt")


@pytest.mark.parametrize("disposition", ["SIG_IGN", "SIG_DFL"])
def test_sigint_handler_of_a_cell_does_not_prevent_the_timeout(hasty: Bench, disposition: str) -> None:
    loop, after = hasty.cells(
        f"import signal\nx = 1\nsignal.signal(signal.SIGINT, signal.{disposition})\nwhile True: pass", "x"
    )
    assert loop.output.endswith("all variables are kept]")
    assert after.output == "1"


def test_loop_killed_by_the_interrupt_itself_is_a_timeout(hasty: Bench) -> None:
    every = "for n in signal.valid_signals():\n    try: signal.signal(n, signal.SIG_DFL)\n    except OSError: pass\n"
    (loop,) = hasty.cells(f"import signal\n{every}while True: pass")
    assert loop.status == "timeout"


@pytest.mark.parametrize(("end", "status"), [("sys.exit(3)", 3), ("raise SystemExit('no')", 1), ("1 // 0", 1), ("pass", 0)])
def test_forked_child_that_finishes_the_cell_exits_like_a_program(hasty: Bench, end: str, status: int) -> None:
    (call,) = hasty.cells(
        f"import os, sys\nchild = os.fork()\nif child == 0:\n    sys.stderr = open(os.devnull, 'w')\n    {end}\n"
        "else:\n    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    assert call.output.splitlines()[-1] == str(status)


def test_late_traceback_of_a_child_contains_no_mark(hasty: Bench) -> None:
    forked, after = hasty.cells(
        "import os, time\nreader, writer = os.pipe()\nif os.fork() == 0:\n    os.close(writer)\n"
        "    os.read(reader, 1)\n    1 // 0",
        "os.close(writer)\nos.wait()[0] > 0",
    )
    assert forked.output == "[no output]"
    assert after.output.startswith("Traceback")
    assert "\0" not in after.output


def test_unraisable_exception_shows_only_the_cells_frames(hasty: Bench) -> None:
    (call,) = hasty.cells("class Loud:\n    def __del__(self):\n        raise ValueError('at the end')\nLoud() and None")
    assert call.output.startswith("Exception ignored in: <function Loud.__del__")
    assert call.output.endswith("ValueError: at the end")


def test_printed_stack_shows_only_the_cells_frames(hasty: Bench) -> None:
    (call,) = hasty.cells("import traceback\ndef f():\n    traceback.print_stack()\nf()")
    assert [line.split(",")[0] for line in call.output.splitlines()[::2]] == ['  File "<cell 1>"'] * 2


def test_error_is_named_if_its_traceback_cannot_be_shown(hasty: Bench) -> None:
    (call,) = hasty.cells("import traceback\ntraceback.StackSummary = None\n[][0]")
    assert call.output == "IndexError: list index out of range (its traceback cannot be shown)"


def test_untouched_streams_are_not_replaced(hasty: Bench) -> None:
    calls = hasty.cells(*["import sys\nid(sys.stdout), id(sys.stdin)"] * 3)
    assert len({call.output for call in calls}) == 1
