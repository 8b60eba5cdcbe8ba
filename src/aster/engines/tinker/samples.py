"""What a Tinker server is sent to train on, and what is made of its answer. Pure functions; no network.

A sample of T tokens becomes one datum of T - 1 places: place p predicts token p + 1 from the tokens up to p.

The API's losses are sums over tokens, as ours are, so a sample's weights are sent as they are. SkyRL's JAX backend takes the
mean over each sequence's weights instead, and of that the mean over the sequences of an optimizer step
(``reduction="sequence_mean"``). There the weights are multiplied by the sample's trained tokens and the number of samples,
which makes the gradient the sum's again. It holds for one ``forward_backward`` a step: of several it is the mean, weighted by
their samples. A weight that is the same for a whole sequence cancels out of that backend's cross-entropy, so the cold start is
sent as CISPO whose ratio is clipped to exactly 1: its gradient is that of the weighted log-likelihood.

Truncated importance sampling, which the API does not have, is exact all the same: its weight w = min(exp(old - sampler), cap)
carries no gradient, so it goes into the advantages. The dual clip cannot be sent: a token whose advantage is negative and whose
ratio has passed it keeps its gradient; ``dual_clipped`` counts such tokens.
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
"""Losses of ours that the API has."""
Reduction = Literal["sum", "sequence_mean"]


@dataclass(frozen=True, slots=True)
class Request:
    """A loss under the API's name, its settings, and what each datum holds beside its tokens: lists of length T - 1."""

    loss_fn: str
    config: dict[str, float] | None
    inputs: list[dict[str, list[float]]]


def trained(sample: TrainingSample, logprobs: list[float]) -> list[float]:
    """Of log-probabilities by place (T - 1 of them) those of the trained tokens."""
    return [logprobs[position - 1] for position in sample.trained_positions]


def make_request(samples: list[TrainingSample], loss: Loss, reduction: Reduction) -> Request:
    """The samples as the API wants them. For ``ppo`` every sample has its old log-probabilities."""
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
    """w = min(exp(old - sampler), cap) of each trained token; 1 where there is nothing to correct for."""
    positions = sample.trained_positions
    if sample.sampler_logprobs is None or sample.old_logprobs is None:
        return [1.0] * len(positions)
    sampler = torch.tensor([sample.sampler_logprobs[position] for position in positions])
    log_ratio = (torch.tensor(sample.old_logprobs) - sampler).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    weights: list[float] = log_ratio.exp().clamp(max=cap).tolist()
    return weights


def _factor(sample: TrainingSample, samples: int, reduction: Reduction) -> float:
    """What undoes the server's means."""
    return 1.0 if reduction == "sum" else float(len(sample.trained_positions) * samples)


def _mask(sample: TrainingSample, positions: list[int], reduction: Reduction) -> dict[str, list[float]]:
    """The mask over which a sequence's mean is taken. The API's ``ppo`` has none: an advantage of 0 is as good there."""
    return {} if reduction == "sum" else {"weights": _spread(sample, positions, [1.0] * len(positions))}


def _spread(sample: TrainingSample, positions: list[int], values: list[float]) -> list[float]:
    """Values of the trained tokens at their places; 0 elsewhere."""
    spread = [0.0] * (len(sample.token_ids) - 1)
    for position, value in zip(positions, values, strict=True):
        spread[position - 1] = value
    return spread


def measure(samples: list[TrainingSample], logprobs: list[list[float]], loss: Loss) -> dict[str, float]:
    """The local trainer's metrics from the log-probabilities of the trained tokens that the server computed.

    They are computed here because servers report different ones. ``entropy_sum`` of ``ppo`` is an estimate, minus the
    log-probability summed over the trained tokens, since the server gives no logits; ``cross_entropy`` has none, because tokens
    that a teacher wrote say nothing about the policy's entropy.
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
    """The gradient's norm out of an optimizer step's metrics, whatever prefix the server gives it; NaN where it gives none."""
    for name, value in (metrics or {}).items():
        if name.rpartition("/")[2].partition(":")[0] == "grad_norm":
            return float(value)
    return float("nan")
