"""Sessions behind one or several services, with the interface of a local :class:`aster_sandbox.Sandbox`.

A session stays with its host. The client keeps each session's history, so when its host is gone it is made again on another:
same seed, same setup, then its earlier cells, silently. That is what a local session does when its process dies, and the same
cells are left out: those that were interrupted or took their interpreter along. Every run carries an id, so that a request
whose answer was lost can be sent again: the service runs a cell once for each id.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import uuid
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aster_sandbox.errors import SandboxFailure, SettingsError
from aster_sandbox.history import LOST
from aster_sandbox.hosts import LONGEST_SECONDS, LOOK_SECONDS, Host, HostLost, Patience, Reply
from aster_sandbox.session import REPLAY_FACTOR
from aster_sandbox.types import CellResult, CellStatus

if TYPE_CHECKING:
    from aster_sandbox.settings import Settings

GIVE_UP_SECONDS = 60.0
END_SECONDS = 15.0
"""For a session's end to be heard of."""
UNBORN_PAUSES = (0.1, 0.3, 0.8)
"""Between requests for the end of a session that is not there, and may be about to come."""
ENTER_SECONDS = 15.0
"""For the first answer of a service, when the client is entered."""
DONE = frozenset({200, 204})
BROKEN = frozenset({404, 410})
"""Of a run: the session is not there any more, or cannot say what came of the cell."""


class SandboxClient:
    """Sessions on services. Use as ``async with SandboxClient(addresses, token) as sandbox``; one event loop."""

    def __init__(
        self,
        addresses: list[str],
        token: str | None = None,
        settings: Settings | None = None,
        give_up_seconds: float = GIVE_UP_SECONDS,
    ) -> None:
        """``settings``: what the services must be set to; None asks for nothing. Where no service answers for
        ``give_up_seconds``, that is a SandboxFailure."""
        if not addresses:
            raise SettingsError("sandbox.addresses: name at least one service, for instance http://127.0.0.1:8080")
        self.give_up_seconds = give_up_seconds
        self.cell_seconds = 0.0
        """The longest limit of a cell at any of the services."""
        self._settings = settings
        self._hosts = [Host(address, token) for address in dict.fromkeys(addresses)]
        self._sessions: set[RemoteSession] = set()
        self._looking: asyncio.Task[None] | None = None
        self._errands: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> SandboxClient:
        try:
            await self._check()
        except BaseException:
            await self._close_hosts()
            raise
        self._looking = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        await asyncio.gather(*(session.close() for session in list(self._sessions)))
        await asyncio.gather(*self._errands, return_exceptions=True)
        await self._close_hosts()

    async def open(self, seed: int, setup: str = "") -> RemoteSession:
        """A fresh session on the least loaded service; waits while all of them are full.

        ``seed`` and ``setup`` are those of :meth:`aster_sandbox.Sandbox.open`. SandboxFailure where the setup raises, or
        where no service answers for long.
        """
        session = RemoteSession(self, seed, setup)
        self._sessions.add(session)
        try:
            await session.begin()
        except BaseException:
            await session.close()
            raise
        return session

    def hosts_by_load(self) -> list[Host]:
        """The services that answer, the emptiest first."""
        return sorted(
            (host for host in self._hosts if host.healthy and host.vetted), key=lambda host: (host.load, random.random())
        )

    def nobody(self) -> SandboxFailure:
        """What to raise where no service answers."""
        troubles = "; ".join(f"{host.address}: {host.trouble or 'no answer'}" for host in self._hosts)
        return SandboxFailure(f"no sandbox service answers ({troubles})")

    def forget(self, session: RemoteSession) -> None:
        """A session ended."""
        self._sessions.discard(session)

    def adopt(self, session: RemoteSession) -> None:
        """A session was forked."""
        self._sessions.add(session)

    def send_away(self, work: Awaitable[None]) -> None:
        """Do something whose result nobody waits for."""
        task = asyncio.ensure_future(work)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    async def _check(self) -> None:
        """Wait for one service to answer; SettingsError where one refuses our token or is set otherwise than the recipe."""
        patience = Patience(min(ENTER_SECONDS, self.give_up_seconds))
        while not any(await asyncio.gather(*(host.look() for host in self._hosts))):
            if patience.over:
                raise self.nobody()
            await asyncio.sleep(0.3)
        for host in self._hosts:
            if host.healthy:
                await self._vet(host)

    async def _vet(self, host: Host) -> None:
        """Ask a host that answers for its settings, before it is used."""
        try:
            reply = await host.ask("GET", "/v1/settings")
        except HostLost:
            return
        if reply.status == 401:
            raise SettingsError(
                f"sandbox.addresses: {host.address} refuses the token; set ASTER_SANDBOX_TOKEN to one of its own"
            )
        if reply.status != 200:
            raise SettingsError(f"sandbox.addresses: {host.address} is no sandbox service: {reply.detail}")
        wanted = {} if self._settings is None else self._settings.model_dump(mode="json", exclude={"addresses", "sessions"})
        if wanted.get("isolation") == "auto":  # whatever level the service found
            del wanted["isolation"]
        for name, value in wanted.items():
            if name in reply.body and reply.body[name] != value:
                raise SettingsError(
                    f"sandbox.{name} is {value!r} in the recipe and {reply.body[name]!r} at {host.address}: "
                    "results would differ; start the service with this recipe"
                )
        seconds = float(reply.body["cell_seconds"])
        host.longest_seconds = LONGEST_SECONDS + 2 * REPLAY_FACTOR * seconds
        self.cell_seconds = max(self.cell_seconds, seconds)
        host.vetted = True

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await asyncio.gather(*(self._look_at(host) for host in self._hosts))

    async def _look_at(self, host: Host) -> None:
        if await host.look() and not host.vetted:
            try:
                await self._vet(host)
            except SettingsError as error:
                host.trouble = str(error)  # the others go on; where there are none, the failure says this

    async def _close_hosts(self) -> None:
        await asyncio.gather(*(host.close() for host in self._hosts))


@dataclass(frozen=True, slots=True)
class Past:
    """What was done in a session: a cell was run, or it was given a seed."""

    code: str = ""
    status: CellStatus = CellStatus.OK
    seed: int | None = None


class RemoteSession:
    """A Python interpreter of its own, on some service. Calls of :meth:`run` go one at a time."""

    def __init__(self, client: SandboxClient, seed: int, setup: str) -> None:
        self._client = client
        self._seed = seed
        self._setup = setup
        self._host: Host | None = None
        self._id = ""
        self._history: list[Past] = []
        self._note = ""
        """What the next cell's reader must know."""
        self._lock = asyncio.Lock()
        self._closed = False

    @property
    def address(self) -> str | None:
        """The service it is on now."""
        return self._host.address if self._host is not None else None

    async def begin(self) -> None:
        """Open it somewhere."""
        async with self._lock:
            await self._bring_back(Patience(self._client.give_up_seconds))

    async def run(self, code: str) -> CellResult:
        """Run one cell. Never raises for what the code does; SandboxFailure where no service can go on."""
        async with self._lock:
            self._require_open()
            started = time.perf_counter()
            reply = await self._do("run", {"code": code})
            note, self._note = self._note, ""
            status = CellStatus(reply.body["status"])
            self._history.append(Past(code, status))
            return CellResult(code, status, note + reply.body["output"], time.perf_counter() - started)

    async def reseed(self, seed: int) -> None:
        """Other random numbers from here on, as with a local session."""
        async with self._lock:
            self._require_open()
            await self._do("seed", {"seed": seed})
            self._history.append(Past(seed=seed))

    async def fork(self, seed: int | None = None) -> RemoteSession:
        """A second session with the same state, on the same service, and with other random numbers where it is given a
        ``seed``. Waits while the service is full."""
        async with self._lock:
            self._require_open()
            patience = Patience(self._client.give_up_seconds)
            while True:
                host = self._host or await self._bring_back(patience)
                child = RemoteSession(self._client, self._seed, self._setup)
                child._id = _new_id()
                try:
                    reply = await self._ask(host, "POST", f"/v1/sessions/{self._id}/fork", {"id": child._id, "seed": seed})
                except HostLost:
                    self._leave()
                    continue
                except asyncio.CancelledError:
                    self._client.send_away(_end_unborn(host, child._id))  # it may be there
                    raise
                if reply.status in BROKEN:
                    self._leave()
                    continue
                if reply.status not in (200, 201):
                    raise SandboxFailure(reply.detail)
                child._history = self._history + ([] if seed is None else [Past(seed=seed)])
                child._note = self._note
                child._settle(host)
                self._client.adopt(child)
                return child

    async def close(self) -> None:
        """End it, and the cell that runs in it. Closing twice is fine."""
        if self._closed:
            return
        self._closed = True
        self._client.forget(self)
        host = self._host
        self._leave(tidy=False)
        if host is not None and host.healthy:
            await _end(host, self._id)

    async def __aenter__(self) -> RemoteSession:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _do(self, what: str, content: dict[str, Any]) -> Reply:
        """Have a cell run, or a seed taken, wherever the session is or can be brought back."""
        try:
            return await self._insist(what, content | {"request_id": _new_id()})
        except asyncio.CancelledError:
            self._leave()  # the cell is still running: the next one must not find it
            raise

    async def _insist(self, what: str, request: dict[str, Any]) -> Reply:
        patience = Patience(self._client.give_up_seconds)
        while True:
            host = self._host or await self._bring_back(patience)
            try:
                reply = await self._ask(host, "POST", f"/v1/sessions/{self._id}/{what}", request)
            except HostLost:
                self._leave(tidy=False)
                continue
            self._require_open()
            if reply.status in DONE:
                return reply
            if reply.status not in BROKEN:
                raise SandboxFailure(reply.detail)
            self._leave(tidy=False)

    async def _ask(self, host: Host, method: str, path: str, body: dict[str, Any]) -> Reply:
        """An answer other than "busy"."""
        while True:
            reply = await host.ask(method, path, body)
            if not reply.busy:
                return reply
            if not host.healthy:
                raise HostLost(reply.detail)
            await asyncio.sleep(reply.retry_seconds * random.uniform(0.5, 1.0))

    async def _bring_back(self, patience: Patience) -> Host:
        """A host on which the session is open, with the state of its earlier cells. Where that is lost, a note says so."""
        while True:
            host = await self._open_somewhere(patience)
            try:
                if await self._replay(host):
                    patience.renew()
                    return host
            except HostLost:
                self._leave(tidy=False)
                continue
            self._leave()
            self._history.clear()
            self._note = f"[the interpreter had to be replaced before this cell; {LOST}]\n"

    async def _open_somewhere(self, patience: Patience) -> Host:
        while True:
            self._require_open()
            hosts = self._client.hosts_by_load()
            pause = 0.2
            for host in hosts:
                self._id = _new_id()
                try:
                    reply = await host.ask("POST", "/v1/sessions", {"id": self._id, "seed": self._seed, "setup": self._setup})
                except HostLost:
                    continue
                except asyncio.CancelledError:
                    self._client.send_away(_end_unborn(host, self._id))
                    raise
                if reply.status in (200, 201):
                    self._settle(host)
                    if self._closed:
                        self._leave()
                    return host
                if not reply.busy:
                    raise SandboxFailure(reply.detail)
                patience.renew()  # it is full, and alive
                pause = reply.retry_seconds
            if patience.over:
                raise self._client.nobody()
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))

    async def _replay(self, host: Host) -> bool:
        """Run the earlier cells again, silently. False where that takes too long or ends otherwise than a cell's end."""
        deadline = time.monotonic() + REPLAY_FACTOR * self._client.cell_seconds
        for past in self._history:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            # An empty cell stands for one that is left out: the numbers in tracebacks stay what they were.
            repeated = past.code if past.status in (CellStatus.OK, CellStatus.ERROR) else ""
            what, content = ("run", {"code": repeated}) if past.seed is None else ("seed", {"seed": past.seed})
            reply = await self._ask(host, "POST", f"/v1/sessions/{self._id}/{what}", content | {"request_id": _new_id()})
            if reply.status in BROKEN:
                raise HostLost(reply.detail)
            if reply.status not in DONE:
                raise SandboxFailure(reply.detail)
            if what == "run" and reply.body["status"] not in (CellStatus.OK, CellStatus.ERROR):
                return False
        return True

    def _settle(self, host: Host) -> None:
        self._host = host
        host.own += 1

    def _leave(self, tidy: bool = True) -> None:
        """Have no host any more; ``tidy`` ends what is there."""
        host, self._host = self._host, None
        if host is None:
            return
        host.own -= 1
        if tidy:
            self._client.send_away(_end(host, self._id))

    def _require_open(self) -> None:
        if self._closed:
            raise SandboxFailure("the session is closed")


async def _end(host: Host, session_id: str) -> None:
    """End a session on its host. Where it cannot be told, it ends there as idle."""
    with contextlib.suppress(HostLost, TimeoutError):
        async with asyncio.timeout(END_SECONDS):
            await host.ask("DELETE", f"/v1/sessions/{session_id}")


async def _end_unborn(host: Host, session_id: str) -> None:
    """End a session whose opening was cancelled. The request for that may be behind this one, on another connection."""
    with contextlib.suppress(HostLost, TimeoutError):
        async with asyncio.timeout(END_SECONDS):
            for pause in UNBORN_PAUSES:
                if (await host.ask("DELETE", f"/v1/sessions/{session_id}")).status != 404:
                    return
                await asyncio.sleep(pause)
            await host.ask("DELETE", f"/v1/sessions/{session_id}")


def _new_id() -> str:
    return uuid.uuid4().hex
