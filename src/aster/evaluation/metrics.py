"""Computes the results of an evaluation, by problem and overall, for both forms of ``aster evaluate``."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from aster.evaluation.estimate import avg_at_k, mean_interval, pass_at_k
from aster.evaluation.outcomes import Outcome, rewards_by_problem
from aster.evaluation.voting import majority
from aster.money import Prices
from aster.seeds import derive
from aster.types import FAULTS


def accuracy(outcomes: Sequence[Outcome], seed: int) -> dict[str, Any]:
    """avg@k with its interval: keys ``accuracy``, ``low``, ``high``, ``k``, ``problems``. ``seed`` is the run's."""
    estimate = avg_at_k(rewards_by_problem(outcomes), derive(seed, "bootstrap"))
    found = asdict(estimate)
    return {"accuracy": found.pop("mean"), **found}


def summarize(outcomes: Sequence[Outcome], seed: int, prices: Prices | None = None) -> dict[str, Any]:
    """The results of an evaluation. Keys:

    accuracy, low, high, k, problems   avg@k and its 95% interval
    pass_at     {k: {mean, low, high}} for k = 2, 4, ... and all samples
    maj_at      {k: {mean, low, high}} for all samples
    tool_calls, tool_requests, sampled_tokens, read_tokens, seconds   means per attempt
    totals      sums of sampled_tokens, read_tokens, tool_calls, seconds and, with prices, cost
    stop_reasons, attempts, faults     counts; faults are errors of the engine, the sandbox or the environment
    clipped     rewards below 0 or above 1, which accuracy counts as 0 or 1
    by_problem  for each id: attempts, accuracy, majority, tool_calls, sampled_tokens, seconds, stop_reasons
    """
    result = accuracy(outcomes, seed)
    grouped: dict[str, list[Outcome]] = {}
    for each in outcomes:
        grouped.setdefault(each.problem_id, []).append(each)
    k = result["k"]
    # pass@1 is avg@k.
    sizes = sorted({1 << exponent for exponent in range(1, k.bit_length())} | ({k} if k > 1 else set()))
    result["pass_at"] = {
        str(size): _interval(
            [pass_at_k(len(group), sum(each.reward > 0 for each in group), size) for group in _in_order(grouped)],
            derive(seed, "pass", size),
        )
        for size in sizes
    }
    votes = {
        name: majority([each.answer for each in group], [each.reward for each in group]) for name, group in grouped.items()
    }
    result["maj_at"] = {str(k): _interval([votes[name] for name in sorted(votes)], derive(seed, "majority"))}
    result |= {
        "tool_calls": statistics.fmean(each.tool_calls for each in outcomes),
        "tool_requests": statistics.fmean(each.requests for each in outcomes),
        "sampled_tokens": statistics.fmean(each.sampled_tokens for each in outcomes),
        "read_tokens": statistics.fmean(each.read_tokens for each in outcomes),
        "seconds": statistics.fmean(each.seconds for each in outcomes),
        "totals": _totals(outcomes, prices),
        "stop_reasons": _reasons(outcomes),
        "attempts": len(outcomes),
        "faults": sum(each.stop_reason in FAULTS for each in outcomes),
        "clipped": sum(each.clipped for each in outcomes),
        "by_problem": {name: {**_of_problem(group), "majority": votes[name]} for name, group in grouped.items()},
    }
    return result


def _in_order(grouped: dict[str, list[Outcome]]) -> list[list[Outcome]]:
    return [grouped[name] for name in sorted(grouped)]


def _interval(values: Sequence[float], seed: int) -> dict[str, float]:
    low, high = mean_interval(values, seed)
    return {"mean": statistics.fmean(values), "low": low, "high": high}


def _totals(outcomes: Sequence[Outcome], prices: Prices | None) -> dict[str, float]:
    written = sum(each.sampled_tokens for each in outcomes)
    read = sum(each.read_tokens for each in outcomes)
    totals: dict[str, float] = {
        "sampled_tokens": written,
        "read_tokens": read,
        "tool_calls": sum(each.tool_calls for each in outcomes),
        "seconds": round(sum(each.seconds for each in outcomes), 3),
    }
    if prices is not None:
        totals["cost"] = prices.cost(read, written)
    return totals


def _reasons(outcomes: Sequence[Outcome]) -> dict[str, int]:
    return dict(sorted(Counter(each.stop_reason.value for each in outcomes).items()))


def _of_problem(group: Sequence[Outcome]) -> dict[str, Any]:
    return {
        "attempts": len(group),
        "accuracy": statistics.fmean(each.reward for each in group),
        "tool_calls": statistics.fmean(each.tool_calls for each in group),
        "sampled_tokens": statistics.fmean(each.sampled_tokens for each in group),
        "seconds": statistics.fmean(each.seconds for each in group),
        "stop_reasons": _reasons(group),
    }
