"""Nothing that a policy writes stops the verifier, and hardly anything makes it ask a worker.

The whole set takes minutes where Math-Verify is late on purpose: ASTER_HOSTILE=2000 runs it (benchmarks/verifier.py does too).
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
"""Seconds that Math-Verify has here."""


def test_hostile_answers_get_a_verdict() -> None:
    for family, answer in hostile_answers(COUNT):
        if COUNT < 2000 and family == "calculus":
            continue  # left to workers; test_pool.py and the whole set have them
        verdicts = [verify(answer, "5", LIMIT), verify(answer, answer[:900] + "1", LIMIT), verify("5", answer, LIMIT)]
        assert all(isinstance(verdict, Verdict) for verdict in verdicts)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The predictions for which a worker was asked, in place of asking it."""
    questions: list[str] = []

    def ask(prediction: str, answer: str, seconds: float) -> tuple[bool, str]:
        questions.append(prediction)
        return False, f"math-verify: not asked in this test about {answer} in {seconds} s"

    monkeypatch.setattr(pool, "ask", ask)
    return questions


def test_ten_thousand_random_strings_are_extracted_and_decided_here(asked: list[str]) -> None:
    for text in random_strings(10_000):
        verdict = verify(extract_boxed(text), r"\frac{1}{2}")
        assert isinstance(verdict, Verdict)
        assert verdict.reason
        verify(text, "5")
    assert len(asked) < 20


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60), st.sampled_from(["5", r"\frac{1}{2}", "(1,2)", r"\{1, 2\}", "x^2+1", "Yes", r"x > 3"]))
def test_any_text_gets_a_verdict(text: str, answer: str) -> None:
    extract_boxed(text)
    assert verify(text, answer, LIMIT).reason
    assert verify(answer, text, LIMIT).reason
