"""The client's view of one service: requests with retries, whether it answers, how full it is."""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass
from typing import Any

import httpx2

PAUSES = (0.1, 0.3, 0.8)
"""Seconds between attempts at one request, before its host counts as lost."""
CONNECT_SECONDS = 5.0
REPLY_SECONDS = 20.0
"""A reply that takes longer is asked for again, with the same id, where the host still answers."""
LONGEST_SECONDS = 300.0
"""A cell, its recovery and the start of a new zygote; the client adds what its cells may take."""
KEEP_SECONDS = 30.0
"""An idle connection is kept for less than the service keeps it."""
HEALTH_SECONDS = 2.0
"""Between two looks at every host."""
LOST_CHECKS = 3
"""Looks in vain after which a host counts as lost."""
BYTES = "application/octet-stream"
"""The type of files."""
PROXY_TROUBLE = frozenset({502, 504})
"""What a proxy says of a service that it does not reach."""


class HostLost(Exception):
    """No answer is to be had from a host."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a service answered."""

    status: int
    body: dict[str, Any]
    """Of an answer in JSON."""
    retry_seconds: float
    content: bytes = b""
    """Of any other."""

    @property
    def busy(self) -> bool:
        """Whether the same request may be granted later."""
        return self.status in (429, 503)

    @property
    def code(self) -> str:
        """What the service says for programs, where one status says two things."""
        return str(self.body.get("code", ""))

    @property
    def detail(self) -> str:
        """The service's reason."""
        return str(self.body.get("detail", f"HTTP status {self.status}"))


class Host:
    """One service."""

    def __init__(self, address: str, token: str | None) -> None:
        self.address = address.rstrip("/")
        self.healthy = True
        self.checked = False
        """Whether it knows our token and is set as it must be."""
        self.replay_seconds = 0.0
        """For all earlier cells of a session that is brought back there."""
        self.longest_seconds = LONGEST_SECONDS
        """After which a request that the host is still at work on is given up."""
        self.own = 0
        """Sessions that this client has there."""
        self.reported = 0
        self.limit = 1
        self.last_error = ""
        """What the last attempt in vain met."""
        self._missed = 0
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEEP_SECONDS)
        self._http = httpx2.AsyncClient(base_url=self.address, headers=headers, limits=limits, trust_env=False)

    @property
    def load(self) -> float:
        """The share of its sessions that is taken, as far as is known."""
        return max(self.own, self.reported) / self.limit

    async def ask(self, method: str, path: str, body: dict[str, Any] | bytes | None = None) -> Reply:
        """Send a request, again where its answer is lost: so it must be one that may come twice. Raises HostLost."""
        attempt = 0
        deadline = time.monotonic() + self.longest_seconds
        while True:
            try:
                return await self._send(method, path, body, REPLY_SECONDS)
            except httpx2.ReadTimeout:
                # It may be at work on this. The same request attaches to the first one's reply.
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
        """Ask for the host's health. Whether it answers, and takes sessions."""
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
            # ASCII, so that lone surrogates travel as escapes.
            content: bytes | None = json.dumps(body).encode("ascii")
            headers["Content-Type"] = "application/json"
        else:
            content = body
            headers |= {} if body is None else {"Content-Type": BYTES}
        response = await self._http.request(method, path, content=content, headers=headers, timeout=timeout)
        if response.status_code in PROXY_TROUBLE:
            raise httpx2.RemoteProtocolError(f"HTTP status {response.status_code}")
        after = response.headers.get("Retry-After", "1")
        retry_seconds = float(after) if after.isdigit() else 1.0
        if response.headers.get("Content-Type") == BYTES:
            return Reply(response.status_code, {}, retry_seconds, response.content)
        try:
            parsed = response.json() if response.content else {}
        except ValueError:
            parsed = {"detail": response.text[:200]}  # not of ours: a proxy's page
        return Reply(response.status_code, parsed if isinstance(parsed, dict) else {"detail": str(parsed)[:200]}, retry_seconds)

    def _record(self, error: Exception) -> None:
        self.last_error = f"{type(error).__name__}{f': {error}' if str(error) else ''}"


class Patience:
    """How long nobody may answer before that is a failure."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.renew()

    def renew(self) -> None:
        """Somebody answered."""
        self._deadline = time.monotonic() + self._seconds

    @property
    def over(self) -> bool:
        """Whether it is time to give up."""
        return time.monotonic() > self._deadline
