"""A session on a service.

The client keeps the session's history. If its host is lost, the session is opened on another host with the same seed, setup and
environment, and its steps are repeated. A local session does the same when its process dies, except for interrupted cells: the
client does not know how far they got, so it leaves them out and says so. Every request carries an id, and the service serves
each id once, so a request whose reply was lost can be sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import uuid
from collections.abc import Awaitable
from typing import Any, Protocol
from urllib.parse import quote

from aster_sandbox.errors import SandboxFailure
from aster_sandbox.history import KEPT, LOST, History, Step
from aster_sandbox.hosts import Host, HostLost, Patience, Reply
from aster_sandbox.interface import encode_path
from aster_sandbox.protocol import Kind, Request
from aster_sandbox.types import CellResult, CellStatus

END_SECONDS = 15.0
"""Time limit for the request that ends a session."""
CANCELLED_OPEN_PAUSES = (0.1, 0.3, 0.8)
"""Pauses between requests to end a session whose opening was cancelled: it may not exist yet."""
FILE_REFUSED = frozenset({413, 422})
"""Statuses with which the service refuses to write or send a file."""
KINDS = {CellStatus.OK: Kind.OK, CellStatus.ERROR: Kind.ERROR, CellStatus.TIMEOUT: Kind.INTERRUPTED}


class Client(Protocol):
    """What a session needs from its client."""

    give_up_seconds: float

    def hosts_by_load(self) -> list[Host]:
        """The services that answer, the least loaded first."""

    def no_answer_error(self) -> SandboxFailure:
        """The exception to raise if no service answers."""

    def adopt(self, session: RemoteSession) -> None:
        """Add a session that was forked."""

    def forget(self, session: RemoteSession) -> None:
        """Remove a session that has ended."""

    def run_in_background(self, work: Awaitable[None]) -> None:
        """Start some work without waiting for it."""


class RemoteSession:
    """A stateful Python interpreter on a service. Calls of :meth:`run` are served one at a time."""

    def __init__(self, client: Client, origin: dict[str, Any]) -> None:
        """``origin``: the fields of the request that opens it, without the id."""
        self._client = client
        self._origin = origin
        self._host: Host | None = None
        self._id = ""
        self._history = History()
        self._number = 0
        """The number of its last cell."""
        self._note = ""
        """A note on lost state, for the beginning of the next cell's output."""
        self._lock = asyncio.Lock()
        self._closed = False

    @property
    def address(self) -> str | None:
        """The address of its service; None if it has none at the moment."""
        return self._host.address if self._host is not None else None

    async def begin(self) -> None:
        """Open it on some service. Raises SandboxFailure."""
        async with self._lock:
            await self._reopen(Patience(self._client.give_up_seconds))

    async def run(self, code: str) -> CellResult:
        """Run one cell. Never raises for what the code does; raises SandboxFailure if no service can run it."""
        async with self._lock:
            self._require_open()
            started = time.perf_counter()
            request = Request("run", self._number + 1, data=code.encode("utf-8", "surrogatepass"))
            try:
                reply = await self._request(request)
            finally:
                self._number += 1
            if reply.status != 200:
                raise SandboxFailure(reply.detail)
            note, self._note = self._note, ""
            status = CellStatus(reply.body["status"])
            seconds = time.perf_counter() - started
            if status is not CellStatus.CRASHED:  # the service rolls a crashed cell back
                interrupted = status is CellStatus.TIMEOUT
                self._history.add(Step(request, KINDS[status], seconds, repeatable=not interrupted))
            return CellResult(code, status, note + reply.body["output"], seconds)

    async def reseed(self, seed: int) -> None:
        """Seed the session's global random generators again, as with a local session."""
        async with self._lock:
            self._require_open()
            request = Request("seed", self._number, data=str(seed).encode())
            reply = await self._request(request)
            if reply.status != 204:
                raise SandboxFailure(reply.detail)
            self._history.add(Step(request, Kind.OK))

    async def upload(self, path: str, content: bytes) -> None:
        """Write a file in the session, as with a local session. Its content is kept in memory until the session ends, so that
        it can be restored on another service. Raises OSError if the session may not write it, or if it is larger than the
        service accepts."""
        async with self._lock:
            self._require_open()
            request = Request("write", self._number, data=_path(path) + b"\0" + content)
            started = time.perf_counter()
            reply = await self._request(request)
            if reply.status in FILE_REFUSED:
                raise OSError(reply.detail)
            if reply.status != 204:
                raise SandboxFailure(reply.detail)
            self._history.add(Step(request, Kind.OK, time.perf_counter() - started))

    async def download(self, path: str) -> bytes:
        """The content of a file in the session, as with a local session. Raises OSError if it is not a readable file, or if it
        is larger than the service sends."""
        async with self._lock:
            self._require_open()
            reply = await self._request(Request("read", self._number, data=_path(path)))
            if reply.status in FILE_REFUSED or reply.code == "no_file":
                raise OSError(reply.detail)
            if reply.status != 200:
                raise SandboxFailure(reply.detail)
            return reply.content

    async def fork(self, seed: int | None = None) -> RemoteSession:
        """A second, independent session with the same state, on the same service; with a ``seed``, its generators are seeded
        with that. Waits while the service is full."""
        async with self._lock:
            self._require_open()
            patience = Patience(self._client.give_up_seconds)
            while True:
                host = self._host or await self._reopen(patience)
                child = RemoteSession(self._client, self._origin)
                child._id = _new_id()
                body = {"id": child._id, "seed": seed}
                try:
                    reply = await _ask(host, "POST", f"/v1/sessions/{self._id}/fork", body)
                except HostLost:
                    self._detach()
                    continue
                except asyncio.CancelledError:
                    self._client.run_in_background(_end_cancelled_open(host, child._id))  # it may have been opened
                    raise
                if _is_broken(reply):
                    self._detach()
                    continue
                if reply.status not in (200, 201):
                    raise SandboxFailure(reply.detail)
                child._history = self._history.copy()
                child._number = self._number
                child._note = self._note
                if seed is not None:
                    child._history.add(Step(Request("seed", self._number, data=str(seed).encode()), Kind.OK))
                child._attach(host)
                self._client.adopt(child)
                return child

    async def close(self) -> None:
        """End the session, and the cell that runs in it. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._client.forget(self)
        host = self._host
        self._detach(close_remote=False)
        if host is not None and host.healthy:
            await _end(host, self._id)

    async def __aenter__(self) -> RemoteSession:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _request(self, request: Request) -> Reply:
        """The reply to a request. If the host is lost, reopens the session on another one and sends the request again."""
        patience = Patience(self._client.give_up_seconds)
        request_id = _new_id()
        try:
            while True:
                host = self._host or await self._reopen(patience)
                try:
                    reply = await self._send(host, request, request_id)
                except HostLost:
                    self._detach(close_remote=False)
                    continue
                self._require_open()
                if not _is_broken(reply):
                    return reply
                self._detach(close_remote=False)
        except asyncio.CancelledError:
            self._detach()  # the cell still runs, and the next cell must find the state before it
            raise

    async def _send(self, host: Host, request: Request, request_id: str) -> Reply:
        session = f"/v1/sessions/{self._id}"
        match request.op:
            case "run":
                code = request.data.decode("utf-8", "surrogatepass")
                return await _ask(host, "POST", f"{session}/run", {"code": code, "request_id": request_id})
            case "seed":
                return await _ask(host, "POST", f"{session}/seed", {"seed": int(request.data), "request_id": request_id})
            case "write":
                path, _, content = request.data.partition(b"\0")
                return await _ask(host, "PUT", f"{session}/files/{quote(path, '')}?request_id={request_id}", content)
            case "read":
                return await _ask(host, "GET", f"{session}/files/{quote(request.data, '')}", None)
        raise ValueError(f"unknown request {request.op!r}")

    async def _reopen(self, patience: Patience) -> Host:
        """Open the session on a host and restore the state of its earlier cells. Sets the note if part of it is lost."""
        while True:
            host = await self._open_somewhere(patience)
            try:
                await self._replay(host)
            except HostLost:
                self._detach(close_remote=False)
                continue
            patience.renew()
            state = self._history.state()
            if self._history.all_missing:
                state = LOST
                self._history = History()
            if state != KEPT:
                self._note = f"[the interpreter had to be replaced before this cell; {state}]\n"
            return host

    async def _open_somewhere(self, patience: Patience) -> Host:
        while True:
            self._require_open()
            hosts = self._client.hosts_by_load()
            pause = 0.2
            for host in hosts:
                self._id = _new_id()
                try:
                    reply = await host.ask("POST", "/v1/sessions", {"id": self._id, **self._origin})
                except HostLost:
                    continue
                except asyncio.CancelledError:
                    self._client.run_in_background(_end_cancelled_open(host, self._id))
                    raise
                if reply.status in (200, 201):
                    self._attach(host)
                    if self._closed:
                        self._detach()
                    return host
                if not reply.busy:
                    raise SandboxFailure(reply.detail)
                patience.renew()  # it is full, but it answers
                pause = reply.retry_seconds
            if patience.over:
                raise self._client.no_answer_error()
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))

    async def _replay(self, host: Host) -> None:
        """Repeat all steps and record which ones are missing. A cell that ends its interpreter is not repeated again."""
        history = self._history
        history.begin_replay()
        deadline = time.monotonic() + max(host.replay_seconds, 2 * history.seconds)
        ran = 0
        for place, step in enumerate(history.steps):
            if not step.repeatable or time.monotonic() > deadline:
                history.missing.add(place)
                continue
            if step.request.op == "run":
                ran = await self._fill(host, ran, step.request.number - 1) + 1
            reply = await self._again(host, step.request)
            status = CellStatus(reply.body.get("status", CellStatus.OK if reply.status == 204 else CellStatus.ERROR))
            step.repeatable = status is not CellStatus.CRASHED
            if KINDS.get(status) is not step.expected:
                history.missing.add(place)
            if status is CellStatus.CRASHED and LOST in reply.body["output"]:
                history.missing |= set(range(place))
        await self._fill(host, ran, self._number)

    async def _fill(self, host: Host, ran: int, number: int) -> int:
        """Run an empty cell for each missing one up to ``number``, so that tracebacks number the others as before. ``ran``: how
        many cells have run; returns how many have run now."""
        for each in range(ran, number):
            await self._again(host, Request("run", each + 1))
        return max(ran, number)

    async def _again(self, host: Host, request: Request) -> Reply:
        reply = await self._send(host, request, _new_id())
        if _is_broken(reply):
            raise HostLost(reply.detail)
        if reply.status not in (200, 204) and reply.status not in FILE_REFUSED:
            raise SandboxFailure(reply.detail)
        return reply

    def _attach(self, host: Host) -> None:
        self._host = host
        host.own += 1

    def _detach(self, close_remote: bool = True) -> None:
        """Give up the host. ``close_remote``: whether to end the session there."""
        host, self._host = self._host, None
        if host is None:
            return
        host.own -= 1
        if close_remote:
            self._client.run_in_background(_end(host, self._id))

    def _require_open(self) -> None:
        if self._closed:
            raise SandboxFailure("the session is closed")


async def _ask(host: Host, method: str, path: str, body: dict[str, Any] | bytes | None) -> Reply:
    """The reply to a request, sent again as long as the service is busy. Raises HostLost."""
    while True:
        reply = await host.ask(method, path, body)
        if not reply.busy:
            return reply
        if not host.healthy:
            raise HostLost(reply.detail)
        await asyncio.sleep(reply.retry_seconds * random.uniform(0.5, 1.0))


def _is_broken(reply: Reply) -> bool:
    """Whether the service no longer has the session, or no longer has the reply to the request."""
    return reply.status == 410 or (reply.status == 404 and reply.code != "no_file")


async def _end(host: Host, session_id: str) -> None:
    """End a session on its host. If the host does not answer, the session ends there when it has been idle for long."""
    with contextlib.suppress(HostLost, TimeoutError):
        async with asyncio.timeout(END_SECONDS):
            await host.ask("DELETE", f"/v1/sessions/{session_id}")


async def _end_cancelled_open(host: Host, session_id: str) -> None:
    """End a session whose opening was cancelled. The request to open it may arrive after this one, on another connection."""
    with contextlib.suppress(HostLost, TimeoutError):
        async with asyncio.timeout(END_SECONDS):
            for pause in CANCELLED_OPEN_PAUSES:
                if (await host.ask("DELETE", f"/v1/sessions/{session_id}")).status != 404:
                    return
                await asyncio.sleep(pause)
            await host.ask("DELETE", f"/v1/sessions/{session_id}")


def _path(path: str) -> bytes:
    """A path for a URL. Raises OSError if it is not valid there."""
    try:
        return encode_path(path, "strict")
    except UnicodeEncodeError:
        raise OSError(f"{path!r}: a service accepts only paths that are valid UTF-8") from None


def _new_id() -> str:
    return uuid.uuid4().hex
