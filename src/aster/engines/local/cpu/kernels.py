"""Compiled parts of the sampler's forward on a CPU: attention over a cache, and the small steps between matrix products.

``scaled_dot_product_attention`` is made for many queries; where each sequence has one, it is slower than the loops here, and
makes all sequences as long as the longest. A normalisation of some rows costs torch more to begin than to compute. Where numba
is not installed, or the numbers are not float32 in a CPU's memory, torch does all of it.
"""

from __future__ import annotations

import functools
import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

PARALLEL_WORK = 1 << 20
"""Products of queries and keys (heads x head size x positions) in one layer from which on several threads pay."""


class Kernels:
    """For caches of one shape."""

    def __init__(self, size: int, capacity: int, threads: int) -> None:
        """Heads of ``size`` numbers, sequences of at most ``capacity`` tokens; ``threads`` share attention. ImportError where
        numba is not installed."""
        from aster.engines.local.cpu.loops import mix_loop, norm_loop, turn_loop

        self._mix, self._turn, self._norm = mix_loop(size), turn_loop(size), norm_loop()
        self._size = size
        self._rooms = [_room(size, capacity) for _ in range(threads)]
        self._pool = _pool(threads - 1) if threads > 1 else None
        self._no_norms = torch.empty(0, size)

    def norm(self, hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """RMS norm (Zhang and Sennrich 2019) of the rows of (N, H)."""
        normed = torch.empty_like(hidden)
        self._norm(hidden.numpy(), weight.numpy(), np.float32(epsilon), normed.numpy())
        return normed

    def turn(
        self,
        joint: Tensor,
        norms: Tensor | None,
        epsilon: float,
        rotation: tuple[Tensor, Tensor],
        places: tuple[np.ndarray, np.ndarray],
        cache: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Normalise (where there are ``norms``), rotate and store: joint (N, Q + 2 KV, D) holds queries, keys and values,
        ``rotation`` has cosine and sine (N, D), ``places`` slots and positions (N,), ``cache`` keys and values. Returns the
        queries (N, Q, D)."""
        keys, values = cache
        query = torch.empty(len(joint), joint.shape[1] - 2 * keys.shape[1], self._size)
        self._turn(
            joint.numpy(),
            (self._no_norms if norms is None else norms).numpy(),
            np.float32(epsilon),
            rotation[0].numpy(),
            rotation[1].numpy(),
            *places,
            query.numpy(),
            keys.numpy(),
            values.numpy(),
        )
        return query

    def mix(
        self, query: Tensor, cache: tuple[Tensor, Tensor], slots: np.ndarray, lengths: np.ndarray, scaling: float
    ) -> Tensor:
        """Attention: query (N, H, D), each row with its slot and how many positions it sees; ``cache`` has keys and values
        (slots, KV heads, capacity, D) -> (N, H, D). A head's keys are those of head ``h // (H / KV heads)``."""
        keys, values = cache
        mixed = torch.empty(query.shape)
        arguments = query.numpy(), keys.numpy(), values.numpy(), slots, lengths, np.float32(scaling), mixed.numpy()
        if self._pool is None or int(lengths.sum()) * query.shape[1] * self._size < PARALLEL_WORK:
            self._mix(0, len(query), *arguments, *self._rooms[0])
            return mixed
        # Each thread gets rows of about the same length together.
        seen = lengths.cumsum()
        ends = np.searchsorted(seen, np.linspace(0, seen[-1], len(self._rooms) + 1)[1:-1])
        parts = list(zip(itertools.pairwise([0, *ends.tolist(), len(query)]), self._rooms, strict=True))
        others = [self._pool.submit(self._mix, *part, *arguments, *room) for part, room in parts[1:]]
        part, room = parts[0]
        self._mix(*part, *arguments, *room)
        for other in others:
            other.result()
        return mixed


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """One for all caches."""
    return ThreadPoolExecutor(threads, "aster-attention")


def _room(size: int, capacity: int) -> tuple[np.ndarray, ...]:
    """What one thread works in; see ``loops.mix_loop``."""
    bits = np.zeros(capacity, np.int32)
    return np.zeros((2, size), np.float32), np.zeros((2, capacity), np.float32), bits, bits.view(np.float32)


def kernels_for(size: int, capacity: int, dtype: torch.dtype, device: torch.device) -> Kernels | None:
    """Kernels for such a cache, with torch's number of threads; None where torch does the work."""
    if device.type != "cpu" or dtype != torch.float32:
        return None
    try:
        return Kernels(size, capacity, torch.get_num_threads())
    except ImportError:
        return None
