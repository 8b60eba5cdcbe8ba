"""Attention over sequences of different lengths without padding, for any ``transformers`` decoder.

A model loaded with ``attn_implementation="aster"`` is called on one packed row of tokens, shape (1, P), from many sequences,
with ``layout=``, which tells which token belongs to which sequence:

- :class:`PackedLayout`: whole sequences side by side, for training. Each sequence attends to itself only.
- :class:`aster.engines.local.cache.DecodeLayout`: the next tokens of running sequences, and a cache of keys and values.

The linear layers compute one matrix without padding; only attention knows about sequences.
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
    """Knows which of the P packed tokens attend to what."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """query (H, P, D), key and value (KV, P, D) -> (H, P, D)."""


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
    """The function ``transformers`` calls: query (1, H, P, D), key and value (1, KV, P, D) -> (1, P, H, D)."""
    output = layout.attend(int(module.layer_idx), query[0], key[0], value[0], scaling)  # type: ignore[arg-type]
    return output.transpose(0, 1).unsqueeze(0), None


AttentionInterface.register(IMPLEMENTATION, _attention)


def causal_mask(queries: int, length: int, device: torch.device) -> Tensor | None:
    """Which of ``length`` tokens each of the last ``queries`` sees: (Q, L), or None where :func:`causal_attention` needs no
    mask."""
    if not 1 < queries < length:
        return None
    return torch.ones(queries, length, dtype=torch.bool, device=device).tril(length - queries)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Tensor | None = None) -> Tensor:
    """Causal attention of one sequence whose queries are its last tokens: query (H, Q, D), key and value (KV, L, D), ``mask``
    from :func:`causal_mask` -> (H, Q, D)."""
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
    """Whole sequences side by side; their ``lengths`` add up to P."""

    lengths: list[int]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:  # noqa: ARG002
        """See :class:`Layout`."""
        parts = zip(query.split(self.lengths, 1), key.split(self.lengths, 1), value.split(self.lengths, 1), strict=True)
        return torch.cat([causal_attention(q, k, v, scaling) for q, k, v in parts], 1)

    def positions(self) -> Tensor:
        """Position ids (1, P): each sequence counts from 0."""
        return torch.cat([torch.arange(length) for length in self.lengths]).unsqueeze(0)
