"""Drawing tokens from logits. Random numbers belong to (seed, position), never to the batch."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from aster.engines.base import SamplingParams

BLOCK = 256
"""Tokens that are summed up together: a draw finds the block first, then the token in it, and never adds up a whole row."""
SMALL = 2048
"""A vocabulary of at most so many tokens is added up as a whole."""
NUCLEI = (256, 4096)
"""How many of the likeliest tokens a nucleus is looked for among, before a row is put in order whole."""


def uniform(seeds: list[int], positions: list[int]) -> np.ndarray:
    """One number in [0, 1) per row from (seed, position) alone: SplitMix64 (Steele et al. 2014), 53 bits."""
    with np.errstate(over="ignore"):
        x = np.array(seeds, dtype=np.uint64) + np.array(positions, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def choose(logits: Tensor, params: list[SamplingParams], positions: list[int]) -> tuple[list[int], list[float]]:
    """Draw one token a row from logits (R, V); returns the tokens and their untempered log-probabilities.

    A row's token is that in which ``uniform * total`` falls when the weights ``exp((logit - largest) / temperature)`` are laid
    end to end. They are left unnormalised and in float32; positions within a row are added up in float64.
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
        weights[rows] = nucleus(weights[rows], top_p)
    tokens = _draw(weights, torch.from_numpy(uniform([each.seed for each in params], positions)).to(logits.device))
    if tempered:
        greedy = torch.tensor([value == 0.0 for value in temperatures], device=logits.device)
        tokens = torch.where(greedy, logits.argmax(-1), tokens)
    logprobs = logits.gather(-1, tokens[:, None])[:, 0] - log_total
    return tokens.tolist(), logprobs.tolist()


def nucleus(weights: Tensor, top_p: Tensor) -> Tensor:
    """Nucleus sampling (Holtzman et al. 2020): weights (R, V) without those that come after ``top_p`` (R,) of the mass, the
    likeliest first. The token that reaches it stays."""
    wanted = top_p.double() * weights.sum(-1, dtype=torch.float64)
    kept = torch.zeros_like(weights)
    rows = torch.arange(len(weights), device=weights.device)
    for most in (*NUCLEI, weights.shape[-1]):
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
    """The token in which each row's draw in [0, 1) falls: weights (R, V), draws (R,) -> (R,)."""
    count, vocabulary = weights.shape
    if vocabulary <= SMALL:
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
    """(R,) from (R, 1). A sum that was rounded up may end behind the last token that has any weight: then the likeliest."""
    return torch.where(weights.gather(-1, token) > 0, token, weights.argmax(-1, keepdim=True))[:, 0]
