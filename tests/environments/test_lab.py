"""The lab's problems: splits, repeatability, and answers that follow from the text."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aster.environments import lab as families
from aster.environments.lab import MOST, Split, generate, split_of
from aster.types import Problem

MIXTURE = {"chain": 1.0, "hunt": 1.0}


def apply(value: int, operation: str) -> int:
    """``12`` and ``+5`` -> 17."""
    match = re.fullmatch(r"([-+*])(\d+)", operation)
    assert match, operation
    operand = int(match[2])
    return {"+": value + operand, "-": value - operand, "*": value * operand}[match[1]]


def solve_chain(prompt: str) -> list[int]:
    """Return all values from the start to the answer, computed from the text only."""
    match = re.fullmatch(r"Start with (\d+)\. Do (.*)\. Give the last value in \\boxed\{\}\.", prompt)
    assert match, prompt
    values = [int(match[1])]
    steps = re.findall(r"([a-z]):(?:even (\S+) odd (\S+)|(\S+))", match[2])
    assert "abcdefghijklmnopqrst".startswith("".join(label for label, *_ in steps))
    assert len(steps) == match[2].count(":")
    for _, even, odd, plain in steps:
        values.append(apply(values[-1], plain or (even if values[-1] % 2 == 0 else odd)))
    return values


def solve_hunt(problem: Problem) -> list[int]:
    """Return all values from the start to the answer, found with the function that the setup defines."""
    match = re.fullmatch(
        r"Start with (\d+)\. Rules (.*)\. ask\(value\) names the next rule, or end\. Give the last value in \\boxed\{\}\.",
        problem.prompt,
    )
    assert match, problem.prompt
    rules = dict(rule.split(":") for rule in match[2].split())
    namespace: dict[str, Any] = {}
    exec(problem.setup, namespace)
    values = [int(match[1])]
    while (name := namespace["ask"](values[-1])) != "end":
        values.append(apply(values[-1], rules[name]))
    return values


@pytest.mark.parametrize("family", ["chain", "hunt"])
@pytest.mark.parametrize("levels", [(1, 3), (6, 10), (20, 20)])
def test_the_answer_follows_from_the_text(family: str, levels: tuple[int, int]) -> None:
    problems = generate({family: 1.0}, levels, "train", 60, seed=3)
    for problem in problems:
        values = solve_chain(problem.prompt) if family == "chain" else solve_hunt(problem)
        assert problem.answer == str(values[-1])
        assert levels[0] <= len(values) - 1 == problem.metadata["steps"] <= levels[1]
        assert len(set(values)) == len(values)
        assert all(1 <= value <= MOST for value in values)
    assert {problem.metadata["steps"] for problem in problems} == set(range(levels[0], levels[1] + 1))


def test_three_in_ten_steps_of_a_chain_are_conditional() -> None:
    prompts = [problem.prompt for problem in generate({"chain": 1.0}, (6, 10), "train", 100, seed=0)]
    conditional = sum(prompt.count("even") for prompt in prompts)
    steps = sum(prompt.count(":") for prompt in prompts)
    assert 0.2 < conditional / steps < 0.4


def test_a_wrong_value_gets_a_rule_but_never_the_end() -> None:
    for problem in generate({"hunt": 1.0}, (6, 10), "test", 20, seed=0):
        namespace: dict[str, Any] = {}
        exec(problem.setup, namespace)
        path = solve_hunt(problem)
        rules = {rule.label for rule in problem.metadata["walk"].rules}
        astray = [value for value in range(-50, 1200) if value not in path]
        assert {namespace["ask"](value) for value in astray} <= rules
        assert "ask" not in problem.setup.partition("def ask")[0]


@given(first=st.integers(0, 10**6), second=st.integers(0, 10**6), few=st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_splits_never_overlap_for_any_seeds(first: int, second: int, few: int) -> None:
    splits: tuple[Split, ...] = ("train", "validation", "test")
    found = {
        split: generate(MIXTURE, (few, 4), split, 15, seed) for split, seed in zip(splits, (first, second, first), strict=True)
    }
    for split, problems in found.items():
        assert all(split_of(problem) == split for problem in problems)
        for other in splits:
            if other != split:
                assert not {p.prompt for p in problems} & {p.prompt for p in found[other]}
                assert not {p.id for p in problems} & {p.id for p in found[other]}


def test_the_splits_have_their_shares() -> None:
    counts = dict.fromkeys(("train", "validation", "test"), 0)
    for index in range(3000):
        counts[split_of(Problem(str(index), f"prompt {index}", ""))] += 1
    assert 0.77 < counts["train"] / 3000 < 0.83
    assert 0.08 < counts["test"] / 3000 < 0.12


@given(seed=st.integers(0, 10**9), count=st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_generation_is_repeatable_and_gives_different_problems(seed: int, count: int) -> None:
    problems = generate(MIXTURE, (3, 8), "train", count, seed)
    assert problems == generate(MIXTURE, (3, 8), "train", count, seed)
    assert len({problem.id for problem in problems}) == count
    # A longer list begins with the shorter one.
    assert generate(MIXTURE, (3, 8), "train", count + 5, seed)[:count] == problems


def test_other_seeds_give_other_problems_and_weights_are_kept() -> None:
    one, two = (generate({"chain": 3.0, "hunt": 1.0}, (6, 10), "train", 200, seed) for seed in (1, 2))
    assert not {p.id for p in one} & {p.id for p in two}
    assert 0.65 < sum(p.source == "lab/chain" for p in one) / 200 < 0.85


def test_too_many_problems_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "MOST_IDLE", 5)  # only a tenth of the draws are in the test split
    with pytest.raises(ValueError, match=r"\b50\b.*\btest\b.*\b1\b.*\b1\b"):
        generate({"chain": 1.0}, (1, 1), "test", 50, seed=0)
