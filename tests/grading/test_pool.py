"""The worker processes of Math-Verify: time-outs, crashes, death of the parent, forks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aster.grading import pool
from aster.grading.worker import compare
from tests.processes import running, wait_until

TOWER = "9^{9^{9^9}}"
EQUAL = (True, "math-verify: equal")


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        # Math-Verify alone would call these equal.
        ("3x-y+13=0", "3x+4y+14=0"),
        ("3x+4y=0", "0"),
        (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}"),
        (r"x = \frac{1}{2^{99}}", r"\frac{1}{2^{98}}"),
        (r"4\sqrt(2)", "4"),
        (r"\pm 2021", "2021"),
    ],
)
def test_known_errors_of_math_verify_are_corrected(prediction: str, answer: str) -> None:
    assert not compare(prediction, answer)[0]


def test_after_a_time_out_the_next_comparison_works() -> None:
    assert pool.ask(TOWER, "5", 0.5) == (False, "math-verify: timed out after 0.5 s")
    assert pool.ask("1/2", "0.5", 30) == EQUAL


def test_a_worker_killed_from_outside_is_replaced() -> None:
    assert pool.ask("1/2", "0.5", 30) == EQUAL
    for process in pool.worker_processes():
        os.kill(process, signal.SIGKILL)
    assert pool.ask("1/2", "0.5", 30) == EQUAL


def test_an_answer_that_crashes_the_worker_twice_is_wrong() -> None:
    stop = threading.Event()

    def kill_every_worker() -> None:
        while not stop.wait(0.02):
            for process in pool.worker_processes():
                # The pool may have reaped the worker in the meantime.
                if os.path.exists(f"/proc/{process}"):
                    os.kill(process, signal.SIGKILL)

    killer = threading.Thread(target=kill_every_worker)
    killer.start()
    try:
        verdict = pool.ask(TOWER, "5", 30)
    finally:
        stop.set()
        killer.join()
    assert verdict == (False, "math-verify: the worker crashed (signal 9)")


def test_each_thread_gets_its_own_verdict() -> None:
    questions = [(f"{n}/7", rf"\frac{{{n + n % 2}}}{{7}}") for n in range(1, 25)]
    with ThreadPoolExecutor(6) as threads:
        verdicts = list(threads.map(lambda question: pool.ask(question[0], question[1], 60), questions))
    assert [verdict[0] for verdict in verdicts] == [n % 2 == 0 for n in range(1, 25)]


PARENT = """
import sys, threading, time
from aster.grading import pool
pool.ask("1/2", "0.5", 30)
if sys.argv[1] == "busy":
    threading.Thread(target=pool.ask, args=("9^{9^{9^9}}", "5", 4.0), daemon=True).start()
    time.sleep(0.5)
print(*pool.worker_processes(), flush=True)
if sys.argv[2] == "killed":
    time.sleep(600)
"""


@pytest.mark.parametrize(("work", "end"), [("idle", "normal"), ("idle", "killed"), ("busy", "normal"), ("busy", "killed")])
def test_workers_end_when_their_parent_ends(work: str, end: str) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, work, end], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [int(word) for word in parent.stdout.readline().split()]
        if end == "killed":
            parent.kill()
    assert len(workers) == 1
    wait_until(lambda: not running(workers[0]))


def test_a_forked_child_starts_its_own_worker() -> None:
    assert pool.ask("1/2", "0.5", 30) == EQUAL
    mine = set(pool.worker_processes())
    child = os.fork()
    if child == 0:
        right = not pool.worker_processes() and pool.ask("1/3", r"\frac{1}{3}", 30) == EQUAL
        pool.close()
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert mine == set(pool.worker_processes())
    assert pool.ask("1/2", "0.5", 30) == EQUAL


def test_a_broken_installation_is_an_error_and_not_a_wrong_answer(tmp_path: Path) -> None:
    (tmp_path / "math_verify.py").write_text("raise ImportError('no math-verify here')")
    code = """
from aster.errors import UserError
from aster.grading import verify
assert verify("5", "5").correct
try:
    verify(r"\\int_0^1 x dx", "0.5")
except UserError as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
    )
    assert "ImportError: no math-verify here" in run.stdout, run.stderr
