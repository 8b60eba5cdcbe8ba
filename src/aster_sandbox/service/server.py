"""The process of ``aster sandbox serve``: listen, serve, and shut down."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import uvicorn

from aster_sandbox.errors import SandboxFailure, SettingsError
from aster_sandbox.service.access import Accounts, Limits
from aster_sandbox.service.app import make_app
from aster_sandbox.service.calls import SHORTEST_OUTPUT
from aster_sandbox.service.metrics import Metrics
from aster_sandbox.service.middleware import RequestMiddleware
from aster_sandbox.service.registry import Registry
from aster_sandbox.settings import Settings
from aster_sandbox.supervisor import Sandbox, allow_descriptors

BACKLOG = 1024
CONNECTIONS = 16384
"""Limit of open files to request for this process: each connection needs one."""
STUCK_SECONDS = 60
"""The kernel closes a connection whose peer accepts no data for so long: slow readers, dead machines."""
KEEP_SECONDS = 75
"""How long an idle connection is kept open."""
GRACE_SECONDS = 3.0
"""How long shutting down may take beyond the time limit of running cells, to send their replies."""


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """The settings of the service, other than those of its sandbox."""

    host: str = "127.0.0.1"
    port: int = 0
    """0 picks a free port."""
    client_sessions: int | None = None
    """Sessions that one client may have open; None: all that there are."""
    client_cells: int = 256
    """Cells that one client may run at once."""
    client_queue: int = 1024
    """Further cells of one client that may wait."""
    queue_seconds: float = 5.0
    """How long a request to open a session waits for a place before it is refused."""
    idle_seconds: float = 3600.0
    """A session that is not used for so long is closed."""
    body_bytes: int = 8 << 20
    """Size of the largest request, and of the largest file that is sent back."""
    kept_replies: int = 16
    """Replies kept for each session, for requests that are sent again."""


class _Server(uvicorn.Server):
    """A uvicorn server without its own signal handling, which would raise the signals again at its end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to ``_serve``."""
        yield


def serve(settings: ServiceSettings, sandbox: Settings, tokens: dict[str, str], say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT.

    ``say`` is called with one line when the service listens. The sandbox prints its isolation level on stderr before that.
    ``tokens``: name -> token of the clients; empty serves everybody. Raises SettingsError if the service cannot start."""
    if sandbox.output_characters < SHORTEST_OUTPUT:
        raise SettingsError(f"sandbox.output_characters must be at least {SHORTEST_OUTPUT} for a service")
    allow_descriptors(CONNECTIONS)
    with contextlib.closing(_bind(settings.host, settings.port)) as listener:
        try:
            asyncio.run(_serve(settings, sandbox, tokens, listener, say))
        except SandboxFailure as error:
            raise SettingsError(f"the sandbox did not start: {error}") from error


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _serve(
    settings: ServiceSettings,
    sandbox_settings: Settings,
    tokens: dict[str, str],
    listener: socket.socket,
    say: Callable[[str], None],
) -> None:
    limits = Limits(settings.client_sessions or sandbox_settings.sessions, settings.client_cells, settings.client_queue)
    accounts = Accounts(tokens, limits)
    metrics = Metrics()
    metrics.capacity.set(sandbox_settings.sessions)
    for account in accounts:
        metrics.sessions.labels(account.name).set(0)
    grace = sandbox_settings.cell_seconds + GRACE_SECONDS
    async with (
        Sandbox(sandbox_settings) as sandbox,
        Registry(
            sandbox,
            sandbox_settings.model_copy(update={"isolation": sandbox.level.value}),
            metrics,
            queue_seconds=settings.queue_seconds,
            idle_seconds=settings.idle_seconds,
            kept_replies=settings.kept_replies,
        ) as registry,
    ):
        app = RequestMiddleware(make_app(registry, metrics, settings.body_bytes), accounts, metrics, settings.body_bytes)
        server = _Server(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                lifespan="off",
                ws="none",
                timeout_keep_alive=KEEP_SECONDS,
                timeout_graceful_shutdown=int(grace) + 1,
            )
        )
        loop = asyncio.get_running_loop()

        def stop() -> None:
            registry.stopping = True
            server.should_exit = True

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        listener.listen(BACKLOG)
        host, port = listener.getsockname()[:2]
        say(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}")
        await server.serve(sockets=[listener])
        await registry.drain(grace)


def _bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet, so that connections are refused until the sandbox has started."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        raise SettingsError(f"--host {host}: {error.strerror}") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted connections inherit these options.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STUCK_SECONDS * 1000)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise SettingsError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return listener
