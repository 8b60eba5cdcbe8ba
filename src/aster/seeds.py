"""Seeds that belong to what they seed, never to an order of execution."""

from __future__ import annotations

import hashlib


def derive(*parts: int | str) -> int:
    """A 63-bit seed from the parts (run seed, stage, step, problem id, sample ...), the same on every machine."""
    text = "\x1f".join(str(part) for part in parts)
    # Ids and topics of other sets may hold half a surrogate pair.
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little") >> 1
