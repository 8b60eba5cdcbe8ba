"""Keys and values of running sequences, and one step's attention to them, in plain torch on any device."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aster.engines.local.attention import causal_attention, causal_mask
from aster.errors import UserError


class Chunk(NamedTuple):
    """The tokens that one sequence feeds in a step."""

    slot: int
    start: int
    """Position of the first of them."""
    length: int

    @property
    def end(self) -> int:
        """The sequence's length with them."""
        return self.start + self.length


class KeyValueCache:
    """Keys and values of all slots, allocated once: two tensors (S, KV, C, D) for each layer."""

    def __init__(self, config: Any, slots: int, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        """For a ``transformers`` configuration. ``capacity`` is the longest sequence in tokens. UserError where the memory does
        not suffice."""
        self.head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (slots, config.num_key_value_heads, capacity, self.head_dim)
        layers = range(config.num_hidden_layers)
        try:
            self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
            self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        except RuntimeError as error:
            raise UserError(
                f"rollout.cache_tokens: no memory for the cache of {slots} contexts of {capacity} tokens; lower the context's "
                f"budget or rollout.slots ({str(error).splitlines()[0][:120]})"
            ) from error
        self.slots, self.capacity, self.dtype, self.device = slots, capacity, dtype, device

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` positions of one slot to another."""
        for tensor in (*self.keys, *self.values):
            tensor[target, :, :length] = tensor[source, :, :length]


class DecodeLayout:
    """One step: the P tokens of some sequences, side by side, and the cache they attend to. Implements
    :class:`aster.engines.local.attention.Layout`."""

    def __init__(self, cache: KeyValueCache, chunks: list[Chunk]) -> None:
        """``chunks`` in the order of the packed tokens."""
        self.cache, self.chunks = cache, chunks
        slots: list[int] = []
        positions: list[int] = []
        for slot, start, length in chunks:
            if length == 1:  # nearly all of them: worth a shortcut
                slots.append(slot)
                positions.append(start)
            else:
                slots += [slot] * length
                positions += range(start, start + length)
        self.slots = torch.tensor(slots, device=cache.device)
        """(P,): the slot of each token."""
        self.positions = torch.tensor(positions, device=cache.device)
        """(P,): its position in the sequence."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """See ``Layout``. Stores the new keys and values first."""
        self._store(layer, key, value)
        return torch.cat([self._attend_chunk(layer, query, index, scaling) for index in range(len(self.chunks))], 1)

    def _store(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Put key and value (KV, P, D) where they belong in a layer's cache."""
        width = self.cache.head_dim
        self.cache.keys[layer].view(-1, width).index_copy_(0, self._rows, key.reshape(-1, width))
        self.cache.values[layer].view(-1, width).index_copy_(0, self._rows, value.reshape(-1, width))

    @functools.cached_property
    def _rows(self) -> Tensor:
        """(KV * P,): where the new keys and values go, in a layer's cache as rows of D."""
        heads = self.cache.keys[0].shape[1]
        first = (self.slots * heads)[None, :] + torch.arange(heads, device=self.slots.device)[:, None]
        return (first * self.cache.capacity + self.positions).flatten()

    @functools.cached_property
    def _parts(self) -> list[tuple[slice, Tensor | None]]:
        """Packed tokens and mask of each chunk."""
        parts: list[tuple[slice, Tensor | None]] = []
        first = 0
        for chunk in self.chunks:
            parts.append((slice(first, first + chunk.length), causal_mask(chunk.length, chunk.end, self.cache.device)))
            first += chunk.length
        return parts

    def _attend_chunk(self, layer: int, query: Tensor, index: int, scaling: float) -> Tensor:
        """Attention of one chunk's queries, out of query (H, P, D), to its slot -> (H, Q, D)."""
        slot, end = self.chunks[index].slot, self.chunks[index].end
        tokens, mask = self._parts[index]
        keys, values = self.cache.keys[layer][slot, :, :end], self.cache.values[layer][slot, :, :end]
        return causal_attention(query[:, tokens], keys, values, scaling, mask)
