"""What a smaller budget leaves of an attempt is what the loop does under that budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aster.config import EngineConfig, Model, Rollout
from aster.data.problems import load_problems
from aster.engines.local.engine import LocalEngine
from aster.environments.lab import generate
from aster.evaluation.budgets import call_budgets, curve, curves, cut, require_within, token_budgets, under
from aster.evaluation.outcomes import TurnCost, outcome
from aster.rollout import Decoding, Job, RolloutContext, rollout, rollout_batch
from aster.types import Budget, Problem, StopReason, Trajectory
from tests.evaluation.made import made
from tests.refusals import refused
from tests.rollout.scripted import DIALECT, ScriptedFakeSampler, raw, turn
from tests.shop_fixture import Shop

PROBLEM = Problem("p", "What is 2+2?", "4")
LARGE = Budget(context_tokens=700, turn_tokens=700, tool_calls=8, turns=9, wall_seconds=60)
TURNS = {
    "answer": turn("so", "It is \\boxed{4}."),
    "step": turn("go", "", "1"),
    "three": turn("", "", "1", "2", "3"),
    "malformed": raw("hm\n</think>\n\n<tool_call>\n{broken}\n</tool_call>"),
    "long": turn("x " * 90, "", "'x' * 60"),
}


async def attempt(shop: Shop, names: list[str], budget: Budget) -> Trajectory:
    turns: list[list[int] | Exception] = [TURNS[name] for name in names]
    return await rollout(
        PROBLEM,
        0,
        5,
        sequence="s",
        sampler=ScriptedFakeSampler(turns),
        dialect=DIALECT,
        environment=shop.environment,
        budget=budget,
        decoding=Decoding(),
    )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(st.sampled_from([name for name in TURNS if name != "answer"]), max_size=5),
    tokens=st.integers(0, 20),
    calls=st.integers(0, 8),
    exactly=st.booleans(),
)
def test_an_attempt_cut_off_ends_as_the_loop_ends_it(
    shop: Shop, names: list[str], tokens: int, calls: int, exactly: bool
) -> None:
    whole = shop.run(attempt(shop, [*names, "answer", "answer"], LARGE))
    # Budgets at the ends of turns, and one beside them, are where a rule could be off by one.
    ends = [0, *(span.end for span in whole.turns)]
    context = max(1, ends[tokens % len(ends)] + (0 if exactly else tokens % 3 - 1))
    direct = shop.run(
        attempt(
            shop,
            [*names, "answer", "answer"],
            replace(LARGE, context_tokens=context, turn_tokens=context, tool_calls=calls, turns=calls + 1),
        )
    )
    assert cut(outcome(whole), context, calls) is direct.stop_reason
    (left,) = under([outcome(whole)], context, calls)
    assert (left.reward, left.answer) == (direct.reward, direct.answer)
    # And not only its end: its tokens are the first of the same tokens.
    length = len(direct.token_ids)
    if direct.turns[-1].role != "prompt":
        assert direct.token_ids == whole.token_ids[:length]


def test_a_sandbox_that_fails_at_a_call_beyond_the_budget_was_not_asked() -> None:
    turns = (TurnCost(5, 2, 5), TurnCost(5, 1, None))
    failed = made("p", reason=StopReason.SANDBOX_ERROR, turns=turns)
    assert [cut(failed, None, calls) for calls in (1, 2, 3, 4)] == [
        StopReason.CALL_BUDGET,
        StopReason.CALL_BUDGET,
        StopReason.CALL_BUDGET,
        StopReason.SANDBOX_ERROR,
    ]


def test_an_engine_that_failed_after_the_budgets_end_was_not_asked() -> None:
    """The tool's turn must leave room for one more token: 5 of prompt, 5 sampled, 5 of the tool."""
    failed = made("p", reason=StopReason.ENGINE_ERROR, turns=(TurnCost(5, 1, 5),))
    assert [cut(failed, context) for context in (15, 16)] == [StopReason.TOKEN_BUDGET, StopReason.ENGINE_ERROR]


def test_a_curve_rises_to_the_runs_own_accuracy() -> None:
    outcomes = [made(f"p{n}", right=n % 2 == 0, turns=(TurnCost(10 * n, 1, 3), TurnCost(5, 0, None))) for n in range(1, 9)]
    points = curve(outcomes, 1, tokens=token_budgets(100))
    assert [point["tokens"] for point in points][-1] == 100
    accuracies = [point["accuracy"] for point in points]
    assert accuracies == sorted(accuracies)
    assert (accuracies[0], accuracies[-1]) == (0.0, 0.5)
    assert all(point["low"] <= point["accuracy"] <= point["high"] for point in points)
    assert [point["accuracy"] for point in curve(outcomes, 1, calls=[0, 1])] == [0.0, 0.5]
    assert call_budgets(20) == [0, 1, 2, 4, 8, 16, 20]
    assert token_budgets(3) == [1, 2, 3]


def test_attempts_that_came_as_text_have_a_curve_over_calls_alone() -> None:
    text = [replace(made("p", right=True, turns=(TurnCost(None, 1, None), TurnCost(3, 0, None))), prompt_tokens=None)]
    found = curves(text, 1, 100, 4)
    assert found["tokens"] == []
    assert [point["accuracy"] for point in found["calls"]] == [0.0, 1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="tokens"):
        cut(text[0], context_tokens=50)


def test_a_run_does_not_tell_of_larger_budgets() -> None:
    with refused("--at 200", "100"):
        require_within([50, 200], 100, "--at")


async def sampled(
    shop: Shop, model: str, problems: list[Problem], decoding: Decoding
) -> tuple[list[Trajectory], list[tuple[Budget, list[Trajectory]]]]:
    """The same jobs by a real model in the real loop: under a large budget, and under three that cut some of them off."""
    recipe = EngineConfig(model=Model(path=model, device="cpu", threads=1), rollout=Rollout(slots=8, cache_tokens=1 << 13))
    policy = LocalEngine(recipe, capacity=400)
    jobs = [Job(problem, sample, 31 * sample + 1) for problem in problems for sample in range(3)]
    context = RolloutContext(lambda _: policy, policy.dialect, shop.environment, 8)

    async def run(tokens: int, calls: int) -> tuple[Budget, list[Trajectory]]:
        budget = Budget(tokens, tokens, calls, calls + 1, 600.0)
        return budget, await rollout_batch(jobs, context, budget, decoding)

    try:
        _, whole = await run(400, 4)
        lengths = sorted(len(each.token_ids) for each in whole)
        sizes = (lengths[0], 0), (lengths[len(lengths) // 2] - 1, 4), (lengths[-1] - 1, 1)
        return whole, [await run(*size) for size in sizes]
    finally:
        await policy.close()


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("which", ["lab", "coin"])
def test_the_curve_of_a_model_is_what_direct_runs_at_three_budgets_give(
    which: str, greedy: bool, shop: Shop, coin_model: Path, coin_problems: Path
) -> None:
    """Every attempt, to the token: the lab's base model, and the coin model, which calls the tool."""
    if which == "lab":
        problems, model = generate({"chain": 1.0}, (6, 10), "test", 1, 0), "lab"
    else:
        problems, model = load_problems(coin_problems)[:6], str(coin_model)
    decoding = Decoding(0.0 if greedy else 1.0, 1.0)
    whole, runs = shop.run(sampled(shop, model, problems, decoding))
    ends = set()
    for budget, run in runs:
        left = under(map(outcome, whole), budget.context_tokens, budget.tool_calls)
        assert [(o.stop_reason, o.reward, o.answer) for o in left] == [(t.stop_reason, t.reward, t.answer) for t in run]
        for all_of_it, part in zip(whole, run, strict=True):
            assert part.token_ids == all_of_it.token_ids[: len(part.token_ids)]
        ends |= {each.stop_reason for each in left}
    assert {StopReason.ANSWERED, StopReason.TOKEN_BUDGET} <= ends
