"""The summary of an evaluation, votes, and two results compared."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from aster.evaluation import Outcome, compare, majority, outcome, pass_at_k, summarize
from aster.evaluation.outcomes import TurnCost
from aster.money import Prices
from aster.transcript import Step, Transcript, Usage
from aster.types import CallStatus, StopReason, ToolCall, Trajectory
from tests.evaluation.made import made

OUTCOMES = [
    *(made("a", k, right=k < 3, answer="1" if k < 3 else "2") for k in range(4)),
    *(made("b", k, answer="7", turns=(TurnCost(4, 2, 6), TurnCost(5, 0, None))) for k in range(3)),
    made("b", 3, answer=None, reason=StopReason.ENGINE_ERROR, seconds=3.0),
]


def test_a_summary_has_every_measure_by_problem_and_overall() -> None:
    found = summarize(OUTCOMES, seed=1, prices=Prices(read=1.0, written=10.0))
    assert (found["accuracy"], found["k"], found["problems"], found["attempts"], found["faults"]) == (0.375, 4, 2, 8, 1)
    assert {k: each["mean"] for k, each in found["pass_at"].items()} == {"2": pass_at_k(4, 3, 2) / 2, "4": 0.5}
    assert found["maj_at"]["4"]["mean"] == 0.5
    assert found["stop_reasons"] == {"answered": 7, "engine_error": 1}
    assert found["tool_calls"] == 6 / 8
    assert found["totals"]["sampled_tokens"] == 4 * 10 + 3 * 9 + 10
    assert found["totals"]["cost"] == pytest.approx((1.0 * found["totals"]["read_tokens"] + 10.0 * 77) / 1e6)
    assert found["by_problem"]["b"]["stop_reasons"] == {"answered": 3, "engine_error": 1}
    assert (found["by_problem"]["a"]["accuracy"], found["by_problem"]["b"]["majority"]) == (0.75, 0.0)
    assert found["low"] <= found["accuracy"] <= found["high"]
    assert "cost" not in summarize(OUTCOMES, seed=1)["totals"]


def test_an_outcome_of_tokens_and_one_of_text_are_alike() -> None:
    call = ToolCall("1", CallStatus.OK, "1", 0.1)
    bad = ToolCall("", CallStatus.MALFORMED, "Error", 0.0)
    tokens = Trajectory("p", 2, 5, answer="4", reward=1.0, stop_reason=StopReason.ANSWERED, seconds=2.0)
    tokens.append("prompt", [1] * 7)
    tokens.append("assistant", [2] * 3, [0.0] * 3).calls = [call, bad]
    tokens.append("tool", [3] * 4)
    tokens.append("assistant", [2] * 2, [0.0] * 2)
    found = outcome(tokens)
    assert (found.prompt_tokens, found.turns) == (7, (TurnCost(3, 2, 4), TurnCost(2, 0, None)))
    assert (found.tool_calls, found.requests, found.sampled_tokens, found.read_tokens) == (1, 2, 5, 7 + 14)
    text = Transcript("p", 2, "?", "4", [Step(calls=[call, bad], tokens=3), Step(text="4", tokens=2)])
    text.stop_reason, text.answer, text.reward, text.seconds = StopReason.ANSWERED, "4", 1.0, 2.0
    text.usage = Usage(prompt_tokens=21, completion_tokens=5)
    other = outcome(text)
    assert (other.prompt_tokens, other.requests, other.sampled_tokens, other.read_tokens) == (None, 2, 5, 21)
    assert (other.reward, other.answer, other.tool_calls) == (found.reward, found.answer, found.tool_calls)
    assert all(Outcome.from_json(each.to_json()) == each for each in (found, other))
    text.stop_reason = None
    with pytest.raises(ValueError, match=r"\b2\b.*'p'"):
        outcome(text)


@pytest.mark.parametrize(
    ("answers", "right", "expected"),
    [
        (["1/2", "0.5", "3"], [1, 1, 0], 1.0),
        (["3", "3", "1/2", "0.50", "\\frac{1}{2}"], [0, 0, 1, 1, 1], 1.0),
        (["3", "3", "4", None, ""], [0, 0, 1, 0, 0], 0.0),
        # Ties: the share of the winners that are right.
        (["3", "4"], [0, 1], 0.5),
        (["3", "4", "5"], [0, 1, 0], 1 / 3),
        ([None, None], [0, 0], 0.0),
    ],
)
def test_the_majority_is_of_equal_answers(answers: list[str | None], right: list[int], expected: float) -> None:
    assert majority(answers, [float(each) for each in right]) == pytest.approx(expected)


def test_an_answer_is_compared_once_however_often_it_is_given() -> None:
    asked: list[tuple[str, str]] = []

    def equal(first: str, second: str) -> bool:
        asked.append((first, second))
        return first == second

    majority(["a", "b", "a", "b", "a"], [1.0, 0.0, 1.0, 0.0, 1.0], equal)
    assert asked == [("b", "a")]


def test_the_permutation_test_counts_all_sign_patterns_where_it_can() -> None:
    one = {"a": [1.0, 1.0], "b": [1.0, 0.0], "c": [1.0, 1.0], "d": [0.0, 0.0]}
    two = {"a": [0.0, 0.0], "b": [0.0, 0.0], "c": [1.0, 0.0], "d": [0.0, 0.0]}
    found = compare(one, two, seed=0)
    differences = [1.0, 0.5, 0.5, 0.0]
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in itertools.product((-1, 1), repeat=4)]
    assert found.p_value == pytest.approx(sum(each >= 2.0 for each in sums) / 16)
    assert (found.difference, found.better, found.worse, found.problems, found.exact) == (0.5, 3, 0, 4, True)
    assert found.low <= 0.5 <= found.high
    swapped = compare(two, one, seed=0)
    assert (swapped.difference, swapped.p_value) == (-0.5, found.p_value)


def test_results_that_differ_by_chance_are_seldom_significant() -> None:
    generator = np.random.default_rng(0)
    small = 0
    for trial in range(60):
        chances = generator.beta(1, 1, size=20)
        one, two = (
            {str(i): (generator.random(8) < chance).astype(float).tolist() for i, chance in enumerate(chances)} for _ in "ab"
        )
        found = compare(one, two, seed=trial)
        small += found.p_value < 0.05
        assert 0 < found.p_value <= 1
    assert small <= 8


def test_equal_results_do_not_differ_and_other_problems_are_refused() -> None:
    same = {"a": [1.0, 0.0], "b": [0.0]}
    assert compare(same, same, seed=0).p_value == 1.0
    with pytest.raises(ValueError, match="problems"):
        compare(same, {"a": [1.0]}, seed=0)
