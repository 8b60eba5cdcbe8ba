"""Requests to a sampling server, sent again where it is busy or gone, and never for longer than a limit."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import httpx2

from aster.core.errors import UserError

PAUSES = (0.2, 0.5, 1.0, 2.0, 4.0)
"""Seconds before each new attempt at a request that met no server or an error of its own; after them it has failed."""
BUSY = frozenset({429, 503})
"""Statuses that say: later. They are asked again until the request's time is over."""
LONGEST_PAUSE = 30.0
"""Seconds between two attempts at a busy server, whatever its Retry-After says."""
CONNECT_SECONDS = 10.0


class ServerError(Exception):
    """A server did not do what it was asked."""

    def __init__(self, message: str, status: int | None = None) -> None:
        """``status``: the HTTP status of its last answer; None where there was none."""
        super().__init__(message)
        self.status = status


class Server:
    """One server, by its address or by a Unix socket."""

    def __init__(self, address: str, key: str | None = None, socket: Path | None = None) -> None:
        """``address``: for instance ``http://10.0.0.5:8000``, with or without ``/v1``. UserError where it is none."""
        self.address = address.rstrip("/").removesuffix("/v1")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # Callers bound what is under way; a second bound here would let requests wait in silence.
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=4.0)
        transport = httpx2.AsyncHTTPTransport(limits=limits, uds=None if socket is None else str(socket), trust_env=False)
        timeout = httpx2.Timeout(None, connect=CONNECT_SECONDS)
        try:
            self._http = httpx2.AsyncClient(
                base_url=self.address, headers=headers, transport=transport, timeout=timeout, trust_env=False
            )
        except httpx2.InvalidURL as error:
            raise UserError(f"policy.base_url: {self.address} is no address ({error}); mend it") from None

    async def ask(self, method: str, path: str, body: dict[str, Any] | None = None, *, seconds: float) -> dict[str, Any]:
        """The answer to a request, all attempts at it within ``seconds``. ServerError where there is none."""
        content = None if body is None else json.dumps(body).encode("ascii")
        headers = {} if body is None else {"Content-Type": "application/json"}
        failures = refusals = 0
        trouble, status = "", None
        try:
            async with asyncio.timeout(seconds):
                while True:
                    try:
                        response = await self._http.request(method, path, content=content, headers=headers)
                    except httpx2.TransportError as error:
                        trouble, status = f"{type(error).__name__}{f': {error}' if str(error) else ''}", None
                    else:
                        if response.status_code < 400:
                            return self._parsed(path, response)
                        trouble, status = _detail(response), response.status_code
                        if status in BUSY:
                            pause = max(min(LONGEST_PAUSE, PAUSES[0] * 2**refusals), _retry_after(response))
                            refusals += 1
                            await asyncio.sleep(min(pause, LONGEST_PAUSE) * random.uniform(0.8, 1.2))
                            continue
                        if status < 500:
                            break
                    if failures == len(PAUSES):
                        break
                    await asyncio.sleep(PAUSES[failures] * random.uniform(0.8, 1.2))
                    failures += 1
        except TimeoutError:
            trouble = f"no answer within {seconds:g} s" + (f"; before: {trouble}" if trouble else "")
        raise ServerError(f"{self.address}{path}: {trouble}", status)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    def _parsed(self, path: str, response: httpx2.Response) -> dict[str, Any]:
        if not response.content:
            return {}
        try:
            parsed = response.json()
        except ValueError:
            parsed = None
        if not isinstance(parsed, dict):
            raise ServerError(f"{self.address}{path}: the answer is no JSON object", response.status_code)
        return parsed


def _retry_after(response: httpx2.Response) -> float:
    """The header's seconds. Its other form, a date, is read as 0."""
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdigit() else 0.0


def _detail(response: httpx2.Response) -> str:
    """The server's reason, in one line."""
    try:
        body = response.json()
    except ValueError:
        body = response.text
    if isinstance(body, dict):
        inner = body.get("error", body)
        body = inner.get("message", inner.get("detail", inner)) if isinstance(inner, dict) else inner
    return f"HTTP status {response.status_code}: {' '.join(str(body).split())[:300]}"
