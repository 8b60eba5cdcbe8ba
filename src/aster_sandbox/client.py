"""The client of one or more services, with the interface of a local :class:`aster_sandbox.Sandbox`."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING

from aster_sandbox.errors import SandboxFailure, SettingsError
from aster_sandbox.hosts import HEALTH_SECONDS, LONGEST_SECONDS, Host, HostLost, Patience
from aster_sandbox.interface import check_environment
from aster_sandbox.remote import RemoteSession
from aster_sandbox.session import REPLAY_FACTOR

if TYPE_CHECKING:
    from aster_sandbox.settings import Settings

GIVE_UP_SECONDS = 60.0
ENTER_SECONDS = 15.0
"""How long to wait for the first reply of a service when the client is entered."""


class SandboxClient:
    """Runs sessions on services. Use it as ``async with SandboxClient(addresses, token) as sandbox``, on one event loop."""

    def __init__(
        self,
        addresses: list[str],
        token: str | None = None,
        settings: Settings | None = None,
        give_up_seconds: float = GIVE_UP_SECONDS,
    ) -> None:
        """``settings``: the settings that the services must have; None accepts any. If no service answers for
        ``give_up_seconds``, calls raise SandboxFailure. Entering raises SettingsError if a service refuses the token or has
        other settings."""
        if not addresses:
            raise SettingsError("sandbox.addresses: name at least one service, for instance http://127.0.0.1:8080")
        self.give_up_seconds = give_up_seconds
        self._settings = settings
        self._hosts = [Host(address, token) for address in dict.fromkeys(addresses)]
        self._sessions: set[RemoteSession] = set()
        self._health_checks: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> SandboxClient:
        try:
            await self._check()
        except BaseException:
            await self._close_hosts()
            raise
        self._health_checks = asyncio.create_task(self._watch_health())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._health_checks is not None:
            self._health_checks.cancel()
            await asyncio.gather(self._health_checks, return_exceptions=True)
        await asyncio.gather(*(session.close() for session in list(self._sessions)))
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._close_hosts()

    async def open(self, seed: int = 0, setup: str = "", environment: Mapping[str, str] | None = None) -> RemoteSession:
        """Open a new session on the least loaded service; waits while all of them are full.

        The arguments are those of :meth:`aster_sandbox.Sandbox.open`. Raises SandboxFailure if the setup raises, or if no
        service answers for ``give_up_seconds``.
        """
        check_environment(environment or {})
        session = RemoteSession(self, {"seed": seed, "setup": setup, "environment": dict(environment or {})})
        self._sessions.add(session)
        try:
            await session.begin()
        except BaseException:
            await session.close()
            raise
        return session

    def hosts_by_load(self) -> list[Host]:
        """The services that answer, the least loaded first."""
        return sorted(
            (host for host in self._hosts if host.healthy and host.checked), key=lambda host: (host.load, random.random())
        )

    def no_answer_error(self) -> SandboxFailure:
        """The exception to raise if no service answers."""
        errors = "; ".join(f"{host.address}: {host.last_error or 'no answer'}" for host in self._hosts)
        return SandboxFailure(f"no sandbox service answers ({errors})")

    def forget(self, session: RemoteSession) -> None:
        """Remove a session that has ended."""
        self._sessions.discard(session)

    def adopt(self, session: RemoteSession) -> None:
        """Add a session that was forked."""
        self._sessions.add(session)

    def run_in_background(self, work: Awaitable[None]) -> None:
        """Start some work without waiting for it. Leaving the client waits for it."""
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _check(self) -> None:
        """Wait until a service answers, and check the settings of all that do. Raises SettingsError if one refuses the token or
        has other settings, and SandboxFailure if none answers."""
        patience = Patience(min(ENTER_SECONDS, self.give_up_seconds))
        while not any(await asyncio.gather(*(host.check_health() for host in self._hosts))):
            if patience.over:
                raise self.no_answer_error()
            await asyncio.sleep(0.3)
        for host in self._hosts:
            if host.healthy:
                await self._check_settings(host)

    async def _check_settings(self, host: Host) -> None:
        """Check that a host accepts the token and has the right settings, before it is used. Raises SettingsError."""
        try:
            reply = await host.ask("GET", "/v1/settings")
        except HostLost:
            return
        if reply.status == 401:
            raise SettingsError(
                f"sandbox.addresses: {host.address} refuses the token; set ASTER_SANDBOX_TOKEN to one of its tokens"
            )
        if reply.status != 200:
            raise SettingsError(f"sandbox.addresses: {host.address} is not a sandbox service: {reply.detail}")
        wanted = {} if self._settings is None else self._settings.model_dump(mode="json", exclude={"addresses", "sessions"})
        if wanted.get("isolation") == "auto":  # any level is fine
            del wanted["isolation"]
        for name, value in wanted.items():
            if name in reply.body and reply.body[name] != value:
                raise SettingsError(
                    f"sandbox.{name} is {value!r} in the recipe and {reply.body[name]!r} at {host.address}, "
                    "so results would differ; start the service with this recipe"
                )
        seconds, host.replay_seconds = float(reply.body["cell_seconds"]), float(reply.body["replay_seconds"])
        host.longest_seconds = LONGEST_SECONDS + 2 * (REPLAY_FACTOR * seconds + host.replay_seconds)
        host.checked = True

    async def _watch_health(self) -> None:
        while True:
            await asyncio.sleep(HEALTH_SECONDS)
            await asyncio.gather(*(self._check_host(host) for host in self._hosts))

    async def _check_host(self, host: Host) -> None:
        if await host.check_health() and not host.checked:
            try:
                await self._check_settings(host)
            except SettingsError as error:
                host.last_error = str(error)  # do not use this host; if no other answers, the SandboxFailure reports it

    async def _close_hosts(self) -> None:
        await asyncio.gather(*(host.close() for host in self._hosts))
