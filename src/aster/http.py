"""The HTTP client for models' servers: a request is sent again where the server is busy or away, within a time limit."""

from __future__ import annotations

import asyncio
import datetime
import email.utils
import json
import random
from pathlib import Path
from typing import Any, Literal

import httpx2

from aster.errors import UserError, one_line

PAUSES = (0.2, 0.5, 1.0, 2.0, 4.0)
"""Seconds before each new attempt where no server answered, or where it had an error of its own. After the last attempt the
request has failed."""
BUSY = frozenset({429, 503})
"""Statuses of a busy server. The request is sent again until its time is over."""
LONGEST_PAUSE = 30.0
"""The most seconds between two attempts at a busy server that does not say when to ask again."""
CONNECT_SECONDS = 10.0
REQUEST_TIMEOUT = 408
"""A status below 500 whose cause is the server, not the request."""

Trouble = Literal["timeout", "rate_limited", "connection_lost", "server_error", "malformed_body", "refused"]
"""Why there was no answer: the time was over; the server was busy all the time; there was no connection, or it broke; the
server had an error of its own; the answer is no JSON object; the server refused the request."""


class ServerError(Exception):
    """A request has failed."""

    def __init__(self, message: str, status: int | None = None, kind: Trouble = "malformed_body") -> None:
        """``status``: the HTTP status of the last answer; None where there was no answer."""
        super().__init__(message)
        self.status = status
        self.kind: Trouble = kind


class Server:
    """One server, at an address or behind a Unix socket. Close it with :meth:`close`."""

    def __init__(self, address: str, key: str | None = None, *, socket: Path | None = None, field: str) -> None:
        """``address``: for instance ``http://10.0.0.5:8000``, with or without ``/v1``. ``key``: sent as a bearer token.
        ``field``: the recipe's field or the option with the address. UserError, which names it, where it is no address."""
        self.address = address.rstrip("/").removesuffix("/v1")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # Callers limit the requests under way. A second limit here would let requests wait on the server's time.
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=4.0)
        transport = httpx2.AsyncHTTPTransport(limits=limits, uds=None if socket is None else str(socket), trust_env=False)
        timeout = httpx2.Timeout(None, connect=CONNECT_SECONDS)
        try:
            self._http = httpx2.AsyncClient(
                base_url=self.address, headers=headers, transport=transport, timeout=timeout, trust_env=False
            )
        except httpx2.InvalidURL as error:
            raise UserError(f"{field}: {self.address} is no address ({error}); write it as in http://10.0.0.5:8000") from None

    async def ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, seconds: float, insist: bool = True
    ) -> dict[str, Any]:
        """The JSON object that a request is answered with; empty for an answer without a body.

        ``seconds``: for all attempts at the request together. ``insist=False``: a second attempt is made only where the server
        is busy. ServerError where there is no such answer."""
        content = None if body is None else json.dumps(body).encode("ascii")
        headers = {} if body is None else {"Content-Type": "application/json"}
        failures = refusals = 0
        trouble = ""
        status: int | None = None
        kind: Trouble = "timeout"
        try:
            async with asyncio.timeout(seconds):
                while True:
                    try:
                        response = await self._http.request(method, path, content=content, headers=headers)
                    except httpx2.TransportError as error:
                        trouble, status = f"{type(error).__name__}{f': {error}' if str(error) else ''}", None
                        kind = "connection_lost"
                    else:
                        status = response.status_code
                        if status < 400:
                            parsed = _parsed(response)
                            if parsed is not None:
                                return parsed
                            trouble, kind = "the answer is no JSON object", "malformed_body"
                        elif status in BUSY:
                            trouble, kind = _detail(response), "rate_limited"
                            await asyncio.sleep(_pause(response, refusals))
                            refusals += 1
                            continue
                        else:
                            trouble, kind = _detail(response), "server_error"
                            if status < 500 and status != REQUEST_TIMEOUT:
                                kind = "refused"
                                break
                    if failures == len(PAUSES) or not insist:
                        break
                    await asyncio.sleep(PAUSES[failures] * random.uniform(0.8, 1.2))
                    failures += 1
        except TimeoutError:
            kind = "rate_limited" if kind == "rate_limited" else "timeout"
            trouble = f"no answer within {seconds:g} s" + (f"; before: {trouble}" if trouble else "")
        raise ServerError(f"{self.address}{path}: {trouble}", status, kind)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()


def _parsed(response: httpx2.Response) -> dict[str, Any] | None:
    """The JSON object of an answer, empty for an empty body; None where it is anything else."""
    if not response.content:
        return {}
    try:
        parsed = response.json()
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def _pause(response: httpx2.Response, refusals: int) -> float:
    """Seconds until a busy server is asked again; never less than its Retry-After."""
    own = min(LONGEST_PAUSE, PAUSES[0] * 2 ** min(refusals, 16)) * random.uniform(0.8, 1.2)
    return max(own, _retry_after(response) * random.uniform(1.0, 1.1))


def _retry_after(response: httpx2.Response) -> float:
    """The seconds of the header Retry-After, a number or a date; 0 where it is missing or cannot be read."""
    text = response.headers.get("Retry-After", "").strip()
    if text.replace(".", "", 1).isdecimal():
        return float(text)
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return max(0.0, (moment - datetime.datetime.now(datetime.UTC)).total_seconds())


def _detail(response: httpx2.Response) -> str:
    """The reason that the server gives, in one line."""
    try:
        body = response.json()
    except ValueError:
        body = response.text
    if isinstance(body, dict):
        inner = body.get("error", body)
        body = inner.get("message", inner.get("detail", inner)) if isinstance(inner, dict) else inner
    return f"HTTP status {response.status_code}: {one_line(body)}"
