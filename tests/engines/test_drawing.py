"""Tokens are drawn from the distribution, by seed and position alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aster.engines import SamplingParams
from aster.engines.local import drawing
from aster.engines.local.drawing import BLOCK, SMALL_VOCABULARY, apply_top_p, sample_tokens, uniform


def request(temperature: float = 1.0, top_p: float = 1.0, seed: int = 0) -> SamplingParams:
    return SamplingParams(max_tokens=1, temperature=temperature, top_p=top_p, seed=seed)


@given(
    rows=st.lists(st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 10**6)), min_size=2, max_size=6),
    temperature=st.sampled_from([0.0, 0.6, 1.0, 2.0]),
    top_p=st.sampled_from([0.3, 0.95, 1.0]),
)
@settings(max_examples=40, deadline=None)
def test_a_draw_depends_on_seed_and_position_alone(rows: list[tuple[int, int]], temperature: float, top_p: float) -> None:
    logits = torch.randn(len(rows), 50, generator=torch.Generator().manual_seed(0))
    requests = [request(temperature, top_p, seed) for seed, _ in rows]
    positions = [position for _, position in rows]
    together, _ = sample_tokens(logits, requests, positions)
    # Alone, and beside requests with other settings.
    alone = [sample_tokens(logits[i : i + 1], requests[i : i + 1], positions[i : i + 1])[0][0] for i in range(len(rows))]
    beside, _ = sample_tokens(logits.repeat(2, 1), [*requests, *[request(1.7, 0.5, 3)] * len(rows)], positions * 2)
    assert together == alone == beside[: len(rows)]


def draws(logits: torch.Tensor, count: int, **params: float) -> torch.Tensor:
    """Frequencies of ``count`` draws from one row of logits."""
    tokens, _ = sample_tokens(logits.repeat(count, 1), [request(seed=11, **params)] * count, list(range(count)))
    return torch.bincount(torch.tensor(tokens), minlength=len(logits)) / count


def test_draws_follow_the_tempered_distribution() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, float("-inf")])
    for temperature in (0.5, 1.0, 2.0):
        frequencies = draws(logits, 40_000, temperature=temperature)
        torch.testing.assert_close(frequencies, (logits / temperature).softmax(-1), atol=0.01, rtol=0)


def test_top_p_keeps_the_smallest_nucleus() -> None:
    logits = torch.tensor([0.05, 0.5, 0.15, 0.3]).log()
    torch.testing.assert_close(draws(logits, 40_000, top_p=0.6), torch.tensor([0.0, 0.625, 0.0, 0.375]), atol=0.01, rtol=0)
    assert draws(logits, 100, top_p=0.01)[1] == 1
    assert (draws(logits, 4000, top_p=1.0) > 0).all()
    # Of tempered probabilities, as everywhere: at temperature 0.5 the first two hold 93%.
    assert (draws(logits, 4000, top_p=0.9, temperature=0.5) > 0).tolist() == [False, True, False, True]


def test_logprobs_are_untempered() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    for temperature, top_p in ((0.0, 1.0), (0.3, 1.0), (3.0, 0.7)):
        [token], [logprob] = sample_tokens(logits, [request(temperature, top_p)], [5])
        assert logprob == pytest.approx(float(logits.log_softmax(-1)[0, token]), abs=1e-6)


def test_greedy_takes_the_largest_logit() -> None:
    logits = torch.randn(200, 300, generator=torch.Generator().manual_seed(3))
    tokens, _ = sample_tokens(logits, [request(temperature=0)] * 200, list(range(200)))  # a whole number, as YAML may give it
    assert tokens == logits.argmax(-1).tolist()


def test_uniform_numbers_are_uniform_and_uncorrelated() -> None:
    numbers = uniform([5] * 20_000, list(range(20_000)))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.01
    assert abs(((numbers[1:] - 0.5) * (numbers[:-1] - 0.5)).mean()) < 0.002
    assert len(set(uniform(list(range(5000)), [7] * 5000))) == 5000


def test_draws_over_many_blocks_follow_the_distribution() -> None:
    """A vocabulary of several blocks that does not fill its last one; mass at its very end and in every block."""
    vocabulary = SMALL_VOCABULARY + 3 * BLOCK + 17
    logits = torch.full((vocabulary,), float("-inf"))
    places = torch.tensor([0, BLOCK - 1, BLOCK, 2 * BLOCK + 5, vocabulary - 1])
    weights = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25])
    logits[places] = weights.log()
    found = draws(logits, 20_000)
    torch.testing.assert_close(found[places], weights, atol=0.015, rtol=0)
    assert float(found[places].sum()) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("vocabulary", [700, SMALL_VOCABULARY + 700])
def test_the_largest_draw_never_falls_behind_the_last_token(monkeypatch: pytest.MonkeyPatch, vocabulary: int) -> None:
    largest = np.nextafter(1.0, 0.0)
    monkeypatch.setattr(drawing, "uniform", lambda seeds, _: np.full(len(seeds), largest))
    logits = torch.randn(200, vocabulary, generator=torch.Generator().manual_seed(4)) * 5
    logits[:, vocabulary - 100 :] = float("-inf")
    tokens, logprobs = sample_tokens(logits, [request()] * 200, [0] * 200)
    assert max(tokens) < vocabulary - 100
    assert np.isfinite(logprobs).all()


@given(st.integers(0, 2**31), st.sampled_from([5, 300, 9000]), st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.99]))
@settings(max_examples=30, deadline=None)
def test_a_nucleus_is_the_smallest_set_that_reaches_its_mass(seed: int, vocabulary: int, top_p: float) -> None:
    """Flat rows, whose nucleus is wider than the tokens that are looked at first, and steep ones side by side."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.stack([torch.rand(vocabulary, generator=generator), torch.rand(vocabulary, generator=generator) ** 40])
    kept = apply_top_p(weights, torch.tensor([top_p, top_p]))
    for row, left in zip(weights.double(), kept, strict=True):
        ordered = row.sort(descending=True).values
        enough = int((ordered.cumsum(0) < top_p * row.sum()).sum()) + 1
        assert abs(int((left > 0).sum()) - enough) <= 1  # a sum in another order may cross the border one token later
        assert float(left[left > 0].min()) >= float(ordered[enough].float() if enough < vocabulary else 0.0)
