"""Computes accuracy under smaller budgets from one run under the largest budget.

A budget is a hard limit: the loop (:mod:`aster.rollout.loop`) looks only at what was spent so far, and the policy does not know
what is left. So an attempt under a smaller budget is the same attempt, cut off where that budget ends, and one run gives the
whole curve. The curve is exact if an attempt has the same tokens when it is repeated. That holds here up to the last bits of
the engine's floating point, because random numbers depend only on seed and position. ``aster evaluate --check-budget`` runs one
budget directly and counts the attempts that differ.

The curve is not exact for time limits (``wall_seconds``). Budgets above that of the run are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from aster.errors import UserError
from aster.evaluation.metrics import accuracy
from aster.evaluation.outcomes import Outcome
from aster.types import StopReason

POINTS = 16
"""Points of a curve over tokens."""


def cut(outcome: Outcome, context_tokens: int | None = None, tool_calls: int | None = None) -> StopReason:
    """How the attempt would have ended under a smaller budget of tokens or calls. None: the attempt's own budget.

    It repeats the checks of the loop in their order. Before a turn there must be room for one token. A turn that needs more
    tokens than there is room for is cut. Then the calls must not exceed the budget of calls. Then the tool's turn must leave
    room for one more token. Raises ValueError for a budget of tokens where the attempt's tokens were not counted.
    """
    if context_tokens is not None and outcome.prompt_tokens is None:
        raise ValueError("the attempt came as text: its tokens are not known")
    length, made = outcome.prompt_tokens or 0, 0
    if context_tokens is not None and length >= context_tokens:
        return StopReason.TOKEN_BUDGET
    for turn in outcome.turns:
        if context_tokens is not None:
            assert turn.sampled is not None
            length += turn.sampled
            if length > context_tokens:
                return StopReason.TOKEN_BUDGET
        made += turn.calls
        if tool_calls is not None and made > tool_calls:
            return StopReason.CALL_BUDGET
        if context_tokens is not None and turn.response is not None:
            length += turn.response
            if length >= context_tokens:
                return StopReason.TOKEN_BUDGET
    if outcome.stop_reason is StopReason.SANDBOX_ERROR and tool_calls is not None and made >= tool_calls:
        # The sandbox failed at a call that this budget does not allow.
        return StopReason.CALL_BUDGET
    return outcome.stop_reason


def under(outcomes: Iterable[Outcome], context_tokens: int | None = None, tool_calls: int | None = None) -> list[Outcome]:
    """The outcomes as they would have ended under a budget. Attempts that had not answered by then get reward 0. Costs are not
    changed."""
    found = []
    for each in outcomes:
        reason = cut(each, context_tokens, tool_calls)
        if reason is not each.stop_reason:
            each = replace(each, stop_reason=reason, reward=0.0, answer=None)
        found.append(each)
    return found


def token_budgets(most: int) -> list[int]:
    """The budgets of a curve: :data:`POINTS` equal steps up to the run's own."""
    return sorted({max(1, round(most * step / POINTS)) for step in range(1, POINTS + 1)})


def call_budgets(most: int) -> list[int]:
    """0, 1, 2, 4, ... and the run's own."""
    return sorted({0, most, *(1 << power for power in range(most.bit_length()) if 1 << power < most)})


def curve(
    outcomes: Sequence[Outcome],
    seed: int,
    *,
    tokens: Iterable[int] = (),
    calls: Iterable[int] = (),
) -> list[dict[str, Any]]:
    """Accuracy with its interval at each budget of ``tokens``, or of ``calls`` (the other budget is the run's own).

    Each point has ``tokens`` or ``calls``, ``accuracy``, ``low``, ``high``, and ``answered``: the share of attempts
    with an answer."""
    points = []
    for name, budgets in (("tokens", tokens), ("calls", calls)):
        for budget in budgets:
            left = under(outcomes, **{"context_tokens" if name == "tokens" else "tool_calls": budget})
            found = accuracy(left, seed)
            answered = sum(each.stop_reason is StopReason.ANSWERED for each in left) / len(left)
            points.append({name: budget, **{key: found[key] for key in ("accuracy", "low", "high")}, "answered": answered})
    return points


def curves(outcomes: Sequence[Outcome], seed: int, most_tokens: int, most_calls: int) -> dict[str, list[dict[str, Any]]]:
    """Both curves of an evaluation. The curve over tokens is empty where a server gave only text."""
    counted = all(each.prompt_tokens is not None for each in outcomes)
    return {
        "tokens": curve(outcomes, seed, tokens=token_budgets(most_tokens)) if counted else [],
        "calls": curve(outcomes, seed, calls=call_budgets(most_calls)),
    }


def require_within(budgets: Iterable[int], most: int, what: str) -> None:
    """Raise UserError where a budget is above the run's own, because nobody knows what an attempt would do with more."""
    for budget in budgets:
        if budget > most:
            raise UserError(f"{what} {budget}: more than the budget of the run ({most}); give at most that")
