"""The verifier on a labelled corpus of answer pairs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from aster.grading import verify

CORPUS = Path(__file__).parent / "corpus.tsv"


@pytest.fixture(scope="module")
def pairs() -> list[list[str]]:
    lines = CORPUS.read_text(encoding="utf-8").splitlines()
    assert lines[0].split("\t") == ["class", "label", "prediction", "answer"]
    return [line.split("\t") for line in lines[1:]]


def test_the_corpus_is_large_and_balanced(pairs: list[list[str]]) -> None:
    assert len(pairs) >= 500
    assert len({(prediction, answer) for _, _, prediction, answer in pairs}) == len(pairs)
    labels = Counter(label for _, label, _, _ in pairs)
    assert set(labels) == {"equal", "different"}
    assert min(labels.values()) > 0.45 * len(pairs)


def test_there_is_no_false_positive_and_at_most_one_percent_is_missed(pairs: list[list[str]]) -> None:
    wrong = [pair for pair in pairs if verify(pair[2], pair[3], seconds=30).correct != (pair[1] == "equal")]
    assert [pair for pair in wrong if pair[1] == "different"] == []
    assert len(wrong) <= 0.01 * len(pairs), wrong


def test_a_box_or_dollar_signs_around_an_answer_do_not_matter(pairs: list[list[str]]) -> None:
    for _, label, prediction, answer in pairs[::7]:
        if label == "equal":
            assert verify(rf"\boxed{{ {answer} }}", answer, seconds=30).correct, answer
            assert verify(f"${prediction}$.", answer, seconds=30).correct == verify(prediction, answer, seconds=30).correct
