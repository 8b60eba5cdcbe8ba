"""The loops of :mod:`aster.engines.local.cpu.kernels`, compiled by numba.

Each is one function, because numba caches no machine code of functions that call other compiled ones. Their form matters: the
compiler makes vector instructions of the inner loops because ``head_dim`` is a constant, and they are fast because two heads
and several positions are done together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

SETTINGS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "reassoc", "nsz", "arcp"}}
"""The compiler may reorder sums and fuse products with them; NaN stays NaN."""


def _compile(signature: str, function: Callable[..., None]) -> Callable[..., None]:
    """The compiled function. Its machine code is kept in a folder beside this file for the next process."""
    try:
        return numba.njit(signature, cache=True, **SETTINGS)(function)
    except RuntimeError:  # no folder for the cache can be written to
        return numba.njit(signature, **SETTINGS)(function)


@functools.cache
def attention_loop(head_dim: int) -> Callable[..., None]:
    """Attention of single queries: the rows ``start`` to ``end`` of query (P, H, D) to keys and values (S, KV, C, D), into
    attended (P, H, D). ``slots`` and ``lengths`` (P,) tell each row's slot, and how many of its first positions it sees. The
    rest is memory to work in: work (2, D), scores (2, C), bits (C,), and powers, the same memory as ``bits`` read as floats."""
    single = np.float32
    log2_e, lowest, half, one, zero = single(1.4426950408889634), single(-126.0), single(0.5), single(1.0), single(0.0)
    # 2^x for |x| <= 1/2, to 2e-8: the Taylor polynomial's powers of ln 2, in float32.
    c1, c2, c3 = single(0.6931471805599453), single(0.2402265069591007), single(0.05550410866482158)
    c4, c5, c6 = single(0.009618129107628477), single(0.0013333558146428443), single(0.00015403530393381608)

    def attend(
        start: int,
        end: int,
        query: Any,
        keys: Any,
        values: Any,
        slots: Any,
        lengths: Any,
        scaling: Any,
        attended: Any,
        work: Any,
        scores: Any,
        bits: Any,
        powers: Any,
    ) -> None:
        num_key_value_heads = keys.shape[1]
        group_size = query.shape[1] // num_key_value_heads
        for row in range(start, end):
            slot, length = slots[row], lengths[row]
            for kv_head in range(num_key_value_heads):
                for pair in range(0, group_size, 2):
                    # Two heads are done together; of an odd number the last one twice.
                    left = kv_head * group_size + pair
                    right = kv_head * group_size + min(pair + 1, group_size - 1)
                    for d in range(head_dim):
                        work[0, d] = query[row, left, d] * scaling
                        work[1, d] = query[row, right, d] * scaling
                    for position in range(0, length - 1, 2):
                        left_0 = left_1 = right_0 = right_1 = zero
                        for d in range(head_dim):
                            key_0, key_1 = keys[slot, kv_head, position, d], keys[slot, kv_head, position + 1, d]
                            left_0 += work[0, d] * key_0
                            left_1 += work[0, d] * key_1
                            right_0 += work[1, d] * key_0
                            right_1 += work[1, d] * key_1
                        scores[0, position] = left_0
                        scores[0, position + 1] = left_1
                        scores[1, position] = right_0
                        scores[1, position + 1] = right_1
                    if length % 2:
                        left_0 = right_0 = zero
                        for d in range(head_dim):
                            left_0 += work[0, d] * keys[slot, kv_head, length - 1, d]
                            right_0 += work[1, d] * keys[slot, kv_head, length - 1, d]
                        scores[0, length - 1] = left_0
                        scores[1, length - 1] = right_0

                    for side in range(2):
                        largest = scores[side, 0]
                        for position in range(length):
                            largest = max(largest, scores[side, position])
                        # exp(x) = 2^whole 2^part; the bits of a float's exponent are 2^whole.
                        for position in range(length):
                            x = max((scores[side, position] - largest) * log2_e, lowest)
                            whole = np.floor(x + half)
                            part = x - whole
                            scores[side, position] = (
                                ((((c6 * part + c5) * part + c4) * part + c3) * part + c2) * part + c1
                            ) * part + one
                            bits[position] = (np.int32(whole) + np.int32(127)) << np.int32(23)
                        total = zero
                        for position in range(length):
                            weight = scores[side, position] * powers[position]
                            scores[side, position] = weight
                            total += weight
                        share = one / total
                        for position in range(length):
                            scores[side, position] *= share

                    for d in range(head_dim):
                        work[0, d] = work[1, d] = zero
                    for position in range(0, length - 3, 4):
                        left_0, left_1 = scores[0, position], scores[0, position + 1]
                        left_2, left_3 = scores[0, position + 2], scores[0, position + 3]
                        right_0, right_1 = scores[1, position], scores[1, position + 1]
                        right_2, right_3 = scores[1, position + 2], scores[1, position + 3]
                        for d in range(head_dim):
                            value_0, value_1 = values[slot, kv_head, position, d], values[slot, kv_head, position + 1, d]
                            value_2, value_3 = values[slot, kv_head, position + 2, d], values[slot, kv_head, position + 3, d]
                            work[0, d] += left_0 * value_0 + left_1 * value_1 + left_2 * value_2 + left_3 * value_3
                            work[1, d] += right_0 * value_0 + right_1 * value_1 + right_2 * value_2 + right_3 * value_3
                    for position in range(length - length % 4, length):
                        left_0, right_0 = scores[0, position], scores[1, position]
                        for d in range(head_dim):
                            work[0, d] += left_0 * values[slot, kv_head, position, d]
                            work[1, d] += right_0 * values[slot, kv_head, position, d]
                    for d in range(head_dim):
                        attended[row, left, d] = work[0, d]
                        attended[row, right, d] = work[1, d]

    return _compile(
        "void(int64, int64, float32[:, :, :], float32[:, :, :, ::1], float32[:, :, :, ::1], int64[::1], int64[::1], float32, "
        "float32[:, :, ::1], float32[:, ::1], float32[:, ::1], int32[::1], float32[::1])",
        attend,
    )


@functools.cache
def rotary_loop(head_dim: int) -> Callable[..., None]:
    """What comes before attention: projected (P, H + 2 KV, D) holds queries, keys and values. Queries and keys are normalised,
    unless norms (H + KV, D) has no rows, and rotated by cosine and sine (P, D); then queries go to query (P, H, D), keys and
    values to the rows' slots and positions (P,) in keys and values (S, KV, C, D)."""
    half = head_dim // 2
    zero, one = np.float32(0.0), np.float32(1.0)

    def rotate_and_store(
        projected: Any,
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
        num_heads, num_key_value_heads = query.shape[1], keys.shape[1]
        work = np.empty(head_dim, np.float32)
        for row in range(len(projected)):
            slot, position = slots[row], positions[row]
            for head in range(num_heads + num_key_value_heads):
                if len(norms):
                    total = zero
                    for d in range(head_dim):
                        total += projected[row, head, d] * projected[row, head, d]
                    factor = one / np.sqrt(total / np.float32(head_dim) + epsilon)
                    for d in range(head_dim):
                        work[d] = projected[row, head, d] * factor * norms[head, d]
                else:
                    for d in range(head_dim):
                        work[d] = projected[row, head, d]
                target = query[row, head] if head < num_heads else keys[slot, head - num_heads, position]
                for d in range(half):
                    target[d] = work[d] * cosine[row, d] - work[d + half] * sine[row, d]
                for d in range(half):
                    target[d + half] = work[d + half] * cosine[row, d + half] + work[d] * sine[row, d + half]
            for head in range(num_key_value_heads):
                for d in range(head_dim):
                    values[slot, head, position, d] = projected[row, num_heads + num_key_value_heads + head, d]

    return _compile(
        "void(float32[:, :, ::1], float32[:, ::1], float32, float32[:, ::1], float32[:, ::1], int64[::1], int64[::1], "
        "float32[:, :, ::1], float32[:, :, :, ::1], float32[:, :, :, ::1])",
        rotate_and_store,
    )


@functools.cache
def rms_norm_loop() -> Callable[..., None]:
    """RMS norm of the rows of hidden (P, E), times weight (E,), into normed (P, E)."""
    zero, one = np.float32(0.0), np.float32(1.0)

    def rms_norm(hidden: Any, weight: Any, epsilon: Any, normed: Any) -> None:
        width = hidden.shape[1]
        for row in range(len(hidden)):
            total = zero
            for d in range(width):
                total += hidden[row, d] * hidden[row, d]
            factor = one / np.sqrt(total / np.float32(width) + epsilon)
            for d in range(width):
                normed[row, d] = hidden[row, d] * factor * weight[d]

    return _compile("void(float32[:, ::1], float32[::1], float32, float32[:, ::1])", rms_norm)
