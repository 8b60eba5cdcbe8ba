"""Decoding steps as CUDA graphs: all their kernels launched at once.

A step of a small model is some hundred kernels, each shorter than Python takes to launch it. A graph is launched as a whole, on
tensors that stay where they are. So a step is captured for rounded numbers of slots and of positions: rows that stand for no
token write to places that hold nothing, and positions that are not there are masked.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from aster.engines.local.cache import DecodeLayout, KeyValueCache
from aster.engines.local.cpu.decoder import Decoder
from aster.errors import one_line
from aster.terminal import say

SHORTEST = 256
"""Positions of the smallest graph."""
STEPS_TO_DOUBLE = 8
"""Lengths between one power of two and the next: at most so much of attention's work is for nothing."""
SLOTS_APART = 16
"""Between the numbers of slots that graphs are captured for; below it they are powers of two."""
MOST_GRAPHS = 64
"""Kept; the one that was not used for longest goes first."""
MOVING_ROTATIONS = ("dynamic", "longrope")
"""Kinds of rotary embedding that look at the positions, on the processor, to choose their frequencies."""


class StaticLayout(DecodeLayout):
    """One token for each of the first slots, with positions that are read from a tensor at every run."""

    def __init__(self, cache: KeyValueCache, positions: Tensor, length: int) -> None:
        """``positions`` (slots,) are below ``length``."""
        self.cache, self.positions, self.length = cache, positions, length
        self.used = self.count = len(positions)
        self.slots = torch.arange(self.used, device=positions.device)
        self.in_order, self.longer = True, []
        self.bias = self._bias(positions)


class DecodeGraphs:
    """Runs steps in which every sequence feeds one token."""

    def __init__(self, decoder: Decoder, cache: KeyValueCache) -> None:
        self.decoder, self.cache = decoder, cache
        self.device = cache.keys[0].device
        self.inputs = torch.zeros((2, cache.slots), dtype=torch.long, device=self.device)
        """Token and position of each slot."""
        self.steps: OrderedDict[tuple[int, int], Callable[[], Tensor]] = OrderedDict()
        """By slots and positions."""
        self._places: list[int] = []
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        """All captures are on it: for every stream that it multiplies on, a library keeps room to work in."""
        self._pool: Any = None
        self.capturing = self._stream is not None
        """On a processor, steps are run as they are."""

    def renew(self) -> None:
        """Drop all graphs if a parameter is not where it was: the decoder was renewed."""
        places = [parameter.data_ptr() for parameter in self.decoder.model.parameters()]
        if places != self._places:
            self.steps.clear()
            self._places = places
            if self._stream is not None:
                self._pool = torch.cuda.graph_pool_handle()  # torch takes no pool again whose graphs have all gone

    def __call__(self, token_ids: list[int], positions: list[int]) -> Tensor:
        """Hidden states (N, H) of one token for each of the first N slots, whose keys and values go to ``positions``. They
        hold until the next call."""
        count = len(token_ids)
        slots, length = min(rounded_slots(count), self.cache.slots), min(rounded(max(positions) + 1), self.cache.capacity)
        filled = [0] * (slots - count)  # slots that nobody has
        self.inputs[:, :slots].copy_(torch.tensor([token_ids + filled, positions + filled]))
        step = self.steps.get((slots, length))
        if step is None:
            step = self.steps[slots, length] = self._step(slots, length)
            if len(self.steps) > MOST_GRAPHS:
                self.steps.popitem(last=False)
        self.steps.move_to_end((slots, length))
        return step()[:count]

    def _step(self, slots: int, length: int) -> Callable[[], Tensor]:
        """What runs a step on the inputs as they are then."""

        def compute() -> Tensor:
            token_ids, positions = self.inputs[:, :slots]
            return self.decoder(token_ids, StaticLayout(self.cache, positions, length))

        if not self.capturing:
            return compute
        try:
            return self._capture(compute)
        except RuntimeError as error:  # no memory, above all; an error of the device itself comes again below
            say(f"sampler: without CUDA graphs from here on: {one_line(error)}")
            self.capturing = False
            return compute

    def _capture(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """A step as a graph."""
        assert self._stream is not None
        with torch.cuda.device(self.device):  # torch synchronizes the current one
            graph = torch.cuda.CUDAGraph()
            # Once outside: libraries allocate at their first call. The step may be run any number of times.
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                compute()
            torch.cuda.current_stream().wait_stream(self._stream)
            # thread_local: where sampling and training overlap, the trainer's thread allocates meanwhile.
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                hidden = compute()

        def replay() -> Tensor:
            graph.replay()
            return hidden

        return replay


def graphs_for(decoder: Decoder, cache: KeyValueCache) -> DecodeGraphs | None:
    """Graphs for a sampler; None where its steps cannot be captured or would not gain."""
    if cache.keys[0].device.type != "cuda" or decoder.plain:
        return None
    rotation = getattr(decoder.model.base_model.rotary_emb, "rope_type", "default")
    if any(kind in rotation for kind in MOVING_ROTATIONS):
        say(f"sampler: without CUDA graphs, because rotary embeddings of the type {rotation} cannot be captured")
        return None
    return DecodeGraphs(decoder, cache)


def rounded(length: int) -> int:
    """The positions of the graph for so many."""
    if length <= SHORTEST:
        return SHORTEST
    step = _doubled(length) // 2 // STEPS_TO_DOUBLE
    return -(-length // step) * step


def rounded_slots(count: int) -> int:
    """The slots of the graph for so many."""
    return _doubled(count) if count <= SLOTS_APART else -(-count // SLOTS_APART) * SLOTS_APART


def _doubled(count: int) -> int:
    """The smallest power of two that is not below ``count``."""
    return 1 << (count - 1).bit_length()
