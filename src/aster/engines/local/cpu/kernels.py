"""The compiled parts of a step: attention to the cache, and norms, rotation and storing before it.

torch's ``scaled_dot_product_attention`` is made for many queries. Where each sequence has one, it is slower than the loops
here, and sequences of different lengths must be padded or done one by one. A norm of a few rows costs torch more to start than
to compute.
"""

from __future__ import annotations

import functools
import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from aster.engines.local.cache import Chunk, DecodeLayout, KeyValueCache

PARALLEL_WORK = 1 << 20
"""Multiplications of queries with keys in one layer (H x D x positions) from which on several threads are faster."""
SHORT_CHUNK = 32
"""Compiled attention takes chunks of at most so many tokens; for longer ones torch's matrix products are faster."""


class Kernels:
    """The loops of :mod:`aster.engines.local.cpu.loops` on tensors, for caches of one shape."""

    def __init__(self, head_dim: int, capacity: int, threads: int) -> None:
        """``capacity`` is the longest sequence in tokens; ``threads`` share attention. ImportError where numba is not
        installed."""
        from aster.engines.local.cpu.loops import attention_loop, rms_norm_loop, rotary_loop

        self._attention, self._rotary, self._rms_norm = attention_loop(head_dim), rotary_loop(head_dim), rms_norm_loop()
        self._head_dim = head_dim
        self._workspaces = [_workspace(head_dim, capacity) for _ in range(threads)]
        self._pool = _pool(threads - 1) if threads > 1 else None
        self._no_norms = np.empty((0, head_dim), np.float32)

    def rms_norm(self, hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """RMS norm (Zhang and Sennrich 2019) of the rows of (P, E)."""
        normed = torch.empty_like(hidden)
        self._rms_norm(hidden.numpy(), weight.numpy(), np.float32(epsilon), normed.numpy())
        return normed

    def rotate_and_store(
        self,
        projected: Tensor,
        norms: Tensor | None,
        epsilon: float,
        rotation: tuple[Tensor, Tensor],
        places: tuple[np.ndarray, np.ndarray],
        cache: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Normalise (where there are ``norms``) and rotate queries and keys; store keys and values.

        projected (P, H + 2 KV, D) holds queries, keys and values, ``norms`` (H + KV, D) the weights of the norms, ``rotation``
        cosine and sine (P, D), ``places`` slots and positions (P,), ``cache`` a layer's keys and values (S, KV, C, D). Returns
        the queries (P, H, D)."""
        keys, values = cache
        query = torch.empty(len(projected), projected.shape[1] - 2 * keys.shape[1], self._head_dim)
        self._rotary(
            projected.numpy(),
            self._no_norms if norms is None else norms.numpy(),
            np.float32(epsilon),
            rotation[0].numpy(),
            rotation[1].numpy(),
            *places,
            query.numpy(),
            keys.numpy(),
            values.numpy(),
        )
        return query

    def attend(
        self, query: Tensor, cache: tuple[Tensor, Tensor], slots: np.ndarray, lengths: np.ndarray, scaling: float
    ) -> Tensor:
        """Attention of query (P, H, D), each row to the first ``lengths`` (P,) positions of its slot in ``slots`` (P,), in a
        layer's keys and values (S, KV, C, D) -> (P, H, D). Head h has the keys of head h // (H / KV)."""
        keys, values = cache
        attended = torch.empty(query.shape)
        arguments = query.numpy(), keys.numpy(), values.numpy(), slots, lengths, np.float32(scaling), attended.numpy()
        if self._pool is None or int(lengths.sum()) * query.shape[1] * self._head_dim < PARALLEL_WORK:
            self._attention(0, len(query), *arguments, *self._workspaces[0])
            return attended
        # Each thread gets rows with about the same number of positions together.
        total = lengths.cumsum()
        ends = np.searchsorted(total, np.linspace(0, total[-1], len(self._workspaces) + 1)[1:-1])
        parts = list(zip(itertools.pairwise([0, *ends.tolist(), len(query)]), self._workspaces, strict=True))
        others = [self._pool.submit(self._attention, *part, *arguments, *workspace) for part, workspace in parts[1:]]
        part, workspace = parts[0]
        self._attention(*part, *arguments, *workspace)
        for other in others:
            other.result()
        return attended


class CompiledLayout(DecodeLayout):
    """A step whose short chunks go through the kernels. They come first among the chunks."""

    def __init__(self, cache: KeyValueCache, chunks: list[Chunk], kernels: Kernels) -> None:
        """See :class:`DecodeLayout`."""
        super().__init__(cache, chunks)
        self._kernels = kernels
        short = list(itertools.takewhile(lambda chunk: chunk.length <= SHORT_CHUNK, chunks))
        self._long = range(len(short), len(chunks))
        self._count = sum(chunk.length for chunk in short)
        self._places = self.slots.numpy(), self.positions.numpy()
        self._short = self._places[0][: self._count], self._places[1][: self._count] + 1

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """See ``Layout``."""
        self._store(layer, key, value)
        return self.attend_stored(layer, query.transpose(0, 1), scaling).transpose(0, 1)

    def attend_stored(self, layer: int, query: Tensor, scaling: float) -> Tensor:
        """Attention of query (P, H, D) to the cache, which has the new keys and values already -> (P, H, D)."""
        cache = self.cache.keys[layer], self.cache.values[layer]
        attended = self._kernels.attend(query[: self._count], cache, *self._short, scaling)
        if not self._long:
            return attended
        heads_first = query.transpose(0, 1)
        others = [self._attend_chunk(layer, heads_first, index, scaling).transpose(0, 1) for index in self._long]
        return torch.cat([attended, *others])

    def rotate_and_store(
        self, layer: int, projected: Tensor, norms: Tensor | None, epsilon: float, cosine: Tensor, sine: Tensor
    ) -> Tensor:
        """See :meth:`Kernels.rotate_and_store`, for a layer's cache."""
        cache = self.cache.keys[layer], self.cache.values[layer]
        return self._kernels.rotate_and_store(projected, norms, epsilon, (cosine, sine), self._places, cache)


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """One for all caches."""
    return ThreadPoolExecutor(threads, "aster-attention")


def _workspace(head_dim: int, capacity: int) -> tuple[np.ndarray, ...]:
    """The memory that one thread of ``loops.attention_loop`` works in."""
    bits = np.zeros(capacity, np.int32)
    return np.zeros((2, head_dim), np.float32), np.zeros((2, capacity), np.float32), bits, bits.view(np.float32)
