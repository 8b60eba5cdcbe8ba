from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aster.algorithms.losses import POLICY_METRICS, clipped_policy_loss, cross_entropy, merge_metrics

PAPER = {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 10.0, "importance_cap": 2.0}


def batch(seed: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """New, old and sampler log-probabilities and advantages, off-policy enough for every bound to act."""
    generator = torch.Generator().manual_seed(seed)
    old, drift, mismatch, advantages = torch.randn(4, tokens, generator=generator, dtype=torch.float64)
    return old + 1.5 * drift, old, old + mismatch, advantages


def one(ratio: float, advantage: float, importance: float = 1.0) -> tuple[float, float, dict[str, float]]:
    """Loss, gradient and metrics of one token with a given ratio."""
    new = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    sampler = torch.tensor([-math.log(importance)], dtype=torch.float64)
    loss, metrics = clipped_policy_loss(
        new, torch.zeros_like(sampler), sampler, torch.tensor([advantage], dtype=torch.float64), **PAPER
    )
    (gradient,) = torch.autograd.grad(loss, new)
    return loss.item(), gradient.item(), metrics


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "counted"),
    [
        (1.1, 2.0, -2.2, -2.2, None),
        (1.27, 1.0, -1.27, -1.27, None),  # above 1.2: only the high clip lets it through
        (1.5, 1.0, -1.28, 0.0, "clipped_high"),
        (0.5, 1.0, -0.5, -0.5, None),  # low ratio, good token: not clipped
        (0.5, -1.0, 0.8, 0.0, "clipped_low"),
        (1.5, -1.0, 1.5, 1.5, None),  # high ratio, bad token: only the dual clip bounds it
        (50.0, -1.0, 10.0, 0.0, "dual_clipped"),
        (50.0, 0.0, 0.0, 0.0, None),
    ],
)
def test_each_region_by_hand(ratio: float, advantage: float, loss: float, gradient: float, counted: str | None) -> None:
    found_loss, found_gradient, metrics = one(ratio, advantage)
    assert found_loss == pytest.approx(loss)
    assert found_gradient == pytest.approx(gradient)
    for name in ("clipped_high", "clipped_low", "dual_clipped", "importance_capped"):
        assert metrics[name] == (name == counted), name
    assert metrics["ratio_min"] == metrics["ratio_max"] == pytest.approx(ratio)
    assert metrics["kl_sum"] == pytest.approx(ratio - 1 - math.log(ratio))


@pytest.mark.parametrize(("importance", "weight", "capped"), [(0.5, 0.5, 0), (1.9, 1.9, 0), (3.0, 2.0, 1), (1e12, 2.0, 1)])
def test_importance_scales_the_loss_up_to_its_cap(importance: float, weight: float, capped: int) -> None:
    loss, gradient, metrics = one(1.1, 1.0, importance)
    assert loss == gradient == pytest.approx(-1.1 * weight)
    assert metrics["importance_sum"] == pytest.approx(weight)
    assert metrics["importance_capped"] == capped


def test_no_gradient_flows_through_the_importance_weight() -> None:
    new, old, sampler, advantages = batch(0, 50)
    loss, _ = clipped_policy_loss(new.requires_grad_(), old, sampler.requires_grad_(), advantages, **PAPER)
    assert torch.autograd.grad(loss, sampler, allow_unused=True) == (None,)


def test_far_apart_policies_stay_finite() -> None:
    new = torch.tensor([0.0, -500.0, 0.0, -500.0], requires_grad=True)
    old = torch.tensor([-500.0, 0.0, -500.0, 0.0])
    loss, metrics = clipped_policy_loss(new, old, -old - 500, torch.tensor([1.0, 1.0, -1.0, -1.0]), **PAPER)
    loss.backward()
    assert new.grad is not None
    assert torch.isfinite(loss)
    assert torch.isfinite(new.grad).all()
    assert all(math.isfinite(value) for value in metrics.values())


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.floats(0.0, 0.9), st.floats(0.0, 0.9))
def test_on_policy_clipping_does_nothing(seed: int, tokens: int, clip_low: float, clip_high: float) -> None:
    _, old, _, advantages = batch(seed, tokens)
    new = old.clone().requires_grad_()
    loss, metrics = clipped_policy_loss(
        new, old, old, advantages, clip_low=clip_low, clip_high=clip_high, dual_clip=1.5, importance_cap=1.0
    )
    loss.backward()
    assert loss.item() == pytest.approx(-advantages.sum().item())
    # At the clip range's very edge (clip 0) torch splits the gradient between max's two equal sides.
    if min(clip_low, clip_high) > 0:
        torch.testing.assert_close(new.grad, -advantages)
    assert metrics == {"tokens": tokens, "importance_sum": tokens, "ratio_min": 1, "ratio_max": 1} | dict.fromkeys(
        ("clipped_high", "clipped_low", "dual_clipped", "importance_capped", "kl_sum"), 0.0
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60), st.lists(st.integers(0, 60), max_size=6))
def test_the_sum_does_not_depend_on_the_split_nor_the_order(seed: int, tokens: int, cuts: list[int]) -> None:
    new, old, sampler, advantages = batch(seed, tokens)
    order = list(range(tokens))
    random.Random(seed).shuffle(order)
    bounds = sorted({0, tokens, *(min(cut, tokens) for cut in cuts)})
    # An empty micro-batch, too: one of trajectories that failed before their first token.
    pieces = [order[a:b] for a, b in itertools.pairwise(bounds)] + [[]]

    expected, metrics = clipped_policy_loss(new, old, sampler, advantages, **PAPER)
    parts = [clipped_policy_loss(new[p], old[p], sampler[p], advantages[p], **PAPER) for p in pieces]
    torch.testing.assert_close(torch.stack([loss for loss, _ in parts]).sum(), expected)
    assert merge_metrics(found for _, found in parts) == pytest.approx(metrics)

    expected, metrics = cross_entropy(new, advantages)
    parts = [cross_entropy(new[p], advantages[p]) for p in pieces]
    torch.testing.assert_close(torch.stack([loss for loss, _ in parts]).sum(), expected)
    assert merge_metrics(found for _, found in parts) == pytest.approx(metrics)


def test_metrics_have_the_announced_names() -> None:
    new, old, sampler, advantages = batch(3, 9)
    _, metrics = clipped_policy_loss(new, old, sampler, advantages, **PAPER)
    assert set(metrics) == {"tokens", *POLICY_METRICS}


def test_nothing_but_empty_batches_merge_to_nothing() -> None:
    assert merge_metrics([cross_entropy(torch.zeros(0), torch.zeros(0))[1]]) == {}


def test_cross_entropy_agrees_with_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(30, 11, generator=generator, requires_grad=True)
    targets = torch.randint(11, (30,), generator=generator)
    logprobs = torch.log_softmax(logits, dim=-1).gather(1, targets[:, None])[:, 0]
    loss, metrics = cross_entropy(logprobs, torch.full((30,), 1 / 30))
    expected = torch.nn.functional.cross_entropy(logits, targets)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], torch.autograd.grad(expected, logits)[0])
    assert metrics == {"tokens": 30, "nll_sum": pytest.approx(30 * expected.item())}


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3,\), \(1,\)"):
        cross_entropy(torch.zeros(3), torch.zeros(1))
    with pytest.raises(ValueError, match=r"\(3,\), \(3, 1\)"):
        clipped_policy_loss(torch.zeros(3), torch.zeros(3), torch.zeros(3), torch.zeros(3, 1), **PAPER)
