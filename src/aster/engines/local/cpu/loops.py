"""The loops of :mod:`aster.engines.local.cpu.kernels`, compiled by numba. Each is one function, because numba
keeps the machine code of functions that call others for one process alone.

Their form matters: the compiler turns the inner ones into vector instructions where the head size is a constant, and where
several positions and two heads are done together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

SETTINGS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "reassoc", "nsz", "arcp"}}
"""Sums may be put in another order, and products joined with them; a NaN stays one."""


def _compile(signature: str, function: Callable[..., None]) -> Callable[..., None]:
    """From the folder beside this file, where it was compiled on this machine before."""
    try:
        return numba.njit(signature, cache=True, **SETTINGS)(function)
    except RuntimeError:  # no folder for the cache can be written to
        return numba.njit(signature, **SETTINGS)(function)


@functools.cache
def mix_loop(size: int) -> Callable[..., None]:
    """Attention of single queries to the first positions of slots, for heads of ``size`` numbers: the rows ``start`` to ``end``
    of query (N, H, D) against keys and values (slots, KV heads, capacity, D), into mixed (N, H, D). ``slots`` and ``lengths``
    (N,) say which slot a row sees and how many of its positions. The rest is room to work in: own (2, D), scores (2, capacity),
    bits (capacity,) and powers, the same memory as floats."""
    single = np.float32
    log2_e, lowest, half, one, zero = single(1.4426950408889634), single(-126.0), single(0.5), single(1.0), single(0.0)
    # 2^x for |x| <= 1/2, to 2e-8: the Taylor polynomial's powers of ln 2, in float32.
    c1, c2, c3 = single(0.6931471805599453), single(0.2402265069591007), single(0.05550410866482158)
    c4, c5, c6 = single(0.009618129107628477), single(0.0013333558146428443), single(0.00015403530393381608)

    def mix(
        start: int,
        end: int,
        query: Any,
        keys: Any,
        values: Any,
        slots: Any,
        lengths: Any,
        scaling: Any,
        mixed: Any,
        own: Any,
        scores: Any,
        bits: Any,
        powers: Any,
    ) -> None:
        kv_heads = keys.shape[1]
        group = query.shape[1] // kv_heads
        for row in range(start, end):
            slot, length = slots[row], lengths[row]
            for kv_head in range(kv_heads):
                for pair in range(0, group, 2):
                    # Two heads are done together; of an odd number the last one twice.
                    left = kv_head * group + pair
                    right = kv_head * group + min(pair + 1, group - 1)
                    for d in range(size):
                        own[0, d] = query[row, left, d] * scaling
                        own[1, d] = query[row, right, d] * scaling
                    for place in range(0, length - 1, 2):
                        left_0 = left_1 = right_0 = right_1 = zero
                        for d in range(size):
                            key_0, key_1 = keys[slot, kv_head, place, d], keys[slot, kv_head, place + 1, d]
                            left_0 += own[0, d] * key_0
                            left_1 += own[0, d] * key_1
                            right_0 += own[1, d] * key_0
                            right_1 += own[1, d] * key_1
                        scores[0, place] = left_0
                        scores[0, place + 1] = left_1
                        scores[1, place] = right_0
                        scores[1, place + 1] = right_1
                    if length % 2:
                        left_0 = right_0 = zero
                        for d in range(size):
                            left_0 += own[0, d] * keys[slot, kv_head, length - 1, d]
                            right_0 += own[1, d] * keys[slot, kv_head, length - 1, d]
                        scores[0, length - 1] = left_0
                        scores[1, length - 1] = right_0

                    for side in range(2):
                        largest = scores[side, 0]
                        for place in range(length):
                            largest = max(largest, scores[side, place])
                        # exp(x) = 2^whole 2^part; the bits of a float's exponent are 2^whole.
                        for place in range(length):
                            x = max((scores[side, place] - largest) * log2_e, lowest)
                            whole = np.floor(x + half)
                            part = x - whole
                            scores[side, place] = (
                                ((((c6 * part + c5) * part + c4) * part + c3) * part + c2) * part + c1
                            ) * part + one
                            bits[place] = (np.int32(whole) + np.int32(127)) << np.int32(23)
                        total = zero
                        for place in range(length):
                            weight = scores[side, place] * powers[place]
                            scores[side, place] = weight
                            total += weight
                        share = one / total
                        for place in range(length):
                            scores[side, place] *= share

                    for d in range(size):
                        own[0, d] = own[1, d] = zero
                    for place in range(0, length - 3, 4):
                        left_0, left_1 = scores[0, place], scores[0, place + 1]
                        left_2, left_3 = scores[0, place + 2], scores[0, place + 3]
                        right_0, right_1 = scores[1, place], scores[1, place + 1]
                        right_2, right_3 = scores[1, place + 2], scores[1, place + 3]
                        for d in range(size):
                            value_0, value_1 = values[slot, kv_head, place, d], values[slot, kv_head, place + 1, d]
                            value_2, value_3 = values[slot, kv_head, place + 2, d], values[slot, kv_head, place + 3, d]
                            own[0, d] += left_0 * value_0 + left_1 * value_1 + left_2 * value_2 + left_3 * value_3
                            own[1, d] += right_0 * value_0 + right_1 * value_1 + right_2 * value_2 + right_3 * value_3
                    for place in range(length - length % 4, length):
                        left_0, right_0 = scores[0, place], scores[1, place]
                        for d in range(size):
                            own[0, d] += left_0 * values[slot, kv_head, place, d]
                            own[1, d] += right_0 * values[slot, kv_head, place, d]
                    for d in range(size):
                        mixed[row, left, d] = own[0, d]
                        mixed[row, right, d] = own[1, d]

    return _compile(
        "void(int64, int64, float32[:, :, :], float32[:, :, :, ::1], float32[:, :, :, ::1], int64[::1], int64[::1], float32, "
        "float32[:, :, ::1], float32[:, ::1], float32[:, ::1], int32[::1], float32[::1])",
        mix,
    )


@functools.cache
def turn_loop(size: int) -> Callable[..., None]:
    """What comes before attention, for heads of ``size`` numbers: joint (N, Q + 2 KV, D) holds queries, keys and values.
    Queries and keys are normalised, unless norms (Q + KV, D) has no rows, and rotated by cosine and sine (N, D); then queries
    go to query (N, Q, D), keys and values to the rows' slots and positions (N,) of the cache."""
    half = size // 2
    zero, one = np.float32(0.0), np.float32(1.0)

    def turn(
        joint: Any,
        norms: Any,
        epsilon: Any,
        cosine: Any,
        sine: Any,
        slots: Any,
        positions: Any,
        query: Any,
        keys: Any,
        values: Any,
    ) -> None:
        heads, kv_heads = query.shape[1], keys.shape[1]
        own = np.empty(size, np.float32)
        for row in range(len(joint)):
            slot, position = slots[row], positions[row]
            for head in range(heads + kv_heads):
                if len(norms):
                    total = zero
                    for d in range(size):
                        total += joint[row, head, d] * joint[row, head, d]
                    factor = one / np.sqrt(total / np.float32(size) + epsilon)
                    for d in range(size):
                        own[d] = joint[row, head, d] * factor * norms[head, d]
                else:
                    for d in range(size):
                        own[d] = joint[row, head, d]
                target = query[row, head] if head < heads else keys[slot, head - heads, position]
                for d in range(half):
                    target[d] = own[d] * cosine[row, d] - own[d + half] * sine[row, d]
                for d in range(half):
                    target[d + half] = own[d + half] * cosine[row, d + half] + own[d] * sine[row, d + half]
            for head in range(kv_heads):
                for d in range(size):
                    values[slot, head, position, d] = joint[row, heads + kv_heads + head, d]

    return _compile(
        "void(float32[:, :, ::1], float32[:, ::1], float32, float32[:, ::1], float32[:, ::1], int64[::1], int64[::1], "
        "float32[:, :, ::1], float32[:, :, :, ::1], float32[:, :, :, ::1])",
        turn,
    )


@functools.cache
def norm_loop() -> Callable[..., None]:
    """RMS norm of the rows of hidden (N, H), times weight (H,), into normed (N, H)."""
    zero, one = np.float32(0.0), np.float32(1.0)

    def norm(hidden: Any, weight: Any, epsilon: Any, normed: Any) -> None:
        width = hidden.shape[1]
        for row in range(len(hidden)):
            total = zero
            for d in range(width):
                total += hidden[row, d] * hidden[row, d]
            factor = one / np.sqrt(total / np.float32(width) + epsilon)
            for d in range(width):
                normed[row, d] = hidden[row, d] * factor * weight[d]

    return _compile("void(float32[:, ::1], float32[::1], float32, float32[:, ::1])", norm)
