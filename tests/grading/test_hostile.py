"""No text of a policy stops the verifier, and few texts need a worker process.

ASTER_HOSTILE=2000 runs the whole set. That takes minutes, because many of its texts use up Math-Verify's time limit
(benchmarks/verifier.py runs it too).
"""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aster.grading import Verdict, extract_boxed, pool, verify
from tests.grading.hostile import hostile_answers, random_strings

COUNT = int(os.environ.get("ASTER_HOSTILE", "400"))
LIMIT = 1.0
"""Time limit for Math-Verify in these tests, in seconds."""


def test_every_hostile_answer_gets_a_verdict() -> None:
    for family, answer in hostile_answers(COUNT):
        if COUNT < 2000 and family == "calculus":
            continue  # these need workers; test_pool.py and the whole set test them
        verdicts = [verify(answer, "5", LIMIT), verify(answer, answer[:900] + "1", LIMIT), verify("5", answer, LIMIT)]
        assert all(isinstance(verdict, Verdict) for verdict in verdicts)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the predictions that would be sent to a worker, without sending them."""
    questions: list[str] = []

    def ask(prediction: str, answer: str, seconds: float) -> tuple[bool, str]:
        questions.append(prediction)
        return False, f"math-verify: not asked in this test about {answer} in {seconds} s"

    monkeypatch.setattr(pool, "ask", ask)
    return questions


def test_ten_thousand_random_strings_are_decided_almost_without_workers(asked: list[str]) -> None:
    for text in random_strings(10_000):
        verdict = verify(extract_boxed(text), r"\frac{1}{2}")
        assert isinstance(verdict, Verdict)
        assert verdict.reason
        verify(text, "5")
    assert len(asked) < 20


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60), st.sampled_from(["5", r"\frac{1}{2}", "(1,2)", r"\{1, 2\}", "x^2+1", "Yes", r"x > 3"]))
def test_every_text_gets_a_verdict(text: str, answer: str) -> None:
    extract_boxed(text)
    assert verify(text, answer, LIMIT).reason
    assert verify(answer, text, LIMIT).reason
