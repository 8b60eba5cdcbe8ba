"""Keys and values of running sequences, and attention over them: one step's tokens against what is cached."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from aster.engines.local.attention import causal, causal_mask
from aster.engines.local.cpu.kernels import kernels_for
from aster.errors import UserError

FEW = 32
"""Compiled attention takes the tokens of sequences that feed at most so many; above, a product of matrices is faster."""
APART = 4
"""So few sequences are done one by one where other slots are idle: together, the idle ones would cost as much as they do."""


class KeyValueCache:
    """Keys and values of all slots, allocated once: per layer (slots, KV heads, capacity, D)."""

    def __init__(self, config: Any, slots: int, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        heads = config.num_key_value_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (slots, heads, capacity, size)
        layers = range(config.num_hidden_layers)
        try:
            self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
            self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        except RuntimeError as error:
            raise UserError(
                f"rollout.cache_tokens: no memory for the cache of {slots} contexts of {capacity} tokens; lower the context's "
                f"budget or rollout.slots ({str(error).splitlines()[0][:120]})"
            ) from error
        self.slots, self.capacity = slots, capacity
        self.kernels = kernels_for(size, capacity, dtype, device)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` positions of a slot to another."""
        for tensor in (*self.keys, *self.values):
            tensor[target, :, :length] = tensor[source, :, :length]


class DecodeLayout:
    """One step: which slot and position each of the N flat tokens has.

    Sequences that feed few tokens come first. With compiled kernels, each of their tokens is done by itself. Without, "few" is
    one, and they are done together, as one batched product over all used slots: slots are kept without gaps, so that the
    cache is read in place. The others (a prompt, a tool's long response) are done one by one.
    """

    def __init__(self, cache: KeyValueCache, fed: list[tuple[int, int, int]], used: int, device: torch.device) -> None:
        """``fed`` has (slot, first position, tokens) for each sequence, in the order of the flat row: by the number of tokens,
        those with one by slot."""
        self.cache, self.used = cache, used
        few = FEW if cache.kernels else 1
        slots: list[int] = []
        positions: list[int] = []
        self.longer: list[tuple[slice, int, int, Tensor | None]] = []
        """Flat tokens, slot, length with them, and mask of each sequence that feeds more than a few."""
        self.count = 0
        """Tokens of those that feed few."""
        for slot, position, tokens in fed:
            end = position + tokens
            if tokens > few or self.longer:
                self.longer.append((slice(len(slots), len(slots) + tokens), slot, end, causal_mask(tokens, end, device)))
            else:
                self.count += tokens
            if tokens == 1:
                slots.append(slot)
                positions.append(position)
            else:
                slots += [slot] * tokens
                positions += range(position, end)
        self.positions = torch.tensor(positions, device=device)
        self.slots = torch.tensor(slots, device=device)
        self.in_order = False
        """Every used slot feeds one token: queries need not be put in place."""
        self.apart: list[tuple[int, int]] = []
        """Slot and length of each sequence that feeds one token, where they are done one by one."""
        if cache.kernels is not None:
            return
        self.in_order = slots[: self.count] == list(range(used))
        if not self.in_order and self.count <= APART:
            self.apart = list(zip(slots[: self.count], (position + 1 for position in positions), strict=False))
        elif self.count:
            self._together(slots[: self.count], positions[: self.count], device)

    def _together(self, slots: list[int], positions: list[int], device: torch.device) -> None:
        """Prepare the batched product over all used slots."""
        if not self.in_order:
            taken = dict(zip(slots, range(self.count), strict=True))
            # Slots that feed nothing now take any query; their output is not read.
            self.queries = torch.tensor([taken.get(slot, 0) for slot in range(self.used)], device=device)
            self.rows = torch.tensor(slots, dtype=torch.long, device=device)
        last = [0] * self.used
        for slot, position in zip(slots, positions, strict=True):
            last[slot] = position
        self.length = max(last) + 1
        self.bias: Tensor | None = None
        if min(last) + 1 < self.length:
            self.bias = self._bias(torch.tensor(last, device=device))

    def _bias(self, last: Tensor) -> Tensor:
        """(slots, 1, 1, length): what hides the positions behind the ``last`` (slots,) that each query sees."""
        allowed = torch.arange(self.length, device=last.device) <= last[:, None]
        bias = torch.zeros(allowed.shape, dtype=self.cache.keys[0].dtype, device=last.device)
        return bias.masked_fill_(~allowed, float("-inf"))[:, None, None, :]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """See ``attention.Layout``. Writes the new keys and values first."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        size = query.shape[2]
        keys.view(-1, size).index_copy_(0, self.rows_of_cache, key.reshape(-1, size))
        values.view(-1, size).index_copy_(0, self.rows_of_cache, value.reshape(-1, size))
        return self.mix(layer, query.transpose(0, 1), scaling).transpose(0, 1)

    @functools.cached_property
    def rows_of_cache(self) -> Tensor:
        """(KV heads * N,): where the new keys and values go, in a layer's cache as rows of D."""
        heads = self.cache.keys[0].shape[1]
        first = (self.slots * heads)[None, :] + torch.arange(heads, device=self.slots.device)[:, None]
        return (first * self.cache.capacity + self.positions).flatten()

    @functools.cached_property
    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """Slots and positions of the flat tokens."""
        return self.slots.numpy(), self.positions.numpy()

    @functools.cached_property
    def _few(self) -> tuple[np.ndarray, np.ndarray]:
        """Slot of each token of those that feed few, and how many positions it sees."""
        return self.slots[: self.count].numpy(), (self.positions[: self.count] + 1).numpy()

    def mix(self, layer: int, query: Tensor, scaling: float) -> Tensor:
        """Attention of query (N, H, D) to keys and values that are in the cache, the new ones too -> (N, H, D)."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        few = query[: self.count]
        if self.cache.kernels is not None:
            mixed = self.cache.kernels.mix(few, (keys, values), *self._few, scaling)
        elif self.in_order:
            mixed = self._batched(few, keys, values, scaling)
        elif self.apart:
            mixed = torch.cat([self._one(few[i], keys, values, *each, scaling) for i, each in enumerate(self.apart)])
        elif self.count:
            mixed = self._batched(few.index_select(0, self.queries), keys, values, scaling).index_select(0, self.rows)
        else:
            mixed = few
        if not self.longer:
            return mixed
        others = [
            causal(query[flat].transpose(0, 1), keys[slot, :, :end], values[slot, :, :end], scaling, mask).transpose(0, 1)
            for flat, slot, end, mask in self.longer
        ]
        return torch.cat([mixed, *others])

    def _one(self, query: Tensor, keys: Tensor, values: Tensor, slot: int, length: int, scaling: float) -> Tensor:
        """One query (H, D) of one slot -> (1, H, D); heads as in :meth:`_batched`."""
        heads, size = query.shape
        kv_heads = keys.shape[1]
        grouped = query.reshape(1, kv_heads, heads // kv_heads, size)
        mixed = F.scaled_dot_product_attention(
            grouped, keys[slot : slot + 1, :, :length], values[slot : slot + 1, :, :length], scale=scaling
        )
        return mixed.reshape(1, heads, size)

    def _batched(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        """One query a slot, (used, H, D). Heads that share keys are taken as the queries of one head, so that keys are read
        once and in place."""
        heads, size = query.shape[1:]
        kv_heads = keys.shape[1]
        grouped = query.reshape(self.used, kv_heads, heads // kv_heads, size)
        seen = (slice(self.used), slice(None), slice(self.length))
        mixed = F.scaled_dot_product_attention(grouped, keys[seen], values[seen], attn_mask=self.bias, scale=scaling)
        return mixed.reshape(self.used, heads, size)
