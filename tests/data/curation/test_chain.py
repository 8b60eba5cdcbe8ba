"""The chain of filters and its funnel: which trajectories are kept, and how many are left after each filter."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aster.config import ColdStart, Curate
from aster.data.curation import Chain, Dropped, Funnel, Selection, choose
from aster.transcript import Transcript
from aster.types import CallStatus
from tests.data.curation.transcripts import OK, calls, step, transcript


def curate(
    transcripts: list[Transcript], seed: int = 0, cold_start: ColdStart | str = "a/set.jsonl", **fields: Any
) -> Selection:
    chain = Chain(Curate.model_validate(fields), cold_start)
    return choose(map(chain.judge, transcripts), chain, seed)


def test_the_papers_chain_is_the_default() -> None:
    attempts = [
        calls("good", 10),
        calls("wrong", 10, reward=0.0),
        calls("unverified", 10, reward=None),
        calls("half", 10, reward=0.5),
        calls("failed", 10, status=CallStatus.ERROR),
        calls("late", 10, status=CallStatus.TIMEOUT),
        calls("dead", 10, status=CallStatus.CRASHED),
        transcript("garbled", *calls("", 10).steps, step("", "?", status=CallStatus.MALFORMED)),
        calls("few", 9),
        calls("more", 30),
    ]
    selection = curate(attempts, cold_start=ColdStart.ASTER)
    assert [attempts[place].problem_id for place in selection.kept] == ["good", "more"]
    assert selection.funnel == [
        Funnel("attempts", 10),
        Funnel("answer verified", 7),
        Funnel("every call succeeded", 3),
        Funnel("at least 10 tool calls", 2),
    ]


def test_a_density_band_includes_both_ends() -> None:
    attempts = [calls(str(count), count) for count in range(6)]
    assert curate(attempts, density={"min": 1, "max": 2}).kept == [1, 2]
    assert curate(attempts, density={"max": 0}).kept == [0]
    assert curate(attempts, density={"min": 4}).funnel[-1] == Funnel("at least 4 tool calls", 2)
    assert curate(attempts, cold_start=ColdStart.RETOOL).kept == [1, 2]


@pytest.mark.parametrize(
    ("fields", "dropped"),
    [
        ({"tokens": {"max": 30}}, {"looping"}),
        ({"thinking_per_call": {"max": 12}}, {"looping"}),
        ({"repeated_cells": 0.4}, {"stuck"}),
        ({"repeated_text": 0.5}, {"looping"}),
        ({"rechecks": 0.5}, {"checking"}),
        ({"causal": 0.6}, {"disjoint", "looping"}),
    ],
)
def test_each_filter_drops_what_it_is_for(fields: dict[str, Any], dropped: set[str]) -> None:
    attempts = [
        transcript("sound", step("plan", "a = 2"), step("next", "b = a * 3"), step("last", ("b", "6")), answer="6"),
        transcript("looping", step("think about it once more " * 20, "x = 1"), step("so", "y = 2"), answer="2"),
        transcript("stuck", step("", "a = 1"), step("", "a + 1"), step("", "a + 1\n"), step("", "a  +  1"), answer="1"),
        transcript("disjoint", step("", "p = 1"), step("", "q = 2"), step("", "q"), answer="2"),
        transcript("checking", step("the answer is 5", "c = 5"), step("", "c == 5"), answer="5"),
    ]
    selection = curate(attempts, **fields)
    assert {t.problem_id for place, t in enumerate(attempts) if place not in selection.kept} == dropped
    assert len(selection.funnel) == 2


def test_dropped_trajectories_are_reported_with_the_filter() -> None:
    attempts = [calls("a", 1, reward=0.0, author="gpt"), calls("a", 1, sample=1), calls("b", 1), calls("b", 1, sample=1)]
    chain = Chain(Curate(verified=True, per_problem=1, size=1), "a/set.jsonl")
    dropped: list[Dropped] = []
    selection = choose(map(chain.judge, attempts), chain, 3, dropped.append)
    assert dropped[0] == Dropped("a", 0, "gpt", "answer verified")
    assert [each.filter for each in dropped[1:]] == [
        "at most 1 of a problem",
        "1 chosen by seed, balanced over difficulty and topic",
    ]
    [kept] = selection.kept
    assert {(t.problem_id, t.sample) for t in attempts} == {(d.problem_id, d.sample) for d in dropped} | {
        (attempts[kept].problem_id, attempts[kept].sample)
    }


def test_per_problem_limits_the_trajectories_of_a_problem() -> None:
    attempts = [calls(name, 1, sample=sample) for name in "abc" for sample in range(4)] + [calls("d", 1)]
    kept = [attempts[place].problem_id for place in curate(attempts, per_problem=2).kept]
    assert Counter(kept) == {"a": 2, "b": 2, "c": 2, "d": 1}


def test_the_choice_depends_on_the_seed_and_keeps_the_order() -> None:
    attempts = [calls(str(number), 1) for number in range(40)]
    kept = curate(attempts, seed=7, size=10).kept
    assert kept == sorted(kept)
    assert len(kept) == 10
    assert curate(attempts, seed=7, size=10).kept == kept
    assert curate(attempts, seed=8, size=10).kept != kept
    assert curate(attempts, seed=7, size=40).kept == list(range(40))


def test_the_choice_does_not_depend_on_the_order_of_the_stream() -> None:
    attempts = [calls(str(number), 1, metadata={"topic": str(number % 3)}) for number in range(40)]
    shuffled = random.Random(0).sample(attempts, 40)
    chosen = {attempts[place].problem_id for place in curate(attempts, size=11).kept}
    assert {shuffled[place].problem_id for place in curate(shuffled, size=11).kept} == chosen


def test_the_choice_is_balanced_over_difficulty_and_topic() -> None:
    kinds = [("algebra", 0.1)] * 50 + [("algebra", 0.9)] * 30 + [("geometry", 0.15)] * 3 + [("geometry", 1.0)] * 17
    attempts = [calls(f"p{n}", 1, metadata={"topic": topic, "difficulty": hard}) for n, (topic, hard) in enumerate(kinds)]
    kept = curate(attempts, size=33).kept
    assert Counter(kinds[place] for place in kept) == {kind: 3 if kind == ("geometry", 0.15) else 10 for kind in set(kinds)}
    unbalanced = curate(attempts, size=33, balance=[])
    assert Counter(kinds[place] for place in unbalanced.kept)[("algebra", 0.1)] > 12
    assert unbalanced.funnel[-1].filter == "33 chosen by seed"


def test_lone_surrogates_do_not_break_the_choice() -> None:
    attempts = [calls(f"p{n}\ud800", 1, author="\udfff", metadata={"topic": "\ud800"}) for n in range(4)]
    assert len(curate(attempts, size=2, per_problem=1).kept) == 2


def test_an_empty_stream_gives_an_empty_selection() -> None:
    selection = curate([], cold_start=ColdStart.ASTER, size=5, per_problem=1)
    assert selection.kept == []
    assert {step.kept for step in selection.funnel} == {0}


@settings(max_examples=60, deadline=None)
@given(
    attempts=st.lists(
        st.tuples(st.booleans(), st.lists(st.sampled_from(list(CallStatus)), max_size=5), st.integers(0, 3)), max_size=30
    ),
    low=st.integers(0, 4),
    width=st.none() | st.integers(0, 3),
    size=st.none() | st.integers(1, 10),
    per_problem=st.none() | st.integers(1, 2),
    seed=st.integers(0, 5),
)
def test_the_funnel_never_grows_and_ends_with_the_kept_ones(
    attempts: list[tuple[bool, list[CallStatus], int]],
    low: int,
    width: int | None,
    size: int | None,
    per_problem: int | None,
    seed: int,
) -> None:
    made = [
        transcript(str(problem), *(step("", "1", status=status) for status in statuses), reward=float(right), sample=number)
        for number, (right, statuses, problem) in enumerate(attempts)
    ]
    high = None if width is None else low + width
    band = {"min": low, "max": high}
    selection = curate(made, seed, verified=True, succeeded=True, density=band, size=size, per_problem=per_problem)
    counts = [step.kept for step in selection.funnel]
    assert counts == sorted(counts, reverse=True)
    assert (counts[0], counts[-1]) == (len(made), len(selection.kept))
    for place in selection.kept:
        assert made[place].reward == 1
        assert all(call.status is OK for call in made[place].calls)
        assert low <= len(made[place].calls) <= (99 if high is None else high)
