"""What a loss is a function of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class LossTokens:
    """What a loss is a function of: flat tensors (N,), one entry for each trained token of a micro-batch.

    The tokens of a sequence stand side by side, in order; no sequence is split between micro-batches.
    """

    logprobs: Tensor
    """(N,) under the model that is trained. The only one with a gradient."""
    old_logprobs: Tensor
    """(N,) under the model before the first step on this batch."""
    sampler_logprobs: Tensor
    """(N,) as the sampling engine reported them. Equal to ``old_logprobs`` where they are not known."""
    advantages: Tensor
    """(N,) divided by the trained tokens of the whole batch: a loss that sums over tokens is a mean over the batch."""
    lengths: list[int]
    """Trained tokens of each sequence; their sum is N."""


LossFunction = Callable[..., "tuple[Tensor, dict[str, float]]"]
"""``loss(tokens: LossTokens, **settings)`` returns the loss (a scalar tensor, summed over the tokens) and metrics: sums over
tokens, among them ``tokens``, and extremes, whose names end in ``_min`` or ``_max``. The log divides sums by tokens."""
