"""What supervisor and runner send each other arrives as it was, however it is cut; what was not asked for is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aster_sandbox.protocol import NONCE_BYTES, OPS, REPLY, Reply, Request, pack_reply, pack_request, take_request, unpack_reply

PLACES = st.integers(-(2**63), 2**63 - 1)
NONCES = st.binary(min_size=NONCE_BYTES, max_size=NONCE_BYTES)
TEXTS = st.text(st.characters(exclude_categories=()), max_size=200)  # lone surrogates too
REQUESTS = st.builds(Request, st.sampled_from(OPS), PLACES, PLACES, TEXTS)


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


@given(nonce=NONCES, reply=st.builds(Reply, st.booleans(), st.booleans(), PLACES, st.booleans()))
def test_a_reply_arrives_as_it_was_sent(nonce: bytes, reply: Reply) -> None:
    data = pack_reply(nonce, reply)
    assert len(data) == REPLY.size
    assert unpack_reply(data, nonce) == reply


@given(nonce=NONCES, data=st.binary(max_size=2 * REPLY.size))
def test_bytes_that_answer_no_request_are_refused(nonce: bytes, data: bytes) -> None:
    if data[:NONCE_BYTES] != nonce or len(data) != REPLY.size:
        with pytest.raises(ValueError, match="a reply"):
            unpack_reply(data, nonce)
