"""How cells behave: state, echo, output, errors, determinism."""

from __future__ import annotations

import json
import os

import pytest

from aster_sandbox import CellStatus, SandboxFailure
from tests.sandbox.sandbox_bench import Bench


def outputs(bench: Bench, *codes: str) -> list[str]:
    calls = bench.cells(*codes)
    assert [call.status for call in calls] == [CellStatus.OK] * len(codes), calls
    return [call.output for call in calls]


def test_variables_functions_and_imports_persist(bench: Bench) -> None:
    assert outputs(bench, "import math\nx = 20", "def f(n):\n    return math.gcd(n, x)", "f(30)")[-1] == "10"


def test_the_last_expression_is_echoed_and_evaluated_once(bench: Bench) -> None:
    assert outputs(bench, "L = [1, 2, 3]\nL.pop()", "L") == ["3", "[1, 2]"]
    assert outputs(bench, "'a'\nfor i in range(2):\n    i\nprint(i)") == ["1"]  # expressions before the last are silent


def test_no_output_says_so(bench: Bench) -> None:
    assert outputs(bench, "x = 1", "None", "", "# nothing", "print()") == ["[no output]"] * 5


def test_both_streams_the_c_library_and_subprocesses_are_captured_in_order(bench: Bench) -> None:
    code = """
import ctypes, os, subprocess, sys
print("one")
print("two", file=sys.stderr)
subprocess.run(["echo", "three"])
print("four", end="")
print("", file=sys.stderr)
os.write(2, b"five\\n")
ctypes.CDLL(None).puts(b"six")
ctypes.CDLL(None).printf(b"sev")
os.write(1, b"en\\n")
"eight"
"""
    assert outputs(bench, code) == ["one\ntwo\nthree\nfour\nfive\nsix\nseven\n'eight'"]


def test_long_output_keeps_its_head_and_tail(bench: Bench) -> None:
    (text,) = outputs(bench, "print('a' * 300 + 'é' * 1000 + 'z' * 100)")
    assert text == "a" * 200 + "\n[... 1001 characters cut ...]\n" + "é" * 99 + "z" * 100
    assert outputs(bench, "print('b' * 399)") == ["b" * 399]


def test_flood_of_output_is_cut(bench: Bench) -> None:
    flood, after = outputs(bench, "x = 5\nfor i in range(200_000):\n    print('line', i)", "x")
    assert flood.startswith("line 0\nline 1\n")
    assert flood.endswith("line 199999")
    assert len(flood) < 450
    assert after == "5"


def test_traceback_shows_the_cells_frames_and_the_innermost_library_frame(bench: Bench) -> None:
    calls = bench.cells(
        "import json\nkept = 1\ndef load(text):\n    return json.loads(text)",
        "load('{]')",
        "kept",
        "1 +",
        "raise ValueError('x' * 10)",
    )
    assert [call.status for call in calls] == ["ok", "error", "ok", "error", "error"]
    lines = calls[1].output.splitlines()
    assert [line for line in lines if line.startswith("  File")][:2] == [
        '  File "<cell 2>", line 1, in <module>',
        '  File "<cell 1>", line 4, in load',
    ]
    assert "    return json.loads(text)" in lines
    assert sum(line.startswith("  File") for line in lines) == 3
    assert "json/decoder.py" in lines[-3]
    assert lines[-1].startswith("json.decoder.JSONDecodeError: ")
    assert calls[2].output == "1"
    assert calls[3].output.splitlines() == ['  File "<cell 4>", line 1', "    1 +", "       ^", "SyntaxError: invalid syntax"]
    assert calls[4].output.endswith("ValueError: xxxxxxxxxx")


def test_chained_error_and_deep_recursion_stay_short(bench: Bench) -> None:
    chained, recursion = bench.cells(
        "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise KeyError('k') from e",
        "def f(n):\n    return g(n)\ndef g(n):\n    return f(n)\nf(1)",
    )
    assert "ZeroDivisionError: division by zero\n\nThe above exception was the direct cause" in chained.output
    assert recursion.status == "error"
    assert "RecursionError" in recursion.output[-100:]


def test_what_ran_before_an_error_is_kept(bench: Bench) -> None:
    assert bench.cells("x = 1\nx = 2\n1 / 0\nx = 3", "x")[1].output == "2"


def test_syntax_error_runs_nothing(bench: Bench) -> None:
    assert bench.cells("x = 1\nreturn x", "'x' in globals()")[1].output == "False"


def test_top_level_await_shares_one_loop(bench: Bench) -> None:
    cells = (
        "import asyncio\nq = asyncio.Queue()\nt = asyncio.create_task(q.get())\nawait asyncio.sleep(0)",
        "await q.put(7)\nawait t",
        "async def f():\n    return 8\nasyncio.run(f())",
        "await f()",
    )
    assert outputs(bench, *cells)[1:] == ["7", "8", "8"]


def test_input_meets_an_empty_stdin_and_exit_only_ends_the_cell(bench: Bench) -> None:
    calls = bench.cells("x = 4", "input('? ')", "x\nexit()\nx = 5", "import sys\nsys.exit('bad')", "x", "input()")
    assert [call.status for call in calls] == ["ok", "error", "ok", "error", "ok", "error"]
    assert calls[1].output.endswith("EOFError: EOF when reading a line")
    assert calls[3].output == "bad"
    assert calls[4].output == "4"
    assert calls[5].output.endswith("EOFError: EOF when reading a line")


def test_the_same_seed_and_cells_give_the_same_outputs(bench: Bench) -> None:
    cells = (
        "import random, numpy as np\nfrom sympy.core.random import randint",
        "random.random()",
        "np.random.rand()",
        "randint(0, 10**9)",
        "random.sample(range(100), 5), np.random.permutation(5), {'a', 'b', 'c'}, hash('word')",
    )
    first, again, other = (bench.cells(*cells, seed=seed) for seed in (2**62 + 1, 2**62 + 1, 2**62 + 2))
    assert [call.output for call in first] == [call.output for call in again]
    for call, call_of_other in zip(first[1:4], other[1:4], strict=True):
        assert call.output != call_of_other.output, "every generator follows the seed"


def test_setup_runs_first_and_is_hidden(bench: Bench) -> None:
    setup = "def ask(x):\n    if x < 0: raise ValueError('negative')\n    return 2 * x + 1\nprint('loud')"
    value, error = bench.cells("ask(4)", "ask(-1)", setup=setup)
    assert value.output == "9"
    assert error.output.endswith("ValueError: negative")
    assert "raise ValueError" not in error.output
    with pytest.raises(SandboxFailure, match="ZeroDivisionError"):
        bench.open(setup="1 / 0")


def test_functions_of_cells_can_be_pickled_and_used_in_processes(bench: Bench) -> None:
    cells = (
        "import pickle, multiprocessing\ndef double(x):\n    return 2 * x\npickle.loads(pickle.dumps(double))(4)",
        "with multiprocessing.Pool(2) as pool:\n    out = pool.map(double, [1, 2, 3])\nout",
        "import os\npid = os.fork()\nprint('child' if pid == 0 else 'parent') if pid == 0 else os.waitpid(pid, 0) and None",
        "1 + 1",
    )
    assert outputs(bench, *cells) == ["8", "[2, 4, 6]", "child", "2"]


def test_memory_bomb_is_a_memory_error_and_keeps_state(bench: Bench) -> None:
    calls = bench.cells(
        "kept = 3", "x = bytearray(10**9)", "hoard = []\nwhile True:\n    hoard.append(bytearray(1 << 20))", "kept"
    )
    assert [call.status for call in calls] == ["ok", "error", "error", "ok"]
    assert calls[1].output.endswith("MemoryError")
    assert calls[2].output.endswith("MemoryError")
    assert calls[3].output == "3"


def test_streams_are_restored_for_the_next_cell(bench: Bench) -> None:
    cells = (
        "import os, sys, io\nsys.stdout = sys.stderr = io.StringIO()\nprint('lost')",
        "print('seen')\nsys.stdout.close()",
        "print('seen again')\nos.closerange(0, 256)",
        "print('and again')",
    )
    assert [call.output for call in bench.cells(*cells)][1:] == ["seen", "seen again", "and again"]


def test_alarm_ends_with_its_cell(bench: Bench) -> None:
    cells = (
        "import signal, time\ndef ring(*a):\n    raise TimeoutError('rang')\nold = signal.signal(signal.SIGALRM, ring)\n"
        "try:\n    _ = signal.setitimer(signal.ITIMER_REAL, 0.05)\n    time.sleep(5)\nexcept TimeoutError as e:\n    print(e)\n"
        "_ = signal.setitimer(signal.ITIMER_REAL, 0.05)",
        "time.sleep(0.2)\n'quiet'",
    )
    assert outputs(bench, *cells) == ["rang", "'quiet'"]


def test_zygote_has_one_thread(bench: Bench) -> None:
    assert len(os.listdir(f"/proc/{bench.zygote_pid()}/task")) == 1  # a fork copies only the calling thread


def test_supervisor_environment_is_not_visible_in_cells(bench: Bench) -> None:
    names = outputs(bench, "import os\nsorted(n for n in os.environ if 'PYTEST' in n)")
    assert names == ["[]"]


def test_unusual_code_is_only_an_error(bench: Bench) -> None:
    calls = bench.cells("x = '\ud800'", "\0", "(" * 1000, "class E(Exception):\n    def __str__(self): 1 / 0\nraise E", "5")
    assert [call.status for call in calls] == ["error", "error", "error", "error", "ok"]


def test_import_error_is_shown_without_the_hosts_folders(bench: Bench) -> None:
    wrong, chained = bench.cells("from json import foo", "try: 1 // 0\nexcept ZeroDivisionError: from sympy import Foo")
    assert wrong.output.endswith(
        "ImportError: cannot import name 'foo' from 'json' (" + "/".join(json.__file__.split("/")[-3:]) + ")"
    )
    assert chained.output.endswith("ImportError: cannot import name 'Foo' from 'sympy' (sympy/__init__.py)")
