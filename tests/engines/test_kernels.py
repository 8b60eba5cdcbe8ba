"""Compiled attention and norms compute what torch does, on any shape, in one thread and in several."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from aster.engines.local.cpu import kernels
from aster.engines.local.cpu.kernels import Kernels

CAPACITY = 70


def attention(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, slots: Any, lengths: Any) -> torch.Tensor:
    """The reference, row by row in float64."""
    group = query.shape[1] // keys.shape[1]
    rows = []
    for row, slot, length in zip(query.double(), slots, lengths, strict=True):
        key, value = (part[slot, :, :length].double().repeat_interleave(group, 0) for part in (keys, values))
        weights = torch.softmax(torch.einsum("hd,hld->hl", row, key) * 0.3, -1)
        rows.append(torch.einsum("hl,hld->hd", weights, value))
    return torch.stack(rows).float()


@given(
    head_dim=st.sampled_from([8, 16, 32, 64]),
    heads=st.sampled_from([(1, 1), (1, 2), (2, 3), (1, 5), (3, 4)]),
    lengths=st.lists(st.integers(1, CAPACITY), min_size=1, max_size=9),
    scale=st.sampled_from([0.01, 1.0, 30.0]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_attention_of_any_shape_is_that_of_float64(
    head_dim: int, heads: tuple[int, int], lengths: list[int], scale: float, seed: int
) -> None:
    kv_heads, group = heads
    generator = torch.Generator().manual_seed(seed)
    cache = torch.randn(2, 5, kv_heads, CAPACITY, head_dim, generator=generator)
    keys, values = cache[0] * scale, cache[1]
    query = torch.randn(len(lengths), kv_heads * group, head_dim, generator=generator)
    slots = torch.randint(0, 5, (len(lengths),), generator=generator).numpy()
    for slot, length in zip(slots, lengths, strict=True):
        # Behind what a slot's rows see there may be anything: what an earlier sequence left.
        if length == max(other for s, other in zip(slots, lengths, strict=True) if s == slot):
            values[slot, :, length:] = float("nan")
    attended = Kernels(head_dim, CAPACITY, 1).attend(query, (keys, values), slots, np.array(lengths), 0.3)
    torch.testing.assert_close(attended, attention(query, keys, values, slots, lengths), atol=2e-5, rtol=2e-4)


def test_threads_share_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "PARALLEL_WORK", 1)
    keys, values = torch.randn(2, 6, 1, CAPACITY, 8)
    for lengths in ([5, 70, 1, 33, 70, 2], [70, 1, 1, 1, 1, 1], [3]):
        query, slots = torch.randn(len(lengths), 2, 8), np.arange(len(lengths))
        one, several = (
            Kernels(8, CAPACITY, threads).attend(query, (keys, values), slots, np.array(lengths), 0.3) for threads in (1, 4)
        )
        assert torch.equal(one, several)


def test_nothing_finite_overflows() -> None:
    keys = torch.full((1, 1, CAPACITY, 8), 1e18)
    keys[0, 0, 3] = -1e18
    values = torch.randn(1, 1, CAPACITY, 8)
    attended = Kernels(8, CAPACITY, 1).attend(torch.ones(1, 1, 8), (keys, values), np.array([0]), np.array([4]), 1.0)
    torch.testing.assert_close(attended[0, 0], values[0, 0, :3].mean(0))


def test_a_norm_is_torchs() -> None:
    hidden, weight = torch.randn(7, 48) * 5, torch.randn(48)
    torch.testing.assert_close(Kernels(8, 4, 1).rms_norm(hidden, weight, 1e-6), F.rms_norm(hidden, (48,), weight, 1e-6))
