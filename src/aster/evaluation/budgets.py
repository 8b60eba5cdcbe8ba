"""Accuracy under smaller budgets, out of one run under the largest: what a smaller budget leaves of an attempt.

A budget is hard: the loop (:mod:`aster.rollout.loop`) looks at nothing but what was spent so far, and the policy is not told
what is left. So an attempt under a smaller budget is the same attempt, cut off where that budget ends, and the whole curve
follows from one run. It is exact where the same attempt made again has the same tokens: with random numbers that belong to
(seed, position), as here, up to the last bits of the engine's floating point. ``aster evaluate --check-budget`` runs one budget
directly and counts the attempts that differ.

Not exact are seconds (``wall_seconds`` is a clock), and budgets above that of the run, which are refused.
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
    """How the attempt would have ended under a budget of so many tokens and calls, neither above its own; None: its own.

    The checks of the loop, in its order. Before a turn there must be room for a token. A turn that needs more tokens than there
    is room for is cut. Then each call in turn must be within the calls; then the tool's turn must leave room for one more
    token. ValueError where tokens are asked for and nobody counted them.
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
        # The sandbox failed at a call that would not have been made.
        return StopReason.CALL_BUDGET
    return outcome.stop_reason


def under(outcomes: Iterable[Outcome], context_tokens: int | None = None, tool_calls: int | None = None) -> list[Outcome]:
    """The outcomes with their ends under a budget: right ones count where they had answered by then. Costs are left as they
    were."""
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

    Each point has ``tokens`` or ``calls``, ``accuracy``, ``low``, ``high``, and ``answered``: the share that had."""
    points = []
    for name, budgets in (("tokens", tokens), ("calls", calls)):
        for budget in budgets:
            left = under(outcomes, **{"context_tokens" if name == "tokens" else "tool_calls": budget})
            found = accuracy(left, seed)
            answered = sum(each.stop_reason is StopReason.ANSWERED for each in left) / len(left)
            points.append({name: budget, **{key: found[key] for key in ("accuracy", "low", "high")}, "answered": answered})
    return points


def curves(outcomes: Sequence[Outcome], seed: int, most_tokens: int, most_calls: int) -> dict[str, list[dict[str, Any]]]:
    """Both curves of an evaluation; none over tokens where a server gave text alone."""
    counted = all(each.prompt_tokens is not None for each in outcomes)
    return {
        "tokens": curve(outcomes, seed, tokens=token_budgets(most_tokens)) if counted else [],
        "calls": curve(outcomes, seed, calls=call_budgets(most_calls)),
    }


def require_within(budgets: Iterable[int], most: int, what: str) -> None:
    """UserError where a budget is above the run's own: what an attempt would have done with more is not known."""
    for budget in budgets:
        if budget > most:
            raise UserError(f"{what} {budget}: more than the {most} of the run; a smaller run does not tell of a larger budget")
