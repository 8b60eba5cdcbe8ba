"""The metrics of training: how each is computed, and one table of their names, units and meanings.

``entropy`` is estimated over all sampled tokens of a batch as the mean of minus their log-probability (unbiased at
temperature 1). ``trained_entropy`` is exact, over the tokens that were trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from aster.algorithms.base import Group, is_equal
from aster.types import CallStatus, Trajectory

METRICS: dict[str, tuple[str, str]] = {
    "reward": ("", "mean reward of the trajectories trained on"),
    "tool_calls": ("calls", "mean tool calls of a trajectory whose code ran"),
    "no_call": ("share", "trajectories without any tool call"),
    "call_success": ("share", "calls that ended without an error"),
    "entropy": ("nats a token", "the policy's entropy, estimated on the sampled tokens"),
    "trained_entropy": ("nats a token", "the policy's entropy, exact, on the trained tokens"),
    "sampled_tokens": ("tokens", "sampled in the batch"),
    "tokens_per_trajectory": ("tokens", "sampled in a trajectory, mean"),
    "trained_tokens": ("tokens", "with an advantage other than 0"),
    "groups": ("groups", "trained on in the step"),
    "equal_groups": ("groups", "whose rewards are all equal"),
    "resampled_groups": ("groups", "replaced because their rewards were all equal"),
    "stop_reasons": ("trajectories", "by how they ended"),
    "problems_left": ("problems", "that prompts were drawn from"),
    "optimizer_steps": ("steps", "taken on the batch"),
    "loss": ("", "the loss, a mean over the batch's tokens"),
    "grad_norm": ("", "norm of the gradient before clipping, mean of the optimizer steps"),
    "clipped": ("share", "tokens that lost their gradient to the clip"),
    "clipped_high": ("share", "of these, with a ratio above the range"),
    "clipped_low": ("share", "of these, with a ratio below the range"),
    "dual_clipped": ("share", "tokens that lost their gradient to the dual clip"),
    "kl": ("nats a token", "KL(old || new), the k3 estimate"),
    "importance": ("", "mean weight of truncated importance sampling"),
    "importance_capped": ("share", "tokens whose importance weight was capped"),
    "staleness": ("steps", "between the weights that sampled a group and those trained, mean"),
    "staleness_max": ("steps", "the same, maximum"),
    "carried_trajectories": ("trajectories", "that go on in the next batch"),
    "held_out": ("", "mean reward on held-out problems, where rl.evaluate_every asks for it"),
    "sample_seconds": ("s", "until the batch was sampled"),
    "train_seconds": ("s", "of the optimizer steps"),
    "step_seconds": ("s", "from the end of the step before to the end of this one"),
    "tokens_per_second": ("tokens/s", "sampled tokens by step_seconds"),
    "peak_memory_mb": ("MiB", "peak memory of training"),
    "learning_rate": ("", "of the optimizer step"),
}
"""Name: (unit, meaning) of what ``metrics.jsonl`` holds a line."""


def summarize_updates(updates: list[dict[str, float]], steps: list[dict[str, float]]) -> dict[str, float | None]:
    """A batch's metrics from those of its minibatches: sums become means over the trained tokens. ``updates`` come from
    ``forward_backward``, ``steps`` from ``optim_step``."""
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
    """What a step's trajectories looked like."""
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
