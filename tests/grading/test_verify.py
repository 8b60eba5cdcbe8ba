"""The verifier: what counts as the same answer, and that nothing a policy writes can stop it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aster.grading import Verdict, fast_verdict, pool, verify

TOWER = "9^{9^{9^9}}"


@pytest.mark.parametrize(
    ("prediction", "answer", "verdict"),
    [
        (None, "5", Verdict(False, "no answer")),
        ("", "5", Verdict(False, "empty answer")),
        (" $ $ ", "5", Verdict(False, "empty answer")),
        ("025", "25", Verdict(True, "integer")),
        ("25", "025", Verdict(True, "integer")),
        ("+5", "5", Verdict(True, "integer")),
        ("-0", "0", Verdict(True, "integer")),
        ("\u22123", "-3", Verdict(True, "integer")),
        (" $5$. ", "5", Verdict(True, "integer")),
        (r"\(5\)", "5", Verdict(True, "integer")),
        ("1,234,567", "1234567", Verdict(True, "integer")),
        ("12{,}345", "12345", Verdict(True, "integer")),
        (r"12\,345", "12345", Verdict(True, "integer")),
        ("5.0", "5", Verdict(True, "integer")),
        ("0.50", ".5", Verdict(True, "decimal")),
        (r"\text{7}", "7", Verdict(True, "integer")),
        ("9" * 6000, "9" * 6000, Verdict(True, "integer")),
        ("70", "71", Verdict(False, "integer")),
        ("5", "-5", Verdict(False, "integer")),
        ("5.5", "5", Verdict(False, "decimal")),
        ("0.0000001", "0", Verdict(False, "decimal")),
        (r"\dfrac{1}{2}", r"\frac{1}{2}", Verdict(True, "same text")),
        (r"\left( 1, 2 \right)", "(1,2)", Verdict(True, "same text")),
        (r"\text{Yes}", "Yes", Verdict(True, "same text")),
        (r"2 \pi  r", r"2\pi r", Verdict(True, "same text")),
    ],
)
def test_decided_without_a_worker(prediction: str | None, answer: str, verdict: Verdict) -> None:
    assert fast_verdict(prediction, answer) == verdict
    assert verify(prediction, answer) == verdict


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        ("1/2", "0.5"),
        ("x=5", "5"),
        ("5.0000001", "5"),
        ("1 2", "12"),
        ("1,23", "123"),
        ("12,3456", "123456"),
        ("0.333...", "0.333"),
        ("٣", "3"),
    ],
)
def test_left_to_the_worker(prediction: str, answer: str) -> None:
    assert fast_verdict(prediction, answer) is None


@settings(max_examples=200, deadline=None)
@given(st.integers(), st.integers(), st.integers(0, 3))
def test_integers_agree_with_arithmetic(first: int, second: int, zeros: int) -> None:
    sign, digits = ("-", str(first)[1:]) if first < 0 else ("", str(first))
    written = f"${sign}{'0' * zeros}{digits}$ ."
    assert fast_verdict(written, str(second)) == Verdict(first == second, "integer")
    assert fast_verdict(f"{first:,}", str(first)) == Verdict(True, "integer")


@settings(max_examples=200, deadline=None)
@given(st.decimals(-1000, 1000, places=4), st.decimals(-1000, 1000, places=4))
def test_decimals_agree_with_arithmetic(first: Decimal, second: Decimal) -> None:
    verdict = fast_verdict(f"{first:f}", f"{second:f}")
    assert verdict is None or verdict.correct == (first == second)
    assert first != second or verdict is not None


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=40), st.text(alphabet="\\({[$.,-+0123}]) ", max_size=20)))
def test_any_text_equals_itself_or_is_empty(text: str) -> None:
    verdict = fast_verdict(text, text)
    assert verdict is not None
    assert verdict.correct or verdict.reason == "empty answer"


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        ("1/2", "0.5"),
        ("x = 5", "5"),
        ("m+n=70", "70"),
        ("f(x)=0", "0"),
        ("0.333333", r"\frac{1}{3}"),
        (r"12 \text{ cm}", "12"),
        (r"10\%", "10"),
        ("9*sqrt(23)/23", r"\frac{9 \sqrt{23}}{23}"),
        (r"4\sqrt(2)", r"4\sqrt{2}"),
        ("1-2/pi", r"1-\frac{2}{\pi}"),
        ("2**10", "1024"),
        (r"2^{26} 26!/2", r"2^{25} \cdot 26!"),
        (r"\frac{-1-\sqrt{17}}{2}, \frac{-1+\sqrt{17}}{2}", r"\frac{-1+\sqrt{17}}{2}, \frac{-1-\sqrt{17}}{2}"),
        (r"\frac{-1\pm\sqrt{17}}{2}", r"\frac{-1+\sqrt{17}}{2}, \frac{-1-\sqrt{17}}{2}"),
        ("2+3i", "3i+2"),
    ],
)
def test_math_verify_finds_equal(prediction: str, answer: str) -> None:
    assert verify(prediction, answer, seconds=30) == Verdict(True, "math-verify: equal")


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        # Known failures of Math-Verify, which it would call equal.
        ("3x-y+13=0", "3x+4y+14=0"),
        ("3x+4y=0", "0"),
        (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}"),
        (r"\frac{1}{2004!}", r"\frac{1}{2006!}"),
        (r"x = \frac{1}{2^{99}}", r"\frac{1}{2^{98}}"),
        (r"4\sqrt(2)", "4"),
        (r"\pm 2021", "2021"),
        # Ordinary wrong answers.
        ("0.33", r"\frac{1}{3}"),
        ("(2,1)", "(1,2)"),
        ("70, 71", "70"),
        (r"\text{Monday}", "Tuesday"),
        (r"2^{25} \cdot 26! + 1", r"2^{25} \cdot 26!"),
        ("{", "5"),
        ("\x00\ud800", "5"),
    ],
)
def test_math_verify_finds_unequal(prediction: str, answer: str) -> None:
    verdict = verify(prediction, answer, seconds=30)
    assert not verdict.correct
    assert verdict.reason.startswith("math-verify: ")
    assert "timed out" not in verdict.reason
    assert "crashed" not in verdict.reason


def test_a_power_tower_is_late_and_the_next_question_is_answered() -> None:
    assert verify(TOWER, "5", seconds=0.5) == Verdict(False, "math-verify: timed out after 0.5 s")
    assert verify("1/2", "0.5", seconds=30).correct


def test_noise_in_the_box_is_not_parsed() -> None:
    verdict = verify("((" * 5000, "5")
    assert not verdict.correct
    assert verdict.reason.startswith("too long: 10000 characters")


def test_a_worker_killed_from_outside_is_replaced() -> None:
    assert verify("1/2", "0.5", seconds=30).correct
    for process in pool.worker_processes():
        os.kill(process, signal.SIGKILL)
    assert verify("1/2", "0.5", seconds=30) == Verdict(True, "math-verify: equal")


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
        verdict = verify(TOWER, "5", seconds=30)
    finally:
        stop.set()
        killer.join()
    assert verdict == Verdict(False, "math-verify: the worker crashed (signal 9)")


def test_several_threads_get_their_own_answers() -> None:
    questions = [(f"{n}/7", rf"\frac{{{n + n % 2}}}{{7}}") for n in range(1, 25)]
    with ThreadPoolExecutor(6) as threads:
        verdicts = list(threads.map(lambda question: verify(question[0], question[1], seconds=60), questions))
    assert [verdict.correct for verdict in verdicts] == [n % 2 == 0 for n in range(1, 25)]


def _gone(process: int) -> bool:
    """Whether it has ended within 30 s (an ended process whose new parent does not reap it counts)."""
    for _ in range(300):
        try:
            with open(f"/proc/{process}/stat") as stat:
                if stat.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.1)
    return False


PARENT = """
import sys, threading, time
from aster.grading import pool, verify
verify("1/2", "0.5", seconds=30)
if sys.argv[1] == "busy":
    threading.Thread(target=verify, args=("9^{9^{9^9}}", "5", 2.0), daemon=True).start()
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
    assert _gone(workers[0])


def test_a_forked_child_asks_a_worker_of_its_own() -> None:
    assert verify("1/2", "0.5", seconds=30).correct
    mine = set(pool.worker_processes())
    child = os.fork()
    if child == 0:
        right = not pool.worker_processes() and verify("1/3", r"\frac{1}{3}", seconds=30).correct
        pool.close()
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert mine == set(pool.worker_processes())
    assert verify("1/2", "0.5", seconds=30).correct


def test_a_broken_installation_is_not_a_wrong_answer(tmp_path: Path) -> None:
    (tmp_path / "math_verify.py").write_text("raise ImportError('no math-verify here')")
    code = """
from aster.core.errors import UserError
from aster.grading import verify
assert verify("5", "5").correct
try:
    verify("1/2", "0.5")
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
