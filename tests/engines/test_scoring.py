"""Log-probabilities, entropies and gradients in chunks, against whole logits in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aster.engines.local import scoring
from aster.engines.local.scoring import score_tokens


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(0, 12),
    vocabulary=st.integers(2, 40),
    scale=st.sampled_from([0.1, 1.0, 30.0, 300.0]),
    biased=st.booleans(),
    chunk=st.integers(1, 200),
)
def test_scores_and_gradients_are_those_of_whole_logits(
    seed: int, rows: int, vocabulary: int, scale: float, biased: bool, chunk: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 5, generator=generator).requires_grad_()
    weight = (scale * torch.randn(vocabulary, 5, generator=generator)).requires_grad_()
    bias = torch.randn(vocabulary, generator=generator).requires_grad_() if biased else None
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    upstream = torch.randn(rows, generator=generator)
    wanted = [tensor for tensor in (hidden, weight, bias) if tensor is not None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(scoring.LOGITS_ELEMENTS, "cpu", chunk)
        logprobs, entropy = score_tokens(hidden, weight, bias, targets)
        found = torch.autograd.grad((logprobs * upstream).sum(), wanted)
    logits = hidden.double() @ weight.double().t() + (0 if bias is None else bias.double())
    expected = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    # float32 knows a logit of this size to 1e-7 of the size.
    tolerance = 1e-5 + 2e-6 * scale
    torch.testing.assert_close(logprobs.double(), expected, atol=tolerance, rtol=1e-4)
    exact = torch.distributions.Categorical(logits=logits).entropy() if rows else torch.zeros(0).double()
    torch.testing.assert_close(entropy.double(), exact, atol=tolerance, rtol=1e-4)
    assert not entropy.requires_grad
    assert (entropy <= math.log(vocabulary) + 1e-5).all()
    for one, other in zip(found, torch.autograd.grad((expected * upstream).sum(), wanted), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4 * max(1.0, scale), rtol=1e-3)


def test_half_precision_weights_give_float32_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(20, 16, generator=generator), torch.randn(50, 16, generator=generator)
    targets = torch.randint(50, (20,), generator=generator)
    half = [tensor.bfloat16().requires_grad_() for tensor in (hidden, weight)]
    logprobs, entropy = score_tokens(half[0], half[1], None, targets)
    assert logprobs.dtype == entropy.dtype == torch.float32
    whole = (half[0].detach().float() @ half[1].detach().float().t()).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    torch.testing.assert_close(logprobs, whole, atol=0.1, rtol=0.02)
    gradients = torch.autograd.grad(logprobs.sum(), half)
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16, torch.bfloat16]


def test_what_is_not_trained_gets_no_gradient() -> None:
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(6, 4)
    logprobs, _ = score_tokens(hidden, weight, None, torch.tensor([0, 1, 2]))
    logprobs.sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None
