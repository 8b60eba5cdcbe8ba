"""RL's optimizer steps on a batch: advantages, minibatches, and what a batch looked like.

On the first minibatch the old log-probabilities are the present ones; for the later ones they are computed before the
first step.

``entropy`` in the metrics is the policy's entropy in nats per sampled token, estimated over all tokens of the batch as the mean
of minus their log-probability (unbiased at temperature 1). ``trained_entropy`` is exact, over the tokens that were trained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from aster.algorithms.advantages import group_advantages
from aster.algorithms.losses import merge_metrics
from aster.config import Rl
from aster.engines import AdamStep, Engine, Loss, TrainingSample
from aster.types import FAULTS, CallStatus, Trajectory

Group = list[Trajectory]


def learning_rate(settings: Rl, step: int, steps: int) -> float:
    """The rate of a step (from 1): linear warm-up, and linear decay to ``final_rate`` of it at the last step."""
    warm = min(1.0, step / (settings.warmup_steps + 1))
    decay = 1.0 - (1.0 - settings.final_rate) * (step - 1) / max(1, steps - 1)
    return settings.learning_rate * warm * decay


def is_equal(group: Group) -> bool:
    """True where all rewards are equal: no gradient."""
    return len({trajectory.reward for trajectory in _healthy(group)}) <= 1


def _healthy(group: Group) -> Group:
    """Without attempts that failed through no doing of the policy: it is not trained on them."""
    return [trajectory for trajectory in group if trajectory.stop_reason not in FAULTS]


async def train_batch(policy: Engine, settings: Rl, groups: list[Group], rate: float) -> dict[str, float | None]:
    """One optimizer step a minibatch; minibatches without any advantage are skipped, and counted."""
    batch_tokens = sum(t.sampled_tokens for group in groups for t in group)
    size = -(-len(groups) // settings.minibatches)
    minibatches = [
        [s for group in groups[start : start + size] for s in to_samples(group, batch_tokens, settings.normalize_std)]
        for start in range(0, len(groups), size)
    ]
    minibatches = [samples for samples in minibatches if samples]
    # Log-probabilities before the first step; on the first minibatch the present ones are those.
    for index in range(1, len(minibatches)):
        old = await policy.forward(minibatches[index])
        minibatches[index] = [
            TrainingSample(s.token_ids, s.loss_mask, s.scale, s.sampler_logprobs, logprobs)
            for s, logprobs in zip(minibatches[index], old, strict=True)
        ]
    loss = Loss("ppo", settings.clip_low, settings.clip_high, settings.dual_clip, settings.importance_cap)
    adam = AdamStep(rate, **settings.adam.model_dump())
    parts: list[dict[str, float]] = []
    stepped: list[dict[str, float]] = []
    for samples in minibatches:
        parts.append(await policy.forward_backward(samples, loss))
        stepped.append(await policy.optim_step(adam))
    if not parts:
        return {"optimizer_steps": 0, "loss": 0.0}
    total = merge_metrics(parts)
    tokens = total["tokens"]
    return {
        "optimizer_steps": len(parts),
        "loss": total["loss"],
        "trained_tokens": tokens,
        "trained_entropy": total["entropy_sum"] / tokens,
        "clipped": (total["clipped_high"] + total["clipped_low"]) / tokens,
        "clipped_high": total["clipped_high"] / tokens,
        "clipped_low": total["clipped_low"] / tokens,
        "dual_clipped": total["dual_clipped"] / tokens,
        "kl": total["kl_sum"] / tokens,
        "importance": total["importance_sum"] / tokens,
        "importance_capped": total["importance_capped"] / tokens,
        "grad_norm": sum(step["grad_norm"] for step in stepped) / len(stepped),
        "peak_memory_mb": max((step["peak_memory_mb"] for step in stepped if "peak_memory_mb" in step), default=None),
    }


def to_samples(group: Group, batch_tokens: int, normalize_std: bool) -> list[TrainingSample]:
    """A group as training samples, scaled for the token-mean over the batch; none where all rewards are equal."""
    if is_equal(group):
        return []
    healthy = _healthy(group)
    advantages = group_advantages([t.reward for t in healthy], normalize_std)
    return [
        TrainingSample(t.token_ids, t.loss_mask, float(advantage) / batch_tokens, t.logprobs)
        for t, advantage in zip(healthy, advantages, strict=True)
        if t.sampled_tokens
    ]


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
