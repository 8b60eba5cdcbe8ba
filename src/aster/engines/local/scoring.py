"""Log-probabilities and entropies of chosen tokens, without ever holding all logits.

A 32K-token trajectory with a vocabulary of 150K would need 18 GiB for its logits in float32, and as much again for their
gradient. Here rows are computed in chunks, and the backward pass computes a chunk's logits again from the hidden states, so
that there is never more than one chunk. With p = softmax(logits) and the gradient g of a row's log-probability,

    d logits = g (onehot(target) - p)        d hidden = d logits W        d W = sum over rows of d logits^T hidden

The idea is that of Liger Kernel's and Apple's cut cross-entropy (arXiv 2411.09009). This is plain torch, for any device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

LOGITS_ELEMENTS = {"cpu": 1 << 23, "cuda": 1 << 27}
"""Most elements of a chunk of logits, by device: in float32 32 MiB (for the CPU's caches) and 512 MiB."""


def score_tokens(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy (nats) of each row's target, both (N,) in float32; the entropy carries no gradient.

    ``hidden`` (N, E) are the states that predict, ``weight`` (V, E) and ``bias`` (V,) the output layer, ``targets`` (N,) token
    ids.
    """
    return _ScoreTokens.apply(hidden, weight, bias, targets)


class _Chunks:
    """The logits of a few rows at a time, in buffers that are allocated once. With new buffers for every chunk, small tensors
    that live longer would be put where the last chunk was, and the C allocator's heap would grow by a chunk each time."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        self.hidden, self.weight, self.bias = hidden, weight, bias
        limit = LOGITS_ELEMENTS.get(weight.device.type, LOGITS_ELEMENTS["cpu"])
        self.rows = max(1, min(len(hidden), limit // len(weight)))
        shape = (self.rows, len(weight))
        self._product = hidden.new_empty(shape)
        self._logits = self._product if hidden.dtype == torch.float32 else hidden.new_empty(shape, dtype=torch.float32)
        self.scratch = torch.empty_like(self._logits)

    def __iter__(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(rows, their logits in float32, scratch of the same shape); the next chunk overwrites both."""
        for start in range(0, len(self.hidden), self.rows):
            part = slice(start, min(start + self.rows, len(self.hidden)))
            count = part.stop - part.start
            product, logits = self._product[:count], self._logits[:count]
            torch.mm(self.hidden[part], self.weight.t(), out=product)
            if logits.dtype != product.dtype:
                logits.copy_(product)
            if self.bias is not None:
                logits += self.bias
            yield part, logits, self.scratch[:count]


class _ScoreTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor]:
        chosen, entropy, normalizers = hidden.new_empty(3, len(hidden), dtype=torch.float32).unbind()
        for part, logits, scratch in _Chunks(hidden, weight, bias):
            highest = logits.amax(-1, keepdim=True)
            logits -= highest
            total = torch.exp(logits, out=scratch).sum(-1)
            normalizer = total.log()
            normalizers[part] = normalizer + highest[:, 0]
            chosen[part] = logits.gather(-1, targets[part, None])[:, 0] - normalizer
            # H = log Z - mean logit. Relative to the highest one, so that no digits are lost.
            entropy[part] = normalizer - scratch.mul_(logits).sum(-1) / total
        ctx.save_for_backward(hidden, weight, bias, targets, normalizers)
        ctx.mark_non_differentiable(entropy)
        return chosen, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normalizers = ctx.saved_tensors
        wanted_hidden, wanted_weight, wanted_bias, _ = ctx.needs_input_grad
        hidden_gradient = torch.empty_like(hidden) if wanted_hidden else None
        # Summed over chunks in float32, whatever the weights are in.
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if wanted_weight else None
        bias_gradient = torch.zeros_like(bias, dtype=torch.float32) if wanted_bias else None
        for part, logits, _ in _Chunks(hidden, weight, bias):
            gradient = gradients[0][part]
            spread = logits.sub_(normalizers[part, None]).exp_().mul_(-gradient[:, None])
            spread[torch.arange(len(gradient), device=spread.device), targets[part]] += gradient
            if bias_gradient is not None:
                bias_gradient += spread.sum(0)
            spread = spread.to(weight.dtype)
            if hidden_gradient is not None:
                torch.mm(spread, weight, out=hidden_gradient[part])
            if weight_gradient is not None:
                if weight_gradient.dtype == spread.dtype:
                    weight_gradient.addmm_(spread.t(), hidden[part])
                else:
                    weight_gradient += spread.t() @ hidden[part]
        return (
            hidden_gradient,
            None if weight_gradient is None else weight_gradient.to(weight.dtype),
            None if bias_gradient is None else bias_gradient.to(bias.dtype),
            None,
        )
