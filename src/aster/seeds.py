"""Seeds that depend on what they are for, never on the order in which things run."""

from __future__ import annotations

import hashlib


def derive(*parts: int | str) -> int:
    """A 63-bit seed from its parts (run seed, stage, step, problem id, sample ...). It is the same on every machine."""
    text = "\x1f".join(str(part) for part in parts)
    # Problem ids and topics from imported sets may contain half a surrogate pair.
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little") >> 1
