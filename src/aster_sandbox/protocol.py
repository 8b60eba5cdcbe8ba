"""The messages between the three kinds of process: supervisor, zygote and runner.

**Supervisor and zygote**: a ``SOCK_SEQPACKET`` socket pair, one JSON object per packet. The supervisor numbers the runners, so
that messages need no pids, which differ between namespaces.

    supervisor -> zygote   {"op": "fork", "id", "name"}   with 2 descriptors: the runner's connection and output. ``name``: of
                                                          the runner's directory, unique in the sandbox
    zygote -> supervisor   {"ready": true}                once, after all imports; with 1 descriptor: the zygote's pidfd
                           {"forked": [id, ...]}          runners that were forked; with one descriptor each: their pidfds
                           {"failed": id, "errno", "reason"}     a fork that failed
                           {"gone": [[id, status], ...]}  runners that have ended, with everything they started; the status is
                                                          that of waitpid

The supervisor interrupts and kills runners with their pidfds. When this connection closes, the zygote and everything below it
end.

**Supervisor and runner**: the connection, a ``SOCK_STREAM`` socket pair. The messages are structs, because JSON took a large
part of a short cell's time.

    supervisor -> runner   a ``Request`` with a nonce of 16 random bytes
    runner -> supervisor   the nonce, then a ``Reply``; an interrupted cell first sends a reply of the kind REPORTING

A cell's output is not part of a reply: it goes through a pipe at descriptors 1 and 2. In the output, a *mark* made from the
nonce stands where a new line must begin unless one already has. Bytes on the connection that do not begin with the nonce of the
current request were forged by a cell, and the runner is killed."""

from __future__ import annotations

import array
import enum
import signal
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

INTERRUPT = signal.SIGPWR
"""The signal with which the supervisor interrupts a cell. Not SIGINT, because cells send, ignore, block and handle that."""
NONCE_BYTES = 16
OPS = ("hello", "start", "run", "seed", "write", "read")
REQUEST = struct.Struct("!IB16sqq")
REPLY = struct.Struct("!16sBqqI")
FIRST_READ_BYTES, READ_BYTES = 4096, 1 << 16
"""Buffer sizes in bytes: for the first read of a message, and for further reads. Most messages are short, and a large buffer
makes the C library trim its heap each time."""
MAX_DATA = 1 << 20
"""Maximum size of the data in a reply, in bytes."""
MAX_PACKET = 8192
"""Maximum size of a packet between supervisor and zygote, in bytes."""


class Request(NamedTuple):
    """A request to a runner."""

    op: str
    """``start`` (once, before all others): seed the generators, set the environment and run the setup. ``run``: run a cell.
    ``seed``: seed the generators again. ``hello``: check that a cell could run now. ``write``, ``read``: a file."""
    number: int = 0
    """For ``run``: the cell's number. For ``read`` and ``write``: the offset in the file, in bytes."""
    limit: int = -1
    """For ``run``: run only so many of the first statements; -1 runs all. For ``read``: the maximum number of bytes."""
    data: bytes = b""
    """For ``run``: the code. For ``seed``: the seed. For ``read``: the path. For ``write``: the path, a zero byte and the
    content. For ``start``: JSON."""


class Kind(enum.IntEnum):
    """The kind of a reply."""

    OK = 0
    ERROR = 1
    """The cell, the setup or the file operation raised."""
    INTERRUPTED = 2
    """The cell ended after a soft interrupt had reached it."""
    REPORTING = 3
    """Sent before the actual reply: the cell stopped after an interrupt, and its traceback is being written."""
    UNREADY = 4
    """Nothing was done: an earlier cell left the process in a state in which no cell can run."""


_KINDS = tuple(Kind)


class Reply(NamedTuple):
    """A runner's reply to a request."""

    kind: Kind
    finished: int = -1
    """For an interrupted cell: how many of its top-level statements had ended when the first interrupt came. For a ``read``:
    the size of the file."""
    line: int = 0
    """For an interrupted cell: the line in which the next statement begins."""
    data: bytes = b""
    """For a ``read``: the bytes. For a failed file operation or seed: the error's text."""


def parts(request: Request) -> Iterator[Request]:
    """Split a request for sending: a large ``write`` becomes several, each with its offset; others stay as they are.

    A part fits into the connection's buffer, so unsent data is always data that the runner has not read."""
    if request.op != "write":
        yield request
        return
    path, _, content = request.data.partition(b"\0")
    for begin in range(0, max(1, len(content)), READ_BYTES):
        yield request._replace(number=begin, data=b"%b\0%b" % (path, content[begin : begin + READ_BYTES]))


def pack_request(nonce: bytes, request: Request) -> bytes:
    """A request as bytes: header and data."""
    return REQUEST.pack(len(request.data), OPS.index(request.op), nonce, request.number, request.limit) + request.data


def take_request(buffer: bytearray) -> tuple[bytes, Request] | None:
    """Remove the first request and its nonce from a buffer of received bytes. None if the request is not complete yet."""
    if len(buffer) < REQUEST.size:
        return None
    length, op, nonce, number, limit = REQUEST.unpack_from(buffer)
    end = REQUEST.size + length
    if len(buffer) < end:
        return None
    data = bytes(buffer[REQUEST.size : end])
    del buffer[:end]
    return nonce, Request(OPS[op], number, limit, data)


def pack_reply(nonce: bytes, reply: Reply) -> bytes:
    """A reply as bytes: header and data."""
    return REPLY.pack(nonce, reply.kind, reply.finished, reply.line, len(reply.data)) + reply.data


def take_reply(buffer: bytearray, nonce: bytes) -> Reply | None:
    """Remove the first reply from a buffer of received bytes. None if the reply is not complete yet.

    Raises ValueError as soon as the bytes cannot be a reply to the request with that nonce.
    """
    if not buffer.startswith(nonce) and not nonce.startswith(bytes(buffer[:NONCE_BYTES])):
        raise ValueError("a reply without the nonce of the current request")
    if len(buffer) < REPLY.size:
        return None
    _, kind, finished, line, length = REPLY.unpack_from(buffer)
    if length > MAX_DATA or kind >= len(_KINDS):
        raise ValueError(f"an invalid reply: kind {kind}, {length} bytes")
    end = REPLY.size + length
    if len(buffer) < end:
        return None
    reply = Reply(_KINDS[kind], finished, line, bytes(buffer[REPLY.size : end]) if length else b"")
    del buffer[:end]
    return reply


def line_mark(nonce: bytes) -> str:
    """The mark in a cell's output where a new line must begin unless one already has."""
    return f"\0{nonce.hex()}\0"


def receive(connection: socket.socket, size: int, count: int, flags: int = 0) -> tuple[bytes, list[int]]:
    """Receive up to ``size`` bytes and ``count`` descriptors. (``socket.recv_fds`` ignores its flags up to Python 3.12.)"""
    data, ancillary, _, _ = connection.recvmsg(size, socket.CMSG_LEN(count * 4), flags)
    if not ancillary:
        return data, []
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    return data, list(descriptors)
