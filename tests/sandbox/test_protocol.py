"""Messages between supervisor and runner arrive unchanged however they are cut; forged replies are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aster_sandbox.protocol import (
    MAX_DATA,
    NONCE_BYTES,
    OPS,
    REPLY,
    Kind,
    Reply,
    Request,
    pack_reply,
    pack_request,
    take_reply,
    take_request,
)

PLACES = st.integers(-(2**63), 2**63 - 1)
NONCES = st.binary(min_size=NONCE_BYTES, max_size=NONCE_BYTES)
REQUESTS = st.builds(Request, st.sampled_from(OPS), PLACES, PLACES, st.binary(max_size=200))
REPLIES = st.builds(Reply, st.sampled_from(Kind), PLACES, PLACES, st.binary(max_size=200))


@given(sent=st.lists(st.tuples(NONCES, REQUESTS), max_size=5), cuts=st.lists(st.integers(1, 60), min_size=1))
def test_requests_arrive_as_they_were_sent(sent: list[tuple[bytes, Request]], cuts: list[int]) -> None:
    stream = b"".join(pack_request(nonce, request) for nonce, request in sent)
    buffer, taken, place, turn = bytearray(), [], 0, 0
    while place < len(stream):
        size = cuts[turn % len(cuts)]
        buffer += stream[place : place + size]
        place, turn = place + size, turn + 1
        while (request := take_request(buffer)) is not None:
            taken.append(request)
    assert taken == sent
    assert not buffer


@given(nonce=NONCES, sent=st.lists(REPLIES, min_size=1, max_size=3), step=st.integers(1, 60))
def test_replies_arrive_as_they_were_sent(nonce: bytes, sent: list[Reply], step: int) -> None:
    stream = b"".join(pack_reply(nonce, reply) for reply in sent)
    buffer, taken = bytearray(), []
    for start in range(0, len(stream), step):
        buffer += stream[start : start + step]
        while (reply := take_reply(buffer, nonce)) is not None:
            taken.append(reply)
    assert taken == sent
    assert not buffer


@given(nonce=NONCES, data=st.binary(min_size=1, max_size=2 * REPLY.size))
def test_bytes_without_the_nonce_are_refused_at_once(nonce: bytes, data: bytes) -> None:
    if not nonce.startswith(data[:NONCE_BYTES]):
        with pytest.raises(ValueError, match="nonce"):
            take_reply(bytearray(data), nonce)


@given(nonce=NONCES, kind=st.integers(5, 255), length=st.integers(MAX_DATA + 1, 2**32 - 1))
def test_invalid_replies_are_refused(nonce: bytes, kind: int, length: int) -> None:
    with pytest.raises(ValueError, match=rf"\b{length}\b"):
        take_reply(bytearray(REPLY.pack(nonce, 0, 0, 0, length)), nonce)
    with pytest.raises(ValueError, match=rf"\b{kind}\b"):
        take_reply(bytearray(REPLY.pack(nonce, kind, 0, 0, 0)), nonce)
