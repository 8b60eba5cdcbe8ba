"""The metrics of training: their computation, and a table of their names, units and meanings.

``entropy`` is an estimate: the mean of minus the log-probability over all sampled tokens of a batch (unbiased at temperature
1). ``trained_entropy`` is exact and covers only the trained tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from aster.algorithms.base import Group, is_equal
from aster.types import CallStatus, Trajectory

METRICS: dict[str, tuple[str, str]] = {
    "reward": ("", "mean reward of the trajectories trained on"),
    "tool_calls": ("calls", "tool calls whose code ran, mean per trajectory"),
    "no_call": ("share", "trajectories without any tool call"),
    "call_success": ("share", "calls that ended without an error"),
    "entropy": ("nats per token", "entropy of the policy, estimated on the sampled tokens"),
    "trained_entropy": ("nats per token", "entropy of the policy, exact, on the trained tokens"),
    "sampled_tokens": ("tokens", "sampled in the batch"),
    "tokens_per_trajectory": ("tokens", "sampled per trajectory, mean"),
    "trained_tokens": ("tokens", "with an advantage other than 0"),
    "groups": ("groups", "trained on in the step"),
    "equal_groups": ("groups", "whose rewards are all equal"),
    "resampled_groups": ("groups", "replaced because their rewards were all equal"),
    "stop_reasons": ("trajectories", "by stop reason"),
    "problems_left": ("problems", "from which prompts were drawn"),
    "optimizer_steps": ("steps", "taken on the batch"),
    "loss": ("", "loss, mean over the tokens of the batch"),
    "grad_norm": ("", "norm of the gradient before clipping, mean over the optimizer steps"),
    "clipped": ("share", "tokens without a gradient because of the clip"),
    "clipped_high": ("share", "the same, with a ratio above the range"),
    "clipped_low": ("share", "the same, with a ratio below the range"),
    "dual_clipped": ("share", "tokens without a gradient because of the dual clip"),
    "kl": ("nats per token", "KL(old || new), the k3 estimate"),
    "importance": ("", "mean weight of truncated importance sampling"),
    "importance_capped": ("share", "tokens whose importance weight was capped"),
    "staleness": ("steps", "between the weights that sampled a group and those trained, mean"),
    "staleness_max": ("steps", "the same, maximum"),
    "carried_trajectories": ("trajectories", "that continue in the next batch"),
    "held_out": ("", "mean reward on held-out problems, at the steps that rl.evaluate_every sets"),
    "sample_seconds": ("s", "until the batch was sampled"),
    "train_seconds": ("s", "of the optimizer steps"),
    "step_seconds": ("s", "from the end of the previous step to the end of this one"),
    "tokens_per_second": ("tokens/s", "sampled tokens divided by step_seconds"),
    "peak_memory_mb": ("MiB", "peak memory of training"),
    "learning_rate": ("", "of the optimizer step"),
}
"""Name: (unit, meaning) of each metric in a line of ``metrics.jsonl``."""


def summarize_updates(updates: list[dict[str, float]], steps: list[dict[str, float]]) -> dict[str, float | None]:
    """Return a batch's metrics from those of its minibatches. Sums become means over the trained tokens.

    ``updates`` are the results of ``forward_backward``, ``steps`` those of ``optim_step``.
    """
    from aster.algorithms.losses import merge_metrics

    if not updates:
        return {"optimizer_steps": 0, "loss": 0.0}
    total = merge_metrics(updates)
    tokens = total.pop("tokens")
    found: dict[str, float | None] = {"optimizer_steps": len(updates), "loss": total.pop("loss"), "trained_tokens": tokens}
    found["trained_entropy"] = total.pop("entropy_sum") / tokens
    for name, value in total.items():
        if not name.endswith(("_min", "_max")):
            found[name.removesuffix("_sum")] = value / tokens
    if "clipped_high" in total and "clipped_low" in total:
        found["clipped"] = (total["clipped_high"] + total["clipped_low"]) / tokens
    found["grad_norm"] = sum(step["grad_norm"] for step in steps) / len(steps)
    found["peak_memory_mb"] = max((step["peak_memory_mb"] for step in steps if "peak_memory_mb" in step), default=None)
    return found


def describe(groups: list[Group]) -> dict[str, Any]:
    """Return the metrics of a step's trajectories."""
    trajectories = [t for group in groups for t in group]
    tokens = sum(t.sampled_tokens for t in trajectories)
    calls = [call for t in trajectories for call in t.calls]

    def mean(value: Callable[[Trajectory], float]) -> float:
        return sum(value(t) for t in trajectories) / len(trajectories)

    return {
        "reward": mean(lambda t: t.reward),
        "tool_calls": mean(lambda t: t.tool_calls),
        "no_call": mean(lambda t: t.tool_calls == 0),
        "call_success": sum(c.status is CallStatus.OK for c in calls) / max(1, len(calls)),
        "entropy": -sum(sum(t.logprobs) for t in trajectories) / max(1, tokens),
        "sampled_tokens": tokens,
        "tokens_per_trajectory": tokens / len(trajectories),
        "groups": len(groups),
        "equal_groups": sum(map(is_equal, groups)),
        "stop_reasons": dict(Counter(str(t.stop_reason) for t in trajectories)),
    }
