"""The published answers of a benchmark equal themselves and not each other."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from aster.data.problems import load_problems
from aster.grading import Verdict, verify

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def answers() -> list[str]:
    path = DATA / "hmmt25.parquet"
    if not path.exists():
        pytest.skip(f"no published problems here: {path} is missing")
    return [problem.answer for problem in load_problems(path)]


def test_an_answer_equals_itself_in_another_spelling(answers: list[str]) -> None:
    for answer in answers:
        assert verify(f" ${answer}$. ", answer).correct
        if "," not in answer:
            assert verify(f"0 + {answer}", answer) == Verdict(True, "equal numbers")


def test_different_answers_are_not_equal(answers: list[str]) -> None:
    """All neighbours in the file are different."""
    for answer, other in itertools.pairwise(answers):
        assert not verify(answer, other).correct
