"""The metrics of training: their computation, and a table of their names, units and meanings.

``entropy`` is an estimate: the mean of minus the log-probability over all sampled tokens of a batch (unbiased at temperature
1). ``trained_entropy`` is exact and covers only the trained tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from aster.algorithms.base import Group, is_equal
from aster.types import CallStatus, Trajectory


class Metric(NamedTuple):
    """What a number in ``metrics.jsonl`` is."""

    unit: str
    """Empty: a number without a unit."""
    meaning: str
    title: str = ""
    """Its name above a chart."""

    @property
    def heading(self) -> str:
        """Title and unit of a chart."""
        return f"{self.title} ({self.unit})" if self.unit else self.title


METRICS: dict[str, Metric] = {
    "reward": Metric("", "mean reward of the trajectories trained on", "Reward on training problems"),
    "tool_calls": Metric("calls", "tool calls whose code ran, mean per trajectory", "Tool calls per trajectory"),
    "no_call": Metric("share", "trajectories without any tool call"),
    "call_success": Metric("share", "calls that ended without an error"),
    "entropy": Metric("nats per token", "entropy of the policy, estimated on the sampled tokens", "Policy entropy"),
    "trained_entropy": Metric("nats per token", "entropy of the policy, exact, on the trained tokens"),
    "sampled_tokens": Metric("tokens", "sampled in the batch"),
    "tokens_per_trajectory": Metric("tokens", "sampled per trajectory, mean", "Sampled tokens per trajectory"),
    "trained_tokens": Metric("tokens", "with an advantage other than 0"),
    "groups": Metric("groups", "trained on in the step"),
    "equal_groups": Metric("groups", "whose rewards are all equal"),
    "resampled_groups": Metric("groups", "replaced because their rewards were all equal"),
    "stop_reasons": Metric("trajectories", "by stop reason", "Stop reasons"),
    "problems_left": Metric("problems", "from which prompts were drawn"),
    "optimizer_steps": Metric("steps", "taken on the batch"),
    "loss": Metric("", "loss, mean over the tokens of the batch", "Loss"),
    "grad_norm": Metric("", "norm of the gradient before clipping, mean over the optimizer steps"),
    "clipped": Metric("share", "tokens without a gradient because of the clip"),
    "clipped_high": Metric("share", "the same, with a ratio above the range"),
    "clipped_low": Metric("share", "the same, with a ratio below the range"),
    "dual_clipped": Metric("share", "tokens without a gradient because of the dual clip"),
    "kl": Metric("nats per token", "KL(old || new), the k3 estimate"),
    "importance": Metric("", "mean weight of truncated importance sampling"),
    "importance_capped": Metric("share", "tokens whose importance weight was capped"),
    "staleness": Metric("steps", "between the weights that sampled a group and those trained, mean"),
    "staleness_max": Metric("steps", "the same, maximum"),
    "carried_trajectories": Metric("trajectories", "that continue in the next batch"),
    "held_out": Metric("", "mean reward on held-out problems, at the steps that rl.evaluate_every sets"),
    "sample_seconds": Metric("s", "until the batch was sampled"),
    "train_seconds": Metric("s", "of the optimizer steps"),
    "step_seconds": Metric("s", "from the end of the previous step to the end of this one"),
    "tokens_per_second": Metric("tokens/s", "sampled tokens divided by step_seconds"),
    "peak_memory_mb": Metric("MiB", "peak memory of training"),
    "learning_rate": Metric("", "of the optimizer step"),
    "tokens": Metric("tokens", "of the trajectories of an SFT step"),
    "seconds": Metric("s", "of an SFT step"),
}
"""By name: every number in a line of ``metrics.jsonl``."""


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
    if "entropy_sum" in total:
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
