"""The middleware before the routes: checks the token, and reads the body with limits of size and time."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from aster_sandbox.service.access import Accounts
from aster_sandbox.service.metrics import Metrics

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

PUBLIC_PATHS = frozenset({"/health", "/docs", "/openapi.json"})
"""Paths that need no token."""
BODY_SECONDS = 60.0
"""Time limit for receiving a body."""
GONE = 499
"""The status counted for a client that closed its connection. It is not sent."""
DRAIN_SECONDS = 10.0
DRAIN_BYTES = 256 << 20
"""How much of a refused body is read and discarded, so that a client that sends it all before reading gets the reply."""


class RequestMiddleware:
    """ASGI middleware. Stores the client's account in the scope as ``account``."""

    def __init__(self, app: App, accounts: Accounts, metrics: Metrics, body_bytes: int) -> None:
        self._app = app
        self._accounts = accounts
        self._metrics = metrics
        self._body_bytes = body_bytes

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        scope["account"] = self._accounts.find(headers.get(b"authorization", b"").decode("latin-1"))
        if scope["account"] is None and scope["path"] not in PUBLIC_PATHS:
            challenge = (b"www-authenticate", b"Bearer")
            await self._refuse(headers, receive, send, 401, "send a valid token: Authorization: Bearer TOKEN", challenge)
            return
        body = await self._read(headers, receive)
        if isinstance(body, int):
            details = {
                GONE: "the client closed the connection before its request was complete",
                408: "the body took too long to arrive",
                413: f"the body is larger than {self._body_bytes} bytes",
            }
            await self._refuse(headers, receive, send, body, details[body])
            return
        await self._app(scope, _replay(body, receive), self._counting(scope, send))

    async def _read(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | int:
        """The body, or the status with which to refuse it."""
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._body_bytes:
            return 413
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        return GONE  # an incomplete request must do nothing: cut short, it could be another valid request
                    body += message.get("body", b"")
                    if len(body) > self._body_bytes:
                        return 413
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            return 408

    async def _refuse(
        self, headers: dict[bytes, bytes], receive: Receive, send: Send, status: int, detail: str, *more: tuple[bytes, bytes]
    ) -> None:
        self._metrics.refused.labels(str(status)).inc()
        if headers.get(b"expect", b"").lower() != b"100-continue":  # such a client has not sent the body yet
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_SECONDS):
                    await _drain(receive)
        body = json.dumps({"detail": detail}).encode()
        answer = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        await send({"type": "http.response.start", "status": status, "headers": [*answer, *more]})
        await send({"type": "http.response.body", "body": body})

    def _counting(self, scope: MutableMapping[str, Any], send: Send) -> Send:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "none")
                self._metrics.requests.labels(route, str(message["status"])).inc()
            await send(message)

        return counted


async def _drain(receive: Receive) -> None:
    taken = 0
    while taken < DRAIN_BYTES:
        message = await receive()
        taken += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body"):
            return


def _replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that returns the body first, and then what the client sends."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replayed
