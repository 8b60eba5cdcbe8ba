"""The words between the kinds of process: supervisor, zygote, keeper, runner and savepoint.

**Supervisor and zygote**: a ``SOCK_SEQPACKET`` socket pair, one JSON object a packet. The supervisor names sessions by ids of
its own, so that no pid of another namespace is ever needed.

    supervisor -> zygote   {"op": "fork", "id", ...ForkRequest}  with 1 descriptor: the keeper's control socket
                           {"op": "kill", "id"}                  a keeper does not answer: kill it
    zygote -> supervisor   {"ready": true}                       once, when all is imported; with 1 descriptor: its pidfd
                           {"forked": [id, ...]}                 these keepers are on their way
                           {"failed": id, "errno", "reason"}     this fork did not happen
                           {"gone": [[id, status], ...]}         keepers that ended (status as of waitpid), with all below them

**Supervisor and keeper**: the control socket, a ``SOCK_STREAM`` pair, frames of a 4-byte length and a JSON object. A *line* is
one session; a keeper has several where branches were made. The end of this stream ends the keeper and everything below it.

    supervisor -> keeper   {"op": "launch", "line", "steps"}     with 2 descriptors: connection and output of a new runner, from
                                                                 the line's latest savepoint that is not beyond so many steps,
                                                                 or from the keeper where there is none
                           {"op": "interrupt", "line"}           SIGINT to the runner
                           {"op": "kill", "line"}                SIGKILL to the runner and its process group
                           {"op": "end", "line"}                 the line is over: its processes and files go
                           {"op": "who"}                         say anything: the kernel adds the keeper's pid
    keeper -> supervisor   {"here": true}                        the answer to ``who``
                           {"interrupted": line}                 the signal was sent
                           {"ended": line, "status"}             the runner ended (as of waitpid), and what it left was killed
                           {"failed": line, "errno", "reason"}   no runner could be forked
                           {"closed": line}                      the answer to ``end``

**Supervisor and runner**: the connection, another ``SOCK_STREAM`` pair. What goes over it are structs, because JSON took a good
part of a short cell's time.

    supervisor -> runner   a ``Request``, with 16 random bytes, its nonce
    runner -> supervisor   the nonce, then a ``Reply``: always ``REPLY.size`` bytes

A ``branch`` whose reply is not ``ok`` cannot be made by a fork.

A cell's output never travels in a reply: it goes through a pipe at descriptors 1 and 2. Bytes that do not begin with the nonce
of the request under way are a forgery, and cost the session its runner.

**Runner, savepoint and keeper**: a ``SOCK_SEQPACKET`` pair that all runners of a keeper share, the *registry*.

    savepoint -> keeper    {"saved": line, "of", "step"}   the pid of its runner; with 1 descriptor: its bell. The kernel says
                                                           whose socket that is.
    branch -> keeper       {"branched": line}              with 1 descriptor: a socket of its own, for the same reason
    runner -> keeper       {"accepted": line}              the supervisor took the reply before the last savepoint: those before
                                                           it can go

The bell is a ``SOCK_SEQPACKET`` pair of keeper and savepoint: ``WAKE`` with 2 descriptors makes it the line's runner, ``DROP``
ends it.
"""

from __future__ import annotations

import array
import json
import socket
import struct
from dataclasses import dataclass
from typing import Any, NamedTuple

from aster.sandbox.isolation.levels import Limits

LENGTH = struct.Struct("!I")
MAX_REPLY = 4096
"""Bytes of the longest frame a keeper may send."""
NONCE_BYTES = 16
OPS = ("hello", "start", "run", "seed", "branch")
REQUEST = struct.Struct("!IB16sqq")
REPLY = struct.Struct("!16s??q?")
MAX_REQUEST = 1 << 30
"""Bytes of the longest frame a supervisor may send."""
MAX_PACKET = 8192
"""Bytes of the longest packet between supervisor and zygote."""
_encode = json.JSONEncoder(separators=(",", ":")).encode
_decode = json.JSONDecoder().decode
WAKE, DROP = b"wake", b"drop"


class SandboxFailure(Exception):
    """The sandbox itself failed: the zygote cannot be started, a setup raises. Never because of what a cell did."""


@dataclass(frozen=True, slots=True)
class ForkRequest:
    """What the zygote must know to fork a keeper."""

    name: str
    """Of its directory; no other keeper of the sandbox has it."""
    limits: Limits
    memory_mb: int
    """Address space a session may add, in MiB."""
    timeout_text: str
    """Message of the exception that a soft interrupt raises in a cell."""

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> ForkRequest:
        """From the fields of a ``fork`` packet."""
        return cls(message["name"], Limits(**message["limits"]), message["memory_mb"], message["timeout_text"])


class Request(NamedTuple):
    """What a runner is asked to do."""

    op: str
    """``start``, once and first: seed the generators and run the setup. ``run``: a cell. ``seed``: seed them again. ``hello``:
    say who you are. ``branch``: fork another line, with 2 descriptors beside it, its connection and output."""
    step: int = 0
    """The place that a ``run`` or ``seed`` will have in the session's history; the line of a ``branch``."""
    number: int = 0
    """The cell's."""
    text: str = ""
    """The cell's code; the seed; for ``start`` the seed, a line break and the setup."""


def pack_request(nonce: bytes, request: Request) -> bytes:
    """A header and the text (lone surrogates survive)."""
    text = request.text.encode("utf-8", "surrogatepass")
    return REQUEST.pack(len(text), OPS.index(request.op), nonce, request.step, request.number) + text


def take_request(buffer: bytearray) -> tuple[bytes, Request] | None:
    """Remove the first whole request, with its nonce, from a buffer of received bytes; None where it is not whole yet."""
    if len(buffer) < REQUEST.size:
        return None
    length, op, nonce, step, number = REQUEST.unpack_from(buffer)
    end = REQUEST.size + length
    if len(buffer) < end:
        return None
    text = buffer[REQUEST.size : end].decode("utf-8", "surrogatepass")
    del buffer[:end]
    return nonce, Request(OPS[op], step, number, text)


class Reply(NamedTuple):
    """A runner's answer."""

    ok: bool
    interrupted: bool = False
    """A soft interrupt reached the cell."""
    step: int = -1
    """To ``hello``: how far the session had come at the savepoint that the runner is; -1 for a new one."""
    files: bool = True
    """To ``hello``: that savepoint had a copy of the working directory."""


def pack_reply(nonce: bytes, reply: Reply) -> bytes:
    """``REPLY.size`` bytes."""
    return REPLY.pack(nonce, *reply)


def unpack_reply(data: bytes | bytearray, nonce: bytes) -> Reply:
    """The inverse of pack_reply. Raises ValueError where the bytes do not answer the request with that nonce."""
    if len(data) != REPLY.size:
        raise ValueError(f"a reply of {len(data)} bytes")
    found, *values = REPLY.unpack(data)
    if found != nonce:
        raise ValueError("a reply to no request")
    return Reply(*values)


def receive(connection: socket.socket, size: int, count: int, flags: int = 0) -> tuple[bytes, list[int]]:
    """Bytes, and up to ``count`` descriptors beside them. (``socket.recv_fds`` drops its flags up to Python 3.12.)"""
    data, ancillary, _, _ = connection.recvmsg(size, socket.CMSG_LEN(count * 4), flags)
    if not ancillary:
        return data, []
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    return data, list(descriptors)


def pack(message: dict[str, Any]) -> bytes:
    """One frame: length and JSON in ASCII (lone surrogates survive as escapes)."""
    body = _encode(message).encode("ascii")
    return LENGTH.pack(len(body)) + body


def take_frame(buffer: bytearray, longest: int) -> dict[str, Any] | None:
    """Remove the first whole frame from a buffer of received bytes, or None where it is not whole yet.

    Raises ValueError where the bytes are no frame of at most ``longest`` bytes.
    """
    if len(buffer) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack_from(buffer)
    if length > longest:
        raise ValueError(f"a frame of {length} bytes")
    end = LENGTH.size + length
    if len(buffer) < end:
        return None
    message = _decode(buffer[LENGTH.size : end].decode("utf-8"))
    del buffer[:end]
    if not isinstance(message, dict):
        raise ValueError("a frame that is no object")
    return message
