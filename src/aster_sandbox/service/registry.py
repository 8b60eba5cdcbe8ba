"""The service's sessions: owners, limits, and when they end."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from aster_sandbox.errors import SandboxFailure
from aster_sandbox.isolation import Level
from aster_sandbox.service.access import Account, Gate, Refused
from aster_sandbox.service.metrics import Metrics
from aster_sandbox.service.replies import Replies
from aster_sandbox.session import Session
from aster_sandbox.settings import Settings
from aster_sandbox.supervisor import Sandbox
from aster_sandbox.types import CellResult

Making = Callable[[], Awaitable[Session]]
Work = Callable[[Session], Awaitable[Any]]
WORK = "work"
"""The name of tasks that run cells."""
LOOK_SECONDS = 30.0
"""Longest pause between two checks for idle sessions."""


@dataclass(frozen=True, slots=True)
class Origin:
    """How a session was opened. A second request with its id must ask for the same."""

    seed: int | None = None
    setup: str = ""
    environment: tuple[tuple[str, str], ...] = ()
    parent: str = ""
    """The id of the session it was forked from."""


@dataclass(eq=False)
class Entry:
    """One session of one client."""

    account: Account
    id: str
    origin: Origin
    replies: Replies[Any]
    opening: asyncio.Task[Session]
    used: float = field(default_factory=time.monotonic)
    """Monotonic time at which the last request for it began or ended."""
    busy: int = 0
    """Number of requests under way."""
    cells: int = 0
    """Number of cells that have run."""

    @property
    def key(self) -> tuple[str, str]:
        """Its key in the registry. Each client has its own namespace of ids."""
        return self.account.name, self.id


class Registry:
    """All sessions of the service. An async context manager; leaving it closes all sessions."""

    def __init__(
        self,
        sandbox: Sandbox,
        settings: Settings,
        metrics: Metrics,
        *,
        queue_seconds: float,
        idle_seconds: float,
        kept_replies: int,
    ) -> None:
        self.settings = settings
        self.stopping = False
        self.metrics = metrics
        self._sandbox = sandbox
        self._queue_seconds = queue_seconds
        self._idle_seconds = idle_seconds
        self._kept_replies = kept_replies
        self._entries: dict[tuple[str, str], Entry] = {}
        full = f"the service is full: all {settings.sessions} sessions are open"
        self._places = Gate(settings.sessions, 4 * settings.sessions, 503, full)
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Registry:
        self._keep(asyncio.create_task(self._reap()))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stopping = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*(self._end(entry, "shutdown") for entry in list(self._entries.values())))
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def level(self) -> Level:
        """The isolation level of all sessions."""
        return self._sandbox.level

    @property
    def open_sessions(self) -> int:
        """The number of open sessions of all clients."""
        return self._places.inside

    def of(self, account: Account) -> list[Entry]:
        """The open sessions of a client."""
        return [entry for entry in self._entries.values() if entry.account is account and _is_open(entry)]

    async def open(
        self,
        account: Account,
        session_id: str,
        seed: int,
        setup: str,
        environment: Mapping[str, str] | None = None,
        *,
        wait_seconds: float = 0.0,
    ) -> bool:
        """Open a session with an id that the client chose. Returns False if it is open already: a request may be sent twice.

        Waits for a place, for ``wait_seconds`` or the service's ``queue_seconds``, whichever is longer. Raises Refused if there
        is none then, if the id belongs to a session that was opened differently, or if the sandbox fails.
        """
        environment = environment or {}
        origin = Origin(seed, setup, tuple(sorted(environment.items())))
        return await self._enter(
            account, session_id, origin, lambda: self._sandbox.open(seed, setup, environment), "open", wait_seconds
        )

    async def fork(self, account: Account, session_id: str, child_id: str, seed: int | None) -> bool:
        """Open a second session with the same state and the id ``child_id``. Returns False if it is open already."""
        origin = Origin(seed, parent=session_id)

        async def make() -> Session:
            return await (await asyncio.shield(self._find(account, session_id).opening)).fork(seed)

        if (account.name, child_id) in self._entries:  # sent before; the parent may have ended since
            return await self._enter(account, child_id, origin, make, "fork")
        with self._using(self._find(account, session_id)):
            return await self._enter(account, child_id, origin, make, "fork")

    async def run(self, account: Account, session_id: str, code: str, request_id: str | None) -> CellResult:
        """Run a cell. With a ``request_id``, a second request with the same id gets the first one's reply, and the cell
        continues if its client disconnects."""
        call = await self.once(account, session_id, request_id, f"run {code}", lambda session: session.run(code))
        assert isinstance(call, CellResult)
        return call

    async def reseed(self, account: Account, session_id: str, seed: int, request_id: str | None) -> None:
        """Seed a session's random generators again; once for each ``request_id``, like ``run``."""
        await self.once(account, session_id, request_id, f"seed {seed}", lambda session: session.reseed(seed), cells=0)

    async def upload(self, account: Account, session_id: str, path: str, content: bytes, request_id: str | None) -> None:
        """Write a file in a session; once for each ``request_id``, like ``run``. Raises Refused if the session may not write
        it."""
        what = f"upload {hashlib.sha256(content).hexdigest()} {path}"
        try:
            await self.once(account, session_id, request_id, what, lambda session: session.upload(path, content), cells=0)
        except OSError as error:
            raise Refused(422, str(error)) from None

    async def download(self, account: Account, session_id: str, path: str, most_bytes: int) -> bytes:
        """The content of a file in a session. Raises Refused if it is not a readable file, or larger than ``most_bytes``."""
        try:
            content = await self.once(
                account, session_id, None, "", lambda session: session.download(path, most_bytes + 1), cells=0
            )
        except OSError as error:
            raise Refused(404, str(error), code="no_file") from None
        assert isinstance(content, bytes)
        if len(content) > most_bytes:
            raise Refused(413, f"{path}: the file is larger than {most_bytes} bytes")
        return content

    async def once(
        self,
        account: Account,
        session_id: str,
        request_id: str | None,
        content: str,
        work: Work,
        *,
        cells: int = 1,
    ) -> Any:
        """Do some work in a session, once for each ``request_id``, and return its result.

        ``content``: identifies the work, to detect an id that is used for something else. ``cells``: how many cells it counts
        as. Raises Refused."""
        entry = self._find(account, session_id)
        task = entry.replies.known(request_id, content) if request_id is not None else None
        if task is not None:
            self.metrics.repeated.inc()
        else:
            account.cells.check()
            # A separate task, which continues if the request that started it is cancelled.
            task = asyncio.create_task(self._work(entry, work, cells), name=WORK)
            self._keep(task)
            if request_id is not None:
                entry.replies.keep(request_id, content, task)
        return await self._failures(asyncio.shield(task))

    async def close(self, account: Account, session_id: str) -> None:
        """End a session, and the cell that runs in it."""
        await self._end(self._find(account, session_id), "closed")

    @contextlib.asynccontextmanager
    async def temporary_session(
        self, account: Account, seed: int, setup: str, wait_seconds: float
    ) -> AsyncIterator[Callable[[Work], Awaitable[Any]]]:
        """A session for one request. Yields a function that does some work in it."""
        session_id = secrets.token_hex(16)
        await self.open(account, session_id, seed, setup, wait_seconds=wait_seconds)
        entry = self._find(account, session_id)
        try:
            yield lambda work: self._failures(self._work(entry, work, 1))
        finally:
            await self._end(entry, "closed")

    async def drain(self, seconds: float) -> None:
        """Refuse new sessions, and wait up to ``seconds`` for running cells to end."""
        self.stopping = True
        busy = [task for task in self._tasks if task.get_name() == WORK]
        if busy:
            await asyncio.wait(busy, timeout=seconds)

    async def _work(self, entry: Entry, work: Work, cells: int) -> Any:
        with self._using(entry):
            session = await asyncio.shield(entry.opening)
            await entry.account.cells.enter()
            self.metrics.running.inc()
            try:
                result = await work(session)
            finally:
                self.metrics.running.dec()
                entry.account.cells.leave()
            entry.cells += cells
            if isinstance(result, CellResult):
                self.metrics.cell(result)
            return result

    async def _enter(
        self, account: Account, session_id: str, origin: Origin, make: Making, how: str, wait_seconds: float = 0.0
    ) -> bool:
        if self.stopping:
            raise Refused(503, "the service is shutting down", retry_seconds=5)
        key = (account.name, session_id)
        entry = self._entries.get(key)
        new = entry is None
        if entry is None:
            opening = asyncio.create_task(self._open(account, make, how, max(wait_seconds, self._queue_seconds)))
            entry = self._entries[key] = Entry(account, session_id, origin, Replies(self._kept_replies), opening)
            self._keep(opening)
            opening.add_done_callback(lambda _: self._drop_failed(entry))
        elif entry.origin != origin:
            raise Refused(409, "a session with this id is open, with another seed, setup, environment or parent")
        with self._using(entry):
            await self._failures(asyncio.shield(entry.opening))
        return new

    async def _open(self, account: Account, make: Making, how: str, wait_seconds: float) -> Session:
        await account.sessions.enter(wait_seconds)
        try:
            await self._places.enter(wait_seconds)
            try:
                session = await make()
            except BaseException:
                self._places.leave()
                raise
        except BaseException:
            account.sessions.leave()
            raise
        self.metrics.opened.labels(how).inc()
        self.metrics.sessions.labels(account.name).inc()
        return session

    def _drop_failed(self, entry: Entry) -> None:
        if not _is_open(entry) and self._entries.get(entry.key) is entry:
            del self._entries[entry.key]

    async def _end(self, entry: Entry, why: str) -> None:
        """Close an entry's session. Does nothing if that has been done."""
        if self._entries.get(entry.key) is not entry:
            return
        del self._entries[entry.key]
        try:
            session = await asyncio.shield(entry.opening)
        except (SandboxFailure, Refused, asyncio.CancelledError):
            return  # it never opened, and _open has given its places back
        try:
            await session.close()
        finally:
            self._places.leave()
            entry.account.sessions.leave()
            self.metrics.closed.labels(why).inc()
            self.metrics.sessions.labels(entry.account.name).dec()

    async def _reap(self) -> None:
        """Close sessions that have been idle for ``idle_seconds``, forever."""
        while True:
            await asyncio.sleep(min(LOOK_SECONDS, self._idle_seconds / 4))
            late = time.monotonic() - self._idle_seconds
            idle = [entry for entry in self._entries.values() if not entry.busy and entry.used < late]
            await asyncio.gather(*(self._end(entry, "idle") for entry in idle))

    async def _failures(self, work: Awaitable[Any]) -> Any:
        """The result of some work. Raises Refused in place of SandboxFailure."""
        try:
            return await work
        except SandboxFailure as error:
            raise Refused(424, str(error)) from error

    def _find(self, account: Account, session_id: str) -> Entry:
        entry = self._entries.get((account.name, session_id))
        if entry is None:
            gone = "no such session: it was closed, idle for too long, or the service was restarted"
            raise Refused(404, gone, code="no_session")
        return entry

    @contextlib.contextmanager
    def _using(self, entry: Entry) -> Iterator[None]:
        entry.busy += 1
        entry.used = time.monotonic()
        try:
            yield
        finally:
            entry.busy -= 1
            entry.used = time.monotonic()

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _is_open(entry: Entry) -> bool:
    return entry.opening.done() and not entry.opening.cancelled() and entry.opening.exception() is None
