"""The words between the three kinds of process: supervisor, zygote and session.

Supervisor and zygote speak over a ``SOCK_SEQPACKET`` socket pair, one JSON object a packet, file descriptors beside it:

    supervisor -> zygote   {"op": "fork", ...ForkRequest}   with 2 descriptors: the session's connection, its output pipe
    zygote -> supervisor   {"ready": pid}                   once, when everything is imported; with 1 descriptor: its pidfd
                           {"forked": pid}                  with 1 descriptor: a pidfd of the session
                           {"failed": reason}               the fork did not happen
                           {"gone": pid, "status": s}       a session's leader ended (s as of waitpid); its group is dead too

Pids are the zygote's. Where it has a process namespace they are names alone: the supervisor cannot signal them.

Supervisor and session speak over a ``SOCK_STREAM`` socket pair of their own, in frames of a 4-byte length and a JSON object:

    supervisor -> session  {"op": "start", "nonce", "seed", "setup"}
                           {"op": "run", "nonce", "number", "code"}
    session -> supervisor  {"nonce", "status": "ok" | "error", "interrupted": bool}

A cell's output never travels in a frame: it goes through a pipe at descriptors 1 and 2. A frame without the nonce of the
request under way is a forgery, and costs the session its process.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from typing import Any

from aster.sandbox.isolation.levels import Limits

LENGTH = struct.Struct("!I")
MAX_REPLY = 4096
"""Bytes of the longest reply frame a session may send."""
MAX_PACKET = 8192
"""Bytes of the longest packet between supervisor and zygote."""


class SandboxFailure(Exception):
    """The sandbox itself failed: the zygote cannot be started, a setup raises. Never because of what a cell did."""


@dataclass(frozen=True, slots=True)
class ForkRequest:
    """What the zygote must know to fork a session."""

    name: str
    """Of its scratch directory; no other session of the sandbox has it."""
    limits: Limits
    memory_mb: int
    """Address space the session may add, in MiB."""
    timeout_text: str
    """Message of the exception that a soft interrupt raises in a cell."""

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> ForkRequest:
        """From the fields of a ``fork`` packet."""
        return cls(message["name"], Limits(**message["limits"]), message["memory_mb"], message["timeout_text"])


def pack(message: dict[str, Any]) -> bytes:
    """One frame: length and JSON in ASCII (lone surrogates survive as escapes)."""
    body = json.dumps(message, separators=(",", ":")).encode("ascii")
    return LENGTH.pack(len(body)) + body


def take_frame(buffer: bytearray) -> dict[str, Any] | None:
    """Remove the first whole frame from a buffer of received bytes, or None where it is not whole yet.

    Raises ValueError where the bytes are no frame that a session sends.
    """
    if len(buffer) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack_from(buffer)
    if length > MAX_REPLY:
        raise ValueError(f"a reply of {length} bytes")
    end = LENGTH.size + length
    if len(buffer) < end:
        return None
    message = json.loads(bytes(buffer[LENGTH.size : end]))
    del buffer[:end]
    if not isinstance(message, dict):
        raise ValueError("a reply that is no object")
    return message


def read_frame(descriptor: int) -> dict[str, Any] | None:
    """Block for one frame; None at the end of the stream."""
    header = _read_exactly(descriptor, LENGTH.size)
    if header is None:
        return None
    body = _read_exactly(descriptor, LENGTH.unpack(header)[0])
    return None if body is None else json.loads(body)


def _read_exactly(descriptor: int, size: int) -> bytes | None:
    chunk = os.read(descriptor, size)
    if len(chunk) == size:
        return chunk
    parts = bytearray(chunk)
    while chunk and len(parts) < size:
        chunk = os.read(descriptor, size - len(parts))
        parts += chunk
    return bytes(parts) if len(parts) == size else None
