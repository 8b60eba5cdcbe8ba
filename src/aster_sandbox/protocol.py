"""The words between the kinds of process: supervisor, zygote and runner.

**Supervisor and zygote**: a ``SOCK_SEQPACKET`` socket pair, one JSON object a packet. The supervisor names runners by numbers
of its own, so that no pid of another namespace is ever needed.

    supervisor -> zygote   {"op": "fork", "id", "name"}   with 2 descriptors: the runner's connection and output. ``name`` is of
                                                          its directory; no other runner of the sandbox has it
    zygote -> supervisor   {"ready": true}                once, when all is imported; with 1 descriptor: its pidfd
                           {"forked": [id, ...]}          these runners are on their way; with a descriptor each: their pidfds
                           {"failed": id, "errno", "reason"}     this fork did not happen
                           {"gone": [[id, status], ...]}  runners that ended (status as of waitpid), with all that they started

The supervisor interrupts and kills runners by their pidfds. The end of this connection ends the zygote and everything below it.

**Supervisor and runner**: the connection, a ``SOCK_STREAM`` pair. What goes over it are structs, because JSON took a good part
of a short cell's time.

    supervisor -> runner   a ``Request``, with 16 random bytes, its nonce
    runner -> supervisor   the nonce, then a ``Reply``; before that of an interrupted cell a reply of the kind REPORTING

A cell's output never travels in a reply: it goes through a pipe at descriptors 1 and 2. There a *mark*, made from the nonce,
stands where a new line must begin if none has. Bytes on the connection that do not begin with the nonce of the request under
way are a forgery, and cost the session its runner."""

from __future__ import annotations

import array
import enum
import signal
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

INTERRUPT = signal.SIGPWR
"""By which the supervisor interrupts a cell. Not SIGINT: cells send that to themselves, ignore, block and handle it."""
NONCE_BYTES = 16
OPS = ("hello", "start", "run", "seed", "write", "read")
REQUEST = struct.Struct("!IB16sqq")
REPLY = struct.Struct("!16sBqqI")
FIRST_READ_BYTES, READ_BYTES = 4096, 1 << 16
"""Sizes of the first read of a message, and of the reads after it. Most messages are short, and a large buffer makes the C
library trim its heap each time."""
MAX_DATA = 1 << 20
"""Bytes of data in the longest reply."""
MAX_PACKET = 8192
"""Bytes of the longest packet between supervisor and zygote."""


class Request(NamedTuple):
    """What a runner is asked to do."""

    op: str
    """``start``, once and first: seed the generators, set the environment and run the setup. ``run``: a cell. ``seed``: seed
    the generators again. ``hello``: say whether a cell could run now. ``write``, ``read``: a file."""
    number: int = 0
    """The cell's; where a ``read`` or ``write`` begins, in bytes."""
    limit: int = -1
    """Of a ``run``: so many of its first statements alone, -1 all of them. Of a ``read``: so many bytes at the most."""
    data: bytes = b""
    """The cell's code; the seed; a path, and for ``write`` a zero byte and the content; for ``start`` JSON."""


class Kind(enum.IntEnum):
    """What a reply says."""

    OK = 0
    ERROR = 1
    """The cell, the setup or the file operation raised."""
    INTERRUPTED = 2
    """A soft interrupt reached the cell, whatever it then did."""
    REPORTING = 3
    """Not the answer yet: the cell has ended by an interrupt, and its traceback is being written."""
    UNREADY = 4
    """Nothing was done: the process is in a state in which no cell can run."""


_KINDS = tuple(Kind)


class Reply(NamedTuple):
    """A runner's answer."""

    kind: Kind
    finished: int = -1
    """Of an interrupted cell: how many of its first top-level statements had ended when the first interrupt came."""
    line: int = 0
    """And the line in which the next of them begins."""
    data: bytes = b""
    """A file's bytes, an error in words."""


def parts(request: Request) -> Iterator[Request]:
    """What a runner is sent for a request: a large file comes in several, each with the place where it goes. One fits into the
    connection, so that what the runner has not read is not on its way still."""
    if request.op != "write":
        yield request
        return
    path, _, content = request.data.partition(b"\0")
    for begin in range(0, max(1, len(content)), READ_BYTES):
        yield request._replace(number=begin, data=b"%b\0%b" % (path, content[begin : begin + READ_BYTES]))


def pack_request(nonce: bytes, request: Request) -> bytes:
    """A header and the data."""
    return REQUEST.pack(len(request.data), OPS.index(request.op), nonce, request.number, request.limit) + request.data


def take_request(buffer: bytearray) -> tuple[bytes, Request] | None:
    """Remove the first whole request, with its nonce, from a buffer of received bytes; None where it is not whole yet."""
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
    """A header and the data."""
    return REPLY.pack(nonce, reply.kind, reply.finished, reply.line, len(reply.data)) + reply.data


def take_reply(buffer: bytearray, nonce: bytes) -> Reply | None:
    """Remove the first whole reply from a buffer of received bytes; None where it is not whole yet.

    Raises ValueError as soon as the bytes cannot become a reply to the request with that nonce.
    """
    if not buffer.startswith(nonce) and not nonce.startswith(bytes(buffer[:NONCE_BYTES])):
        raise ValueError("a reply to no request")
    if len(buffer) < REPLY.size:
        return None
    _, kind, finished, line, length = REPLY.unpack_from(buffer)
    if length > MAX_DATA or kind >= len(_KINDS):
        raise ValueError(f"a reply of {length} bytes, of kind {kind}")
    end = REPLY.size + length
    if len(buffer) < end:
        return None
    reply = Reply(_KINDS[kind], finished, line, bytes(buffer[REPLY.size : end]) if length else b"")
    del buffer[:end]
    return reply


def line_mark(nonce: bytes) -> str:
    """What stands in a cell's output where a new line must begin if none has."""
    return f"\0{nonce.hex()}\0"


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
