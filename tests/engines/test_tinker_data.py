"""What a server computes from the data that it is sent has the gradient that the local trainer has."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("torch")
import torch
from torch import Tensor

from aster.algorithms.grpo import Grpo
from aster.algorithms.losses import clipped_policy_loss, cross_entropy
from aster.engines.base import Loss, TrainingSample
from aster.engines.tinker.samples import Reduction, Request, grad_norm, make_request, measure

PPO = Grpo(dual_clip=1e9, importance_cap=1.5).loss


def samples(old: bool) -> list[TrainingSample]:
    """Of different lengths, with gaps in the mask, and advantages of both signs."""
    rng = random.Random(0)
    made = []
    for length, scale in ((9, 0.02), (4, -0.05), (13, 0.01)):
        mask = [0, *(int(rng.random() < 0.6) for _ in range(length - 2)), 1]
        made.append(
            TrainingSample(
                [rng.randrange(50) for _ in range(length)],
                mask,
                scale,
                [rng.uniform(-3, -0.1) * flag for flag in mask] if old else None,
                [rng.uniform(-3, -0.1) for flag in mask if flag] if old else None,
            )
        )
    return made


def server_loss(request: Request, logprobs: list[Tensor], reduction: Reduction) -> Tensor:
    """As the servers' own documentation and code have it: by token, then summed; or the mean over a sequence's weights, and of
    that the mean over sequences."""
    total = torch.zeros((), dtype=torch.float64)
    for inputs, new in zip(request.inputs, logprobs, strict=True):
        given = {name: torch.tensor(values, dtype=torch.float64) for name, values in inputs.items()}
        weights = given.get("weights", torch.ones_like(new))
        if request.loss_fn == "cross_entropy":
            losses = -new
        else:
            assert request.config is not None
            ratio = (new - given["logprobs"]).exp()
            clipped = ratio.clamp(request.config["clip_low_threshold"], request.config["clip_high_threshold"])
            if request.loss_fn == "cispo":
                losses = -clipped.detach() * new * given["advantages"]
            else:
                losses = -torch.minimum(ratio * given["advantages"], clipped * given["advantages"])
        summed = (losses * weights).sum()
        total = total + (summed if reduction == "sum" else summed / weights.sum() / len(logprobs))
    return total


def local_loss(batch: list[TrainingSample], logprobs: list[Tensor], loss: Loss) -> Tensor:
    """The local trainer's."""
    new = torch.cat([new[[p - 1 for p in s.trained_positions]] for s, new in zip(batch, logprobs, strict=True)])
    scales = torch.tensor([s.weights for s in batch for _ in s.trained_positions], dtype=torch.float64)
    if loss.name == "cross_entropy":
        return cross_entropy(new, scales)[0]
    old = torch.tensor([value for s in batch for value in s.old_logprobs or []], dtype=torch.float64)
    sampler = torch.tensor([(s.sampler_logprobs or [])[p] for s in batch for p in s.trained_positions], dtype=torch.float64)
    return clipped_policy_loss(new, old, sampler, scales, **loss.settings)[0]


@pytest.mark.parametrize("reduction", ["sum", "sequence_mean"])
@pytest.mark.parametrize("loss", [Loss("cross_entropy"), PPO], ids=["cross_entropy", "ppo"])
def test_the_servers_gradient_is_the_local_one(loss: Loss, reduction: Reduction) -> None:
    batch = samples(old=loss.name == "ppo")
    generator = torch.Generator().manual_seed(1)
    logprobs = [-3 * torch.rand(len(s.token_ids) - 1, generator=generator, dtype=torch.float64) for s in batch]
    gradients = []
    for compute in (
        lambda new: server_loss(make_request(batch, loss, reduction), new, reduction),
        lambda new: local_loss(batch, new, loss),
    ):
        leaves = [new.clone().requires_grad_() for new in logprobs]
        compute(leaves).backward()
        gradients.append(torch.cat([leaf.grad for leaf in leaves if leaf.grad is not None]))
    assert gradients[1].count_nonzero() > 5
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-9)


def test_the_metrics_are_the_local_trainers() -> None:
    batch = samples(old=True)
    present = [[-0.7 - 0.1 * i for i, _ in enumerate(s.trained_positions)] for s in batch]
    metrics = measure(batch, present, PPO)
    flat = [value for part in present for value in part]
    places = [torch.zeros(len(s.token_ids) - 1, dtype=torch.float64) for s in batch]
    for sample, place, values in zip(batch, places, present, strict=True):
        for position, value in zip(sample.trained_positions, values, strict=True):
            place[position - 1] = value
    assert metrics["loss"] == pytest.approx(float(local_loss(batch, places, PPO)), rel=1e-5)
    assert metrics["tokens"] == len(flat)
    assert metrics["entropy_sum"] == pytest.approx(-sum(flat))
    assert metrics["importance_capped"] > 0
    supervised = measure(batch, present, Loss("cross_entropy"))
    assert supervised["nll_sum"] == pytest.approx(-sum(flat))
    assert "entropy_sum" not in supervised  # a teacher's tokens say nothing about the policy's entropy


def test_the_gradients_norm_is_found_whatever_it_is_called() -> None:
    assert grad_norm({"skyrl.ai/grad_norm": 1.5, "skyrl.ai/learning_rate": 1.0}) == 1.5
    assert grad_norm({"grad_norm:mean": 2.5}) == 2.5
    assert grad_norm(None) != grad_norm(None)  # NaN
