"""Attention for ragged work, plugged into any ``transformers`` decoder through its attention interface.

A model loaded with ``attn_implementation="aster"`` is called on one flat row of tokens, shape (1, N), from many sequences,
with ``layout=`` telling which token belongs to which sequence:

- :class:`PackedLayout`: whole sequences side by side, for training. Each sequence attends to itself alone; no padding.
- ``sampler.DecodeLayout``: the next tokens of running sequences, against a cache of keys and values.

The linear layers see one flat matrix and waste nothing on padding; only attention knows about sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

IMPLEMENTATION = "aster"


class Layout(Protocol):
    """Knows which of the N flat tokens attend to what."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """query (H, N, D), key and value (KV heads, N, D) -> (H, N, D)."""


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _attention_mask: Tensor | None,
    *,
    scaling: float,
    layout: Layout,
    **_settings: Any,
) -> tuple[Tensor, None]:
    """The hook ``transformers`` calls: query (1, H, N, D), key and value (1, KV heads, N, D) -> (1, N, H, D)."""
    output = layout.attend(int(module.layer_idx), query[0], key[0], value[0], scaling)  # type: ignore[arg-type]
    return output.transpose(0, 1).unsqueeze(0), None


AttentionInterface.register(IMPLEMENTATION, _attention)


def causal_mask(queries: int, length: int, device: torch.device) -> Tensor | None:
    """Which of ``length`` tokens each of the last ``queries`` sees, (Q, L); None where :func:`causal` needs no mask."""
    if not 1 < queries < length:
        return None
    return torch.ones(queries, length, dtype=torch.bool, device=device).tril(length - queries)


def causal(query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Tensor | None = None) -> Tensor:
    """Causal attention of one sequence whose queries are its last tokens: query (H, Q, D), key and value (KV, L, D); ``mask``
    from :func:`causal_mask`."""
    queries, length = query.shape[1], key.shape[1]
    output = F.scaled_dot_product_attention(
        query.unsqueeze(0),
        key.unsqueeze(0),
        value.unsqueeze(0),
        attn_mask=mask,
        is_causal=queries == length and queries > 1,
        scale=scaling,
        enable_gqa=query.shape[0] != key.shape[0],
    )
    return output[0]


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """Sequences side by side; ``lengths`` add up to N."""

    lengths: list[int]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:  # noqa: ARG002
        """See :class:`Layout`."""
        parts = zip(query.split(self.lengths, 1), key.split(self.lengths, 1), value.split(self.lengths, 1), strict=True)
        return torch.cat([causal(q, k, v, scaling) for q, k, v in parts], 1)

    def positions(self) -> Tensor:
        """Position ids (1, N): each sequence counts from 0."""
        return torch.cat([torch.arange(length) for length in self.lengths]).unsqueeze(0)
