"""Converts samples to training requests for a Tinker server, and its answers to metrics. Pure functions without network.

A sample of T tokens becomes one datum of T - 1 places: place p predicts token p + 1 from the tokens up to p.

The API's losses are sums over tokens, like ours, so a sample's weights are sent unchanged. SkyRL's JAX backend takes the
mean over each sequence's weights instead, and then the mean over the sequences of an optimizer step
(``reduction="sequence_mean"``). For it, the weights are multiplied by the sample's trained tokens and by the number of samples,
so that the gradient is that of the sum. This holds for one ``forward_backward`` per step; with several, the gradient is their
mean, weighted by their numbers of samples. A weight that is the same for a whole sequence cancels out of that backend's
cross-entropy. So the cold start is sent as CISPO with a ratio clipped to exactly 1, whose gradient is that of the weighted
log-likelihood.

The API has no truncated importance sampling, but it can be sent exactly: its weight w = min(exp(old - sampler), cap) has no
gradient, so the advantages are multiplied by it. The dual clip cannot be sent: a token with a negative advantage and a ratio
above the limit keeps its gradient. ``dual_clipped`` counts such tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from aster.algorithms.base import Loss
from aster.algorithms.losses import LOG_RATIO_BOUND
from aster.algorithms.tokens import LossTokens
from aster.errors import UserError
from aster.types import TrainingSample

REMOTE = ("ppo", "cispo")
"""Our losses that the API supports."""
Reduction = Literal["sum", "sequence_mean"]


@dataclass(frozen=True, slots=True)
class Request:
    """A loss by its name in the API, its settings, and the inputs of each datum besides its tokens: lists of length T - 1."""

    loss_fn: str
    config: dict[str, float] | None
    inputs: list[dict[str, list[float]]]


def trained(sample: TrainingSample, logprobs: list[float]) -> list[float]:
    """Select the trained tokens' values from log-probabilities by place (T - 1 of them)."""
    return [logprobs[position - 1] for position in sample.trained_positions]


def make_request(samples: list[TrainingSample], loss: Loss, reduction: Reduction) -> Request:
    """The samples in the form of the API. Except for ``cross_entropy``, every sample must have its old log-probabilities.
    Raises UserError for a loss that the API does not support."""
    if loss.name == "cross_entropy":
        return _cross_entropy(samples, reduction)
    if loss.function is not None or loss.name not in REMOTE:
        raise UserError(
            f"rl.algorithm: a Tinker server computes the losses {', '.join(REMOTE)}, not {loss.name}; use policy.kind=local, "
            "or an algorithm with one of these"
        )
    inputs = []
    for sample in samples:
        positions = sample.trained_positions
        assert sample.old_logprobs is not None
        factor = _factor(sample, len(samples), reduction)
        corrections = importance_weights(sample, loss.settings.get("importance_cap", math.inf))
        advantages = [
            weight * factor * correction for weight, correction in zip(sample.trained_weights, corrections, strict=True)
        ]
        inputs.append(
            {
                "logprobs": _spread(sample, positions, sample.old_logprobs),
                "advantages": _spread(sample, positions, advantages),
                **_mask(sample, positions, reduction),
            }
        )
    clip = {
        "clip_low_threshold": 1.0 - loss.settings["clip_low"],
        "clip_high_threshold": 1.0 + loss.settings["clip_high"],
    }
    return Request(loss.name, clip, inputs)


def _cross_entropy(samples: list[TrainingSample], reduction: Reduction) -> Request:
    inputs = []
    for sample in samples:
        positions = sample.trained_positions
        weights = _spread(
            sample, positions, [weight * _factor(sample, len(samples), reduction) for weight in sample.trained_weights]
        )
        if reduction == "sum":
            inputs.append({"weights": weights})
        else:
            none = [0.0] * (len(sample.token_ids) - 1)
            inputs.append({"advantages": weights, "logprobs": none, **_mask(sample, positions, reduction)})
    if reduction == "sum":
        return Request("cross_entropy", None, inputs)
    return Request("cispo", {"clip_low_threshold": 1.0, "clip_high_threshold": 1.0}, inputs)


def importance_weights(sample: TrainingSample, cap: float) -> list[float]:
    """w = min(exp(old - sampler), cap) of each trained token. 1 where log-probabilities of either are missing."""
    positions = sample.trained_positions
    if sample.sampler_logprobs is None or sample.old_logprobs is None:
        return [1.0] * len(positions)
    sampler = torch.tensor([sample.sampler_logprobs[position] for position in positions])
    log_ratio = (torch.tensor(sample.old_logprobs) - sampler).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    weights: list[float] = log_ratio.exp().clamp(max=cap).tolist()
    return weights


def _factor(sample: TrainingSample, samples: int, reduction: Reduction) -> float:
    """The factor that undoes the server's means."""
    return 1.0 if reduction == "sum" else float(len(sample.trained_positions) * samples)


def _mask(sample: TrainingSample, positions: list[int], reduction: Reduction) -> dict[str, list[float]]:
    """The mask over which a sequence's mean is taken. The API's ``ppo`` has no mask, and an advantage of 0 has the same
    effect."""
    return {} if reduction == "sum" else {"weights": _spread(sample, positions, [1.0] * len(positions))}


def _spread(sample: TrainingSample, positions: list[int], values: list[float]) -> list[float]:
    """Put the values of the trained tokens at their places, and 0 elsewhere."""
    spread = [0.0] * (len(sample.token_ids) - 1)
    for position, value in zip(positions, values, strict=True):
        spread[position - 1] = value
    return spread


def measure(samples: list[TrainingSample], logprobs: list[list[float]], loss: Loss) -> dict[str, float]:
    """The local trainer's metrics, computed from the server's log-probabilities of the trained tokens.

    They are computed here because servers report different metrics. The server gives no logits, so ``entropy_sum`` is an
    estimate: minus the sum of the trained tokens' log-probabilities. ``cross_entropy`` has no ``entropy_sum``, because tokens
    that a teacher wrote do not show the policy's entropy.
    """
    new = _flat(logprobs)
    weights = _flat([sample.trained_weights for sample in samples])
    lengths = [len(found) for found in logprobs]
    if loss.name == "cross_entropy":
        value, metrics = loss(LossTokens(new, new, new, weights, lengths))
        return {**metrics, "loss": float(value)}
    old = _flat([sample.old_logprobs or [] for sample in samples])
    sampler = _flat(
        [
            (sample.old_logprobs or [])
            if sample.sampler_logprobs is None
            else [sample.sampler_logprobs[position] for position in sample.trained_positions]
            for sample in samples
        ]
    )
    value, metrics = loss(LossTokens(new, old, sampler, weights, lengths))
    return {**metrics, "loss": float(value), "entropy_sum": float(-new.sum())}


def _flat(values: list[list[float]]) -> Tensor:
    return torch.tensor([value for part in values for value in part], dtype=torch.float32)


def grad_norm(metrics: dict[str, Any] | None) -> float:
    """The gradient's norm from an optimizer step's metrics, with any prefix. NaN where the server does not report it."""
    for name, value in (metrics or {}).items():
        if name.rpartition("/")[2].partition(":")[0] == "grad_norm":
            return float(value)
    return float("nan")
