"""Access to the service: tokens, accounts, and the limits of each client."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from aster_sandbox.errors import SettingsError

VARIABLE = "ASTER_SANDBOX_TOKENS"
SHORTEST_TOKEN = 16
ANONYMOUS = "anonymous"


class Refused(Exception):
    """A request that is not served. ``status``: the HTTP status. The message is for the client. ``code``: the reason, for
    programs, if one status has several."""

    def __init__(self, status: int, message: str, retry_seconds: int | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_seconds = retry_seconds
        self.code = code


class Gate:
    """Admits ``places`` users at once. Up to ``queue`` more wait, each for a limited time; others are refused."""

    def __init__(self, places: int, queue: int, status: int, what: str) -> None:
        self.inside = 0
        self.waiting = 0
        self._places = asyncio.Semaphore(places)
        self._queue = queue
        self._status = status
        self._what = what

    def check(self) -> None:
        """Raise Refused if the queue is full too."""
        if self._places.locked() and self.waiting >= self._queue:
            raise self._refusal()

    async def enter(self, seconds: float | None = None) -> None:
        """Take a place, waiting up to ``seconds`` for one (None: forever). Raises Refused if there is none."""
        self.check()
        self.waiting += 1
        try:
            async with asyncio.timeout(seconds):
                await self._places.acquire()
        except TimeoutError:
            raise self._refusal() from None
        finally:
            self.waiting -= 1
        self.inside += 1

    def leave(self) -> None:
        """Give the place back."""
        self.inside -= 1
        self._places.release()

    def _refusal(self) -> Refused:
        return Refused(self._status, self._what, retry_seconds=1)


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one client."""

    sessions: int
    """Sessions open at once."""
    cells: int
    """Cells that run at once; more wait."""
    queue: int
    """Waiting cells, and waiting requests to open a session."""


@dataclass
class Account:
    """One client, which has one token."""

    name: str
    limits: Limits
    sessions: Gate = field(init=False)
    cells: Gate = field(init=False)

    def __post_init__(self) -> None:
        limits = self.limits
        self.sessions = Gate(
            limits.sessions, limits.queue, 429, f"this client has {limits.sessions} sessions open, which is its limit"
        )
        self.cells = Gate(
            limits.cells,
            limits.queue,
            429,
            f"this client has {limits.cells} cells running and {limits.queue} waiting, which is its limit",
        )


class Accounts:
    """Finds a request's account by its token."""

    def __init__(self, tokens: dict[str, str], limits: Limits) -> None:
        """``tokens``: name -> token. If it is empty, every request is served, for one anonymous client."""
        self._digests = [(_digest(token), Account(name, limits)) for name, token in tokens.items()]
        self._anonymous = None if tokens else Account(ANONYMOUS, limits)

    def __iter__(self) -> Iterator[Account]:
        """Iterate over all accounts."""
        return iter([account for _, account in self._digests] if self._anonymous is None else [self._anonymous])

    def find(self, authorization: str) -> Account | None:
        """The account of an ``Authorization`` header; None if the token is wrong.

        The header is ``Bearer TOKEN``, or ``Basic`` with the token as password, as HTTP libraries send it for
        ``http://any:TOKEN@host``."""
        if self._anonymous is not None:
            return self._anonymous
        given = _digest(_token(authorization))
        found = None
        for digest, account in self._digests:  # compare all of them, so that the time taken reveals nothing
            if hmac.compare_digest(digest, given):
                found = account
        return found


def read_tokens(path: Path | None) -> dict[str, str]:
    """Read tokens by client name, from a file or, without one, from the environment variable ASTER_SANDBOX_TOKENS.

    The file has one ``TOKEN`` or ``NAME TOKEN`` per line, and comments after ``#``. The variable has tokens separated by commas
    or spaces. Raises SettingsError if a token is too short, or a name or token occurs twice."""
    if path is not None:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{path}: cannot read the tokens: {error}") from None
        where = str(path)
        entries = [line.split() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not entries:
            raise SettingsError(f"{path}: contains no token; write one per line")
    else:
        where = VARIABLE
        entries = [[token] for token in os.environ.get(VARIABLE, "").replace(",", " ").split()]
    tokens: dict[str, str] = {}
    for number, entry in enumerate(entries, 1):
        if len(entry) > 2:
            raise SettingsError(f"{where}: entry {number}: write TOKEN or NAME TOKEN")
        name = entry[0] if len(entry) == 2 else f"client-{number}"
        if len(entry[-1]) < SHORTEST_TOKEN:
            raise SettingsError(f"{where}: entry {number}: the token is too short; use at least {SHORTEST_TOKEN} characters")
        if name in tokens or entry[-1] in tokens.values():
            raise SettingsError(f"{where}: entry {number}: this name or token occurs twice")
        tokens[name] = entry[-1]
    return tokens


def _digest(token: str) -> bytes:
    # Digests have equal length, so that the comparison does not reveal the length of a token.
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _token(authorization: str) -> str:
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).decode("utf-8", "surrogateescape").partition(":")[2]
        except (binascii.Error, ValueError):
            return ""
    return ""
