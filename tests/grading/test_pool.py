"""The worker processes in which Math-Verify runs: late, killed, orphaned, forked. Nothing a policy writes can stop them."""

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
        # Known failures of Math-Verify, which it would call equal.
        ("3x-y+13=0", "3x+4y+14=0"),
        ("3x+4y=0", "0"),
        (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}"),
        (r"x = \frac{1}{2^{99}}", r"\frac{1}{2^{98}}"),
        (r"4\sqrt(2)", "4"),
        (r"\pm 2021", "2021"),
    ],
)
def test_what_math_verify_gets_wrong_is_corrected(prediction: str, answer: str) -> None:
    assert not compare(prediction, answer)[0]


def test_a_power_tower_is_late_and_the_next_question_is_answered() -> None:
    assert pool.ask(TOWER, "5", 0.5) == (False, "math-verify: timed out after 0.5 s")
    assert pool.ask("1/2", "0.5", 30) == EQUAL


def test_a_worker_killed_from_outside_is_replaced() -> None:
    assert pool.ask("1/2", "0.5", 30) == EQUAL
    for process in pool.worker_processes():
        os.kill(process, signal.SIGKILL)
    assert pool.ask("1/2", "0.5", 30) == EQUAL


def test_a_worker_that_crashes_on_the_question_is_a_wrong_answer() -> None:
    stop = threading.Event()

    def kill_every_worker() -> None:
        while not stop.wait(0.02):
            for process in pool.worker_processes():
                # A worker that the pool has just reaped is gone already.
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


def test_several_threads_get_their_own_answers() -> None:
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
def test_workers_end_with_their_parent(work: str, end: str) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, work, end], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [int(word) for word in parent.stdout.readline().split()]
        if end == "killed":
            parent.kill()
    assert len(workers) == 1
    wait_until(lambda: not running(workers[0]))


def test_a_forked_child_asks_a_worker_of_its_own() -> None:
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


def test_a_broken_installation_is_not_a_wrong_answer(tmp_path: Path) -> None:
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
    assert "did not start (ImportError: no math-verify here)" in run.stdout, run.stderr
