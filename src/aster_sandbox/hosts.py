"""The client's side of one service: requests with retries, health checks, load."""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass
from typing import Any

import httpx2

PAUSES = (0.1, 0.3, 0.8)
"""Pauses between attempts at one request, in seconds. After the last attempt its host counts as lost."""
CONNECT_SECONDS = 5.0
REPLY_SECONDS = 20.0
"""If a reply takes longer and the host still answers, the request is sent again with the same id."""
LONGEST_SECONDS = 300.0
"""Time limit for a request, for recovery and the start of a new zygote; the client adds the time limits of cells."""
KEEP_SECONDS = 30.0
"""How long an idle connection is kept: less than the service keeps it."""
HEALTH_SECONDS = 2.0
"""Pause between two health checks of a host."""
LOST_CHECKS = 3
"""After so many failed health checks a host counts as lost."""
BYTES = "application/octet-stream"
"""The content type of files."""
PROXY_ERRORS = frozenset({502, 504})
"""Statuses with which a proxy reports that it does not reach the service."""


class HostLost(Exception):
    """A host does not answer."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A service's reply."""

    status: int
    body: dict[str, Any]
    """The parsed body, if it is JSON."""
    retry_seconds: float
    """The header Retry-After, in seconds."""
    content: bytes = b""
    """The body of a file."""

    @property
    def busy(self) -> bool:
        """Whether the service was busy, so that the same request may succeed later."""
        return self.status in (429, 503)

    @property
    def code(self) -> str:
        """The service's code for the reason, if one status has several; else empty."""
        return str(self.body.get("code", ""))

    @property
    def detail(self) -> str:
        """The service's reason, as text."""
        return str(self.body.get("detail", f"HTTP status {self.status}"))


class Host:
    """One service."""

    def __init__(self, address: str, token: str | None) -> None:
        self.address = address.rstrip("/")
        self.healthy = True
        self.checked = False
        """Whether it accepted the token and has the right settings."""
        self.replay_seconds = 0.0
        """Its time limit for a replay."""
        self.longest_seconds = LONGEST_SECONDS
        """Time limit for a request."""
        self.own = 0
        """Number of this client's sessions there."""
        self.reported = 0
        """Number of all sessions there, as of the last health check."""
        self.limit = 1
        """Maximum number of sessions there."""
        self.last_error = ""
        """Why the last failed attempt failed."""
        self._missed = 0
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEEP_SECONDS)
        self._http = httpx2.AsyncClient(base_url=self.address, headers=headers, limits=limits, trust_env=False)

    @property
    def load(self) -> float:
        """The fraction of its sessions in use, as far as is known."""
        return max(self.own, self.reported) / self.limit

    async def ask(self, method: str, path: str, body: dict[str, Any] | bytes | None = None) -> Reply:
        """Send a request, and send it again if the reply is lost. So it must be a request that may be sent twice. Raises
        HostLost."""
        attempt = 0
        deadline = time.monotonic() + self.longest_seconds
        while True:
            try:
                return await self._send(method, path, body, REPLY_SECONDS)
            except httpx2.ReadTimeout:
                # It may still work on this. The same request, sent again, gets the first one's reply.
                await self.check_health()
                if not self.healthy:
                    raise HostLost(self.last_error) from None
                if time.monotonic() > deadline:
                    self.last_error = f"no reply to {method} {path}"
                    raise HostLost(self.last_error) from None
            except httpx2.TransportError as error:
                self._record(error)
                if attempt == len(PAUSES) or (attempt and not self.healthy):
                    self.healthy = False
                    raise HostLost(self.last_error) from None
                await asyncio.sleep(PAUSES[attempt] * random.uniform(0.7, 1.3))
                attempt += 1

    async def check_health(self) -> bool:
        """Request the host's health and update its state. Returns whether it answered."""
        try:
            reply = await self._send("GET", "/health", None, CONNECT_SECONDS)
        except httpx2.TransportError as error:
            self._record(error)
            self._missed += 1
            if self._missed >= LOST_CHECKS:
                self.healthy = False
            return False
        if reply.status != 200 or not {"status", "sessions", "limit"} <= reply.body.keys():
            self.last_error = f"GET /health: {reply.detail}"
            self.healthy = False
            return False
        self._missed = 0
        self.healthy = reply.body["status"] == "ok"
        self.reported, self.limit = reply.body["sessions"], max(reply.body["limit"], 1)
        return True

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def _send(self, method: str, path: str, body: dict[str, Any] | bytes | None, seconds: float) -> Reply:
        timeout = httpx2.Timeout(seconds, connect=CONNECT_SECONDS, pool=None)
        headers = {}
        if isinstance(body, dict):
            # ASCII, so that lone surrogates are sent as escapes.
            content: bytes | None = json.dumps(body).encode("ascii")
            headers["Content-Type"] = "application/json"
        else:
            content = body
            headers |= {} if body is None else {"Content-Type": BYTES}
        response = await self._http.request(method, path, content=content, headers=headers, timeout=timeout)
        if response.status_code in PROXY_ERRORS:
            raise httpx2.RemoteProtocolError(f"HTTP status {response.status_code}")
        after = response.headers.get("Retry-After", "1")
        retry_seconds = float(after) if after.isdigit() else 1.0
        if response.headers.get("Content-Type") == BYTES:
            return Reply(response.status_code, {}, retry_seconds, response.content)
        try:
            parsed = response.json() if response.content else {}
        except ValueError:
            parsed = {"detail": response.text[:200]}  # not from the service: for instance a proxy's page
        return Reply(response.status_code, parsed if isinstance(parsed, dict) else {"detail": str(parsed)[:200]}, retry_seconds)

    def _record(self, error: Exception) -> None:
        self.last_error = f"{type(error).__name__}{f': {error}' if str(error) else ''}"


class Patience:
    """A deadline that is extended whenever a service answers."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.renew()

    def renew(self) -> None:
        """Extend the deadline, because a service answered."""
        self._deadline = time.monotonic() + self._seconds

    @property
    def over(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() > self._deadline
