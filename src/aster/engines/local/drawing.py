"""Sampling tokens from logits. Random numbers depend on (seed, position), never on the batch."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from aster.engines.base import SamplingParams

BLOCK = 256
"""Tokens that are summed together: a draw finds the block first, then the token in it, and needs no cumulative sum of a row."""
SMALL_VOCABULARY = 2048
"""For a vocabulary of at most so many tokens the cumulative sum of a whole row is faster."""
TOP_P_CANDIDATES = (256, 4096)
"""Top-p looks among so many of the likeliest tokens, in turn, before it sorts a whole row."""


def uniform(seeds: list[int], positions: list[int]) -> np.ndarray:
    """One number in [0, 1) for each (seed, position): SplitMix64 (Steele et al. 2014), 53 bits. Returns (B,)."""
    with np.errstate(over="ignore"):
        x = np.array(seeds, dtype=np.uint64) + np.array(positions, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def sample_tokens(logits: Tensor, params: list[SamplingParams], positions: list[int]) -> tuple[list[int], list[float]]:
    """Sample one token for each row of logits (B, V); returns the tokens and their untempered log-probabilities.

    With the weights ``exp((logit - largest) / temperature)``, the token is the first whose cumulative weight exceeds
    ``uniform * total``. Weights are unnormalised float32; they are summed in float64.
    """
    logits = logits.float()
    largest = logits.amax(-1, keepdim=True)
    weights = logits - largest
    temperatures = [each.temperature for each in params]
    tempered = any(value != 1.0 for value in temperatures)
    if tempered:
        weights /= torch.tensor(temperatures, dtype=torch.float32, device=logits.device).clamp_min_(1e-6)[:, None]
    weights.exp_()
    log_total = logits.logsumexp(-1) if tempered else largest[:, 0] + weights.sum(-1).log()
    rows = [row for row, each in enumerate(params) if each.top_p < 1.0 and each.temperature > 0.0]
    if rows:
        top_p = torch.tensor([params[row].top_p for row in rows], device=logits.device)
        weights[rows] = apply_top_p(weights[rows], top_p)
    tokens = _draw(weights, torch.from_numpy(uniform([each.seed for each in params], positions)).to(logits.device))
    if tempered:
        greedy = torch.tensor([value == 0.0 for value in temperatures], device=logits.device)
        tokens = torch.where(greedy, logits.argmax(-1), tokens)
    logprobs = logits.gather(-1, tokens[:, None])[:, 0] - log_total
    return tokens.tolist(), logprobs.tolist()


def apply_top_p(weights: Tensor, top_p: Tensor) -> Tensor:
    """Nucleus sampling (Holtzman et al. 2020): weights (B, V) with 0 for all but the likeliest tokens that together reach
    ``top_p`` (B,) of the sum. The token that reaches it stays."""
    wanted = top_p.double() * weights.sum(-1, dtype=torch.float64)
    kept = torch.zeros_like(weights)
    rows = torch.arange(len(weights), device=weights.device)
    for most in (*TOP_P_CANDIDATES, weights.shape[-1]):
        ordered, order = weights[rows].topk(min(most, weights.shape[-1]))
        before = ordered.cumsum(-1, dtype=torch.float64) - ordered
        dropped = before >= wanted[rows, None]
        dropped[:, 0] = False
        kept[rows] = torch.zeros_like(weights[rows]).scatter_(-1, order, ordered.masked_fill(dropped, 0.0))
        rows = rows[before[:, -1] + ordered[:, -1] < wanted[rows]]
        if not len(rows):
            break
    return kept


def _draw(weights: Tensor, draws: Tensor) -> Tensor:
    """The token in which each row's draw in [0, 1) falls: weights (B, V), draws (B,) -> (B,)."""
    count, vocabulary = weights.shape
    if vocabulary <= SMALL_VOCABULARY:
        ends = weights.cumsum(-1, dtype=torch.float64)
        token = torch.searchsorted(ends, draws[:, None] * ends[:, -1:], right=True).clamp_max_(vocabulary - 1)
        return _with_weight(token, weights)
    blocks = F.pad(weights, (0, -vocabulary % BLOCK)).view(count, -1, BLOCK)
    sums = blocks.sum(-1).double()
    ends = sums.cumsum(-1)
    target = (draws * ends[:, -1])[:, None]
    block = torch.searchsorted(ends, target, right=True).clamp_max_(ends.shape[-1] - 1)
    inside = blocks[torch.arange(count, device=weights.device), block[:, 0]].cumsum(-1, dtype=torch.float64)
    start = ends.gather(-1, block) - sums.gather(-1, block)
    token = block * BLOCK + torch.searchsorted(inside, target - start, right=True).clamp_max_(BLOCK - 1)
    return _with_weight(token.clamp_max_(vocabulary - 1), weights)


def _with_weight(token: Tensor, weights: Tensor) -> Tensor:
    """token (B, 1) -> (B,). Rounding may put a draw behind the last token that has any weight: then the likeliest is taken."""
    return torch.where(weights.gather(-1, token) > 0, token, weights.argmax(-1, keepdim=True))[:, 0]
