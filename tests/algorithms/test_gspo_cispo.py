from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aster.algorithms.losses import LOSSES, POLICY_METRICS, cispo_loss, gspo_loss, merge_metrics
from aster.algorithms.tokens import LossTokens

POLICY_LOSSES = ("ppo", "gspo", "cispo")
CLIP = {"clip_low": 0.1, "clip_high": 0.2}
LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any)


def random_tokens(seed: int, lengths: list[int], drift: float = 0.3) -> LossTokens:
    """Tokens of some sequences, off-policy enough for every bound to act."""
    generator = torch.Generator().manual_seed(seed)
    old, new, mismatch, advantages = torch.randn(4, sum(lengths), generator=generator, dtype=torch.float64)
    return LossTokens((old + drift * new).requires_grad_(), old, old + mismatch, advantages, lengths)


def part(tokens: LossTokens, first: int, last: int) -> LossTokens:
    """The sequences ``first`` to ``last``."""
    here = slice(sum(tokens.lengths[:first]), sum(tokens.lengths[:last]))
    return LossTokens(
        tokens.logprobs[here],
        tokens.old_logprobs[here],
        tokens.sampler_logprobs[here],
        tokens.advantages[here],
        tokens.lengths[first:last],
    )


def gradient_of(loss: torch.Tensor, tokens: LossTokens) -> torch.Tensor:
    return torch.autograd.grad(loss, tokens.logprobs)[0]


def log(ratios: list[float]) -> torch.Tensor:
    return torch.tensor(ratios, dtype=torch.float64).log().requires_grad_()


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("ratios", "advantages", "loss", "gradient", "counted"),
    [
        # sqrt(1.5 * 0.6) = 0.949 is inside, though each token is outside.
        ([1.5, 0.6], [1.0, -2.0], math.sqrt(0.9), [-math.sqrt(0.9), 2 * math.sqrt(0.9)], {}),
        ([1.0, 2.25], [1.0, 2.0], -3.6, [0.0, 0.0], {"clipped_high": 2}),
        ([0.5, 0.5], [-1.0, 0.0], 0.9, [0.0, 0.0], {"clipped_low": 1}),
        # One sequence, and a token of either sign: only the good one is clipped.
        ([1.5, 1.5], [1.0, -1.0], -1.2 + 1.5, [0.0, 1.5], {"clipped_high": 1}),
        ([0.5, 0.5], [1.0, -1.0], -0.5 + 0.9, [-0.5, 0.0], {"clipped_low": 1}),
    ],
)
def test_gspo_by_hand(
    ratios: list[float], advantages: list[float], loss: float, gradient: list[float], counted: dict[str, int]
) -> None:
    new = log(ratios)
    zeros = numbers(0.0, 0.0)
    found, metrics = gspo_loss(new, zeros, zeros, numbers(*advantages), [2], **CLIP)
    assert found.item() == pytest.approx(loss)
    assert torch.autograd.grad(found, new)[0].tolist() == pytest.approx(gradient)
    for name in ("clipped_high", "clipped_low", "dual_clipped", "importance_capped"):
        assert metrics[name] == counted.get(name, 0), name
    assert metrics["ratio_min"] == metrics["ratio_max"] == pytest.approx(math.sqrt(math.prod(ratios)))
    assert metrics["kl_sum"] == pytest.approx(sum(r - 1 - math.log(r) for r in ratios))


@pytest.mark.parametrize(
    ("ratio", "advantage", "weight", "counted"),
    [
        (1.1, 2.0, 1.1, None),
        (3.0, 1.0, 1.2, "clipped_high"),
        (3.0, -1.0, 1.2, "clipped_high"),  # bounded whatever the sign
        (0.3, 1.0, 0.9, "clipped_low"),
        (0.3, -1.0, 0.9, "clipped_low"),
    ],
)
def test_cispo_by_hand(ratio: float, advantage: float, weight: float, counted: str | None) -> None:
    new = log([ratio])
    found, metrics = cispo_loss(new, numbers(0.0), numbers(0.0), numbers(advantage), **CLIP)
    assert found.item() == pytest.approx(-weight * advantage * math.log(ratio))
    assert torch.autograd.grad(found, new)[0].item() == pytest.approx(-weight * advantage)
    for name in ("clipped_high", "clipped_low", "dual_clipped", "importance_capped"):
        assert metrics[name] == (name == counted), name
    assert metrics["ratio_min"] == metrics["ratio_max"] == pytest.approx(ratio)


def test_cispo_bounds_no_ratio_from_below_by_default() -> None:
    new = log([1e-6, 100.0])
    loss, metrics = cispo_loss(new, numbers(0.0, 0.0), numbers(0.0, 0.0), numbers(1.0, 1.0))
    assert torch.autograd.grad(loss, new)[0].tolist() == pytest.approx([-1e-6, -5.0])
    assert (metrics["clipped_low"], metrics["clipped_high"]) == (0, 1)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 30))
def test_gspo_of_sequences_of_one_token_is_ppo_without_dual_clip(seed: int, count: int) -> None:
    tokens = random_tokens(seed, [1] * count)
    loss, metrics = LOSSES["gspo"](tokens, **CLIP)
    expected, expected_metrics = LOSSES["ppo"](tokens, dual_clip=math.inf, **CLIP)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient_of(loss, tokens), gradient_of(expected, tokens))
    assert metrics == pytest.approx(expected_metrics)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), LENGTHS)
def test_on_policy_all_have_the_gradient_of_the_policy(seed: int, lengths: list[int]) -> None:
    tokens = random_tokens(seed, lengths, drift=0.0)
    weight = (tokens.old_logprobs - tokens.sampler_logprobs).exp().clamp(max=2.0)
    for name in POLICY_LOSSES:
        loss, metrics = LOSSES[name](tokens)
        torch.testing.assert_close(gradient_of(loss, tokens), -weight * tokens.advantages)
        assert metrics["clipped_high"] == metrics["clipped_low"] == metrics["kl_sum"] == 0, name


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), LENGTHS, st.integers(0, 8))
def test_the_sum_does_not_depend_on_the_split_between_sequences(seed: int, lengths: list[int], cut: int) -> None:
    tokens = random_tokens(seed, lengths)
    for name in POLICY_LOSSES:
        expected, metrics = LOSSES[name](tokens, **CLIP)
        pieces = [part(tokens, 0, cut), part(tokens, cut, len(lengths))]
        found = [LOSSES[name](piece, **CLIP) for piece in pieces]
        total = found[0][0] + found[1][0]
        torch.testing.assert_close(total, expected)
        torch.testing.assert_close(gradient_of(total, tokens), gradient_of(expected, tokens))
        assert merge_metrics(each for _, each in found) == pytest.approx(metrics)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), LENGTHS, st.floats(-2.0, 2.0).filter(lambda value: abs(value) > 0.01))
def test_tokens_that_share_an_advantage_weigh_as_their_sequence(seed: int, lengths: list[int], advantage: float) -> None:
    tokens = random_tokens(seed, lengths)
    size = abs(advantage)
    for name in POLICY_LOSSES:
        # One number for all tokens, and +-1 for all tokens times that number.
        loss, metrics = LOSSES[name](replace(tokens, advantages=torch.full_like(tokens.advantages, advantage)), **CLIP)
        unit, unit_metrics = LOSSES[name](
            replace(tokens, advantages=torch.full_like(tokens.advantages, advantage / size)), **CLIP
        )
        torch.testing.assert_close(loss, size * unit)
        torch.testing.assert_close(gradient_of(loss, tokens), size * gradient_of(unit, tokens))
        assert metrics == pytest.approx(unit_metrics)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), LENGTHS, st.floats(0.0, 0.9), st.floats(0.0, 9.0))
def test_cispo_gives_every_token_with_an_advantage_a_gradient(seed: int, lengths: list[int], low: float, high: float) -> None:
    tokens = random_tokens(seed, lengths, drift=2.0)
    tokens.advantages[::3] = 0.0
    loss, _ = LOSSES["cispo"](tokens, clip_low=low, clip_high=high)
    assert torch.equal(gradient_of(loss, tokens).sign(), -tokens.advantages.sign())


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_metrics_have_the_announced_names(name: str) -> None:
    assert set(LOSSES[name](random_tokens(3, [4, 5]))[1]) == {"tokens", *POLICY_METRICS}


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_a_microbatch_without_tokens_gives_nothing(name: str) -> None:
    loss, metrics = LOSSES[name](random_tokens(0, [0, 0]))
    assert loss.item() == 0
    assert metrics["tokens"] == 0


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_importance_scales_the_loss_up_to_its_cap_and_carries_no_gradient(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(6, generator=generator, dtype=torch.float64)
    advantages = torch.randn(6, generator=generator, dtype=torch.float64)

    def of(importance: float) -> tuple[float, torch.Tensor, dict[str, Any]]:
        new = (old + 0.01).requires_grad_()
        sampler = (old - math.log(importance)).requires_grad_()
        loss, metrics = LOSSES[name](LossTokens(new, old, sampler, advantages, [4, 2]), importance_cap=2.0)
        new_gradient, sampler_gradient = torch.autograd.grad(loss, [new, sampler], allow_unused=True)
        assert sampler_gradient is None
        return loss.item(), new_gradient, metrics

    plain, plain_gradient, _ = of(1.0)
    for importance, weight, capped in ((0.5, 0.5, 0), (1.9, 1.9, 0), (3.0, 2.0, 6), (1e12, 2.0, 6)):
        loss, gradient, metrics = of(importance)
        assert loss == pytest.approx(weight * plain)
        torch.testing.assert_close(gradient, weight * plain_gradient)
        assert metrics["importance_sum"] == pytest.approx(6 * weight)
        assert metrics["importance_capped"] == capped


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_far_apart_policies_stay_finite(name: str) -> None:
    new = torch.tensor([0.0, -500.0, 0.0, -500.0], requires_grad=True)
    old = torch.tensor([-500.0, 0.0, -500.0, 0.0])
    tokens = LossTokens(new, old, -old - 500, torch.tensor([1.0, 1.0, -1.0, -1.0]), [1, 1, 1, 1])
    loss, metrics = LOSSES[name](tokens)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient_of(loss, tokens)).all()
    assert all(math.isfinite(value) for value in metrics.values())


def test_gspo_refuses_lengths_that_are_not_those_of_its_tokens() -> None:
    three = torch.zeros(3)
    with pytest.raises(ValueError, match=r"\b4\b.*\b3\b"):
        gspo_loss(three, three, three, three, [2, 2])


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_shapes_that_would_broadcast_are_refused(name: str) -> None:
    three = torch.zeros(3)
    with pytest.raises(ValueError, match=r"\(3,\), \(1,\)"):
        LOSSES[name](LossTokens(three, three, three, torch.zeros(1), [3]))
