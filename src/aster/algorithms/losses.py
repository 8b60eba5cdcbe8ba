"""The losses of SFT and RL, as pure functions on flat tensors.

All arguments are flat tensors (N,): one entry for each trained token of a packed micro-batch, in any order. A loss is a *sum*.
The caller scales the weights or advantages by 1 / (trained tokens of the global batch) beforehand, so that the sum over all
micro-batches is the token mean over the global batch, however the batch is split or packed.

**Policy loss.** With new, old and sampler log-probabilities n, o, s and advantage A of a token,

    ratio     r  = exp(clamp(n - o, -20, 20))
    clip         = max(-A r, -A clamp(r, 1 - clip_low, 1 + clip_high))    PPO, arXiv 1707.06347; clip higher: DAPO, 2503.14476
    dual clip    = min(-A dual_clip, clip) where A < 0                    arXiv 1912.09729
    importance w = min(exp(clamp(o - s, -20, 20)), importance_cap)        no gradient
    loss         = sum(w * dual clip)

- o is the trainer's log-probability before the first update of the batch, s the one the sampling engine reported. The engines'
  numerics differ, so the batch is slightly off-policy even before the first update. w corrects for that: truncated importance
  sampling, from the blog post "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training" (Yao et al., 2025).
- Where n = o the ratio is 1 and clipping does nothing; it acts from a batch's second minibatch on.
- No KL term, as in DAPO and ASTER.

Deviation: the mean is over the tokens of the whole batch. verl takes it over each minibatch, so there the tokens of a smaller
minibatch weigh more.

**Metrics** are sums and counts, which add up over micro-batches, except those that end in ``_min`` and ``_max``;
:func:`merge_metrics` combines them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from aster.algorithms.base import LossFunction, LossTokens

LOG_RATIO_BOUND = 20.0
"""exp() of a larger difference could overflow in the gradient; verl bounds it so."""
POLICY_METRICS = (
    "clipped_high",
    "clipped_low",
    "dual_clipped",
    "importance_capped",
    "kl_sum",
    "importance_sum",
    "ratio_min",
    "ratio_max",
)
"""What :func:`clipped_policy_loss` reports, next to ``tokens``."""


def cross_entropy(logprobs: Tensor, weights: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Weighted negative log-likelihood, ``-(weights * logprobs).sum()``.

    ``logprobs`` (N,) carry the gradient, ``weights`` (N,) do not. Returns the loss (scalar) and the metrics ``tokens`` (N) and
    ``nll_sum`` (unweighted, nats).
    """
    _same_length(logprobs, weights)
    return -(weights * logprobs).sum(), {"tokens": float(logprobs.numel()), "nll_sum": float(-logprobs.detach().sum())}


def clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    sampler_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float = 10.0,
    importance_cap: float = 2.0,
) -> tuple[Tensor, dict[str, float]]:
    """PPO's clipped loss with an asymmetric clip, dual clip and truncated importance sampling; formulae above.

    ``logprobs`` (N,) carry the gradient; ``old_logprobs``, ``sampler_logprobs`` and ``advantages`` (N,) do not. Returns the
    loss (scalar) and the metrics

    - ``tokens``: N
    - ``clipped_high``, ``clipped_low``: tokens that lost their gradient because their ratio was above or below the clip range
    - ``dual_clipped``: tokens that lost it to the dual clip; ``importance_capped``: tokens whose weight w was capped
    - ``kl_sum``: of KL(old || new), each token's k3 estimate r - 1 - log r; ``importance_sum``: of the weights w
    - ``ratio_min``, ``ratio_max``: extremes of r (both 1 where N is 0)
    """
    _same_length(logprobs, old_logprobs, sampler_logprobs, advantages)
    log_ratio = (logprobs - old_logprobs).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    clipped = torch.maximum(plain, -advantages * ratio.clamp(1.0 - clip_low, 1.0 + clip_high))
    negative = advantages < 0
    bound = -advantages * dual_clip
    bounded = torch.where(negative, torch.minimum(bound, clipped), clipped)
    raw_importance = (old_logprobs - sampler_logprobs).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()
    importance = raw_importance.clamp(max=importance_cap).detach()
    loss = (importance * bounded).sum()
    with torch.no_grad():
        acted = clipped > plain
        values = [
            (acted & ~negative).sum(),
            (acted & negative).sum(),
            (negative & (clipped > bound)).sum(),
            (raw_importance > importance_cap).sum(),
            (ratio - 1.0 - log_ratio).sum(),
            importance.sum(),
            ratio.min() if ratio.numel() else ratio.new_ones(()),
            ratio.max() if ratio.numel() else ratio.new_ones(()),
        ]
        # One transfer from the device instead of one a metric.
        numbers = torch.stack([value.double() for value in values]).tolist()
    return loss, {"tokens": float(logprobs.numel()), **dict(zip(POLICY_METRICS, numbers, strict=True))}


def merge_metrics(parts: Iterable[dict[str, float]]) -> dict[str, float]:
    """The metrics of a batch from those of its micro-batches: sums, or extremes for names in ``_min`` and ``_max``.

    A micro-batch without tokens is left out; without any other the result is empty.
    """
    merged: dict[str, float] = {}
    for part in parts:
        if part["tokens"] == 0:
            continue
        for name, value in part.items():
            if name not in merged:
                merged[name] = value
            elif name.endswith("_min"):
                merged[name] = min(merged[name], value)
            elif name.endswith("_max"):
                merged[name] = max(merged[name], value)
            else:
                merged[name] += value
    return merged


def _same_length(*tensors: Tensor) -> None:
    """Refuse shapes that would broadcast into a wrong sum."""
    if any(tensor.dim() != 1 or tensor.shape != tensors[0].shape for tensor in tensors):
        raise ValueError(f"expected flat tensors of one length, got shapes {[tuple(tensor.shape) for tensor in tensors]}")


def _supervised(tokens: LossTokens) -> tuple[Tensor, dict[str, float]]:
    return cross_entropy(tokens.logprobs, tokens.advantages)


def _ppo(tokens: LossTokens, **settings: Any) -> tuple[Tensor, dict[str, float]]:
    return clipped_policy_loss(tokens.logprobs, tokens.old_logprobs, tokens.sampler_logprobs, tokens.advantages, **settings)


LOSSES: dict[str, LossFunction] = {"cross_entropy": _supervised, "ppo": _ppo}
"""By the names that engines know them by."""
