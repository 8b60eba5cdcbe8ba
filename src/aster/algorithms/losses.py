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

from aster.algorithms.tokens import LossFunction, LossTokens

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
    clipped, clipped_high, clipped_low = _clip(advantages, ratio, clip_low, clip_high)
    negative = advantages < 0
    bound = -advantages * dual_clip
    bounded = torch.where(negative, torch.minimum(bound, clipped), clipped)
    dual_clipped = negative & (clipped > bound)
    importance, capped = _importance(old_logprobs, sampler_logprobs, importance_cap)
    metrics = _metrics(ratio, log_ratio, clipped_high, clipped_low, dual_clipped, capped, importance)
    return (importance * bounded).sum(), metrics


def gspo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    sampler_logprobs: Tensor,
    advantages: Tensor,
    lengths: list[int],
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    importance_cap: float = 2.0,
) -> tuple[Tensor, dict[str, float]]:
    """GSPO's loss (arXiv 2507.18071): the ratio is that of a whole sequence, and so is the clip.

        s_i  = exp(mean over the sequence's tokens of (n - o))
        r_t  = sg[s_i] exp(n_t - sg[n_t])          GSPO-token (equation 14): its value is s_i, and tokens may have advantages
        loss = sum(w * max(-A r, -A clamp(r, 1 - clip_low, 1 + clip_high)))

    sg stops the gradient. ``lengths``: trained tokens of each sequence, which stand side by side; their sum is N. ValueError
    where it is not. The defaults are the paper's (section 5.1).

    The rest, and the metrics, are as for :func:`clipped_policy_loss`. The ratios that are clipped, and their extremes, are
    those of sequences, counted once a token; ``kl_sum`` is of the tokens' own ratios, and so comparable with the other losses'.
    ``dual_clipped`` is always 0.

    Deviations:

    - The mean is over the tokens of the batch; the paper takes it over each sequence and then over sequences, so that there the
      tokens of a shorter sequence weigh more. verl's ``token-mean`` and TRL's ``dapo`` aggregate as here.
    - w, the truncated importance weight of each token, is not in the paper. verl and TRL have it.
    - The mean of n - o is bounded by 20. verl bounds it by 10 and drops the gradient beyond, TRL has no bound.
    - TRL lets the gradient flow through the mean (the paper's plain GSPO) instead of through each token. Where the advantages
      and weights w of a sequence are all equal that is the same; elsewhere it is the same only summed over the sequence.
    """
    _same_length(logprobs, old_logprobs, sampler_logprobs, advantages)
    if sum(lengths) != logprobs.numel():
        raise ValueError(f"the lengths add up to {sum(lengths)}, and there are {logprobs.numel()} tokens")
    difference = (logprobs - old_logprobs).detach()
    means = [part.mean() for part in difference.split(lengths) if part.numel()]
    counts = torch.tensor([length for length in lengths if length], device=logprobs.device)
    of_sequence = torch.stack(means).repeat_interleave(counts) if means else difference
    ratio = of_sequence.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp() * (logprobs - logprobs.detach()).exp()
    clipped, clipped_high, clipped_low = _clip(advantages, ratio, clip_low, clip_high)
    importance, capped = _importance(old_logprobs, sampler_logprobs, importance_cap)
    log_ratio = difference.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    metrics = _metrics(ratio, log_ratio, clipped_high, clipped_low, torch.zeros_like(capped), capped, importance)
    return (importance * clipped).sum(), metrics


def cispo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    sampler_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: float = 1.0,
    clip_high: float = 4.0,
    importance_cap: float = 2.0,
) -> tuple[Tensor, dict[str, float]]:
    """CISPO's loss (MiniMax-M1, arXiv 2506.13585, equations 4 and 5): the ratio is clipped, and every token keeps its gradient.

        loss = -sum(w * sg[clamp(r, 1 - clip_low, 1 + clip_high)] * A * n)

    sg stops the gradient. ``clip_low`` 1 is no bound from below, as in the paper, which tuned only the upper bound and does not
    publish it. The upper bound of 5 (``clip_high`` 4) is that of ScaleRL (arXiv 2510.13786), where 4, 5 and 8 did equally well.
    TRL's ``epsilon_high`` is the bound, 1 + ``clip_high``.

    ``clipped_high`` and ``clipped_low`` count tokens of either sign of advantage whose ratio was bounded; ``dual_clipped`` is
    always 0. The rest, and the metrics, are as for :func:`clipped_policy_loss`.

    Deviations: w, the truncated importance weight, is not in the paper (verl and TRL have it); n - o is bounded by 20, as in
    verl, which acts only where the bounds of the ratio are wider.
    """
    _same_length(logprobs, old_logprobs, sampler_logprobs, advantages)
    log_ratio = (logprobs - old_logprobs).detach().clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    ratio = log_ratio.exp()
    weight = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    importance, capped = _importance(old_logprobs, sampler_logprobs, importance_cap)
    clipped_high, clipped_low = ratio > 1.0 + clip_high, ratio < 1.0 - clip_low
    metrics = _metrics(ratio, log_ratio, clipped_high, clipped_low, torch.zeros_like(capped), capped, importance)
    return -(importance * weight * advantages * logprobs).sum(), metrics


def _importance(old_logprobs: Tensor, sampler_logprobs: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """The truncated importance weights, without gradient, and which tokens' weights were cut."""
    raw = (old_logprobs - sampler_logprobs).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp().detach()
    return raw.clamp(max=cap), raw > cap


def _clip(advantages: Tensor, ratio: Tensor, low: float, high: float) -> tuple[Tensor, Tensor, Tensor]:
    """PPO's clip: the larger of the plain and the clipped loss of each token, and which tokens lost their gradient because
    their ratio was above or below the range."""
    plain = -advantages * ratio
    clipped = torch.maximum(plain, -advantages * ratio.clamp(1.0 - low, 1.0 + high))
    acted, negative = clipped > plain, advantages < 0
    return clipped, acted & ~negative, acted & negative


@torch.no_grad()
def _metrics(
    ratio: Tensor,
    log_ratio: Tensor,
    clipped_high: Tensor,
    clipped_low: Tensor,
    dual_clipped: Tensor,
    capped: Tensor,
    importance: Tensor,
) -> dict[str, float]:
    """The metrics of :data:`POLICY_METRICS`, and ``tokens``. ``ratio``: what was clipped; ``log_ratio``: of each token."""
    values = [
        clipped_high.sum(),
        clipped_low.sum(),
        dual_clipped.sum(),
        capped.sum(),
        # Not ratio - 1 - log_ratio: GSPO's ratios are those of sequences, and near 1 expm1 is more exact in float32.
        (log_ratio.expm1() - log_ratio).sum(),
        importance.sum(),
        ratio.min() if ratio.numel() else ratio.new_ones(()),
        ratio.max() if ratio.numel() else ratio.new_ones(()),
    ]
    # One transfer from the device instead of one a metric.
    numbers = torch.stack([value.double() for value in values]).tolist()
    return {"tokens": float(ratio.numel()), **dict(zip(POLICY_METRICS, numbers, strict=True))}


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


def _on_tokens(loss: LossFunction) -> LossFunction:
    """A loss of flat tensors as a function of :class:`LossTokens`."""

    def of_tokens(tokens: LossTokens, **settings: Any) -> tuple[Tensor, dict[str, float]]:
        return loss(tokens.logprobs, tokens.old_logprobs, tokens.sampler_logprobs, tokens.advantages, **settings)

    return of_tokens


def _gspo(tokens: LossTokens, **settings: Any) -> tuple[Tensor, dict[str, float]]:
    return _on_tokens(gspo_loss)(tokens, lengths=tokens.lengths, **settings)


LOSSES: dict[str, LossFunction] = {
    "cross_entropy": _supervised,
    "ppo": _on_tokens(clipped_policy_loss),
    "gspo": _gspo,
    "cispo": _on_tokens(cispo_loss),
}
"""By the names that engines know them by."""
