"""Files in SandboxFusion's forms of requests: in base64, within the request and its answer."""

from __future__ import annotations

import base64
import posixpath
from collections.abc import Mapping, Sequence

from aster_sandbox.isolation import Level
from aster_sandbox.session import Session

FETCHED_BYTES = 4 << 20
"""Of all files of one answer together."""


class BadRequest(Exception):
    """A file cannot be put there or fetched. The message is one line for the client."""


class Files:
    """A request's files: what is put into the session before its code runs, and what is fetched after."""

    def __init__(self, put: Mapping[str, str | None], fetch: Sequence[str], level: Level) -> None:
        """``put``: path -> content in base64. BadRequest where a file cannot be used."""
        self._put: dict[str, bytes] = {}
        self._fetch = fetch
        for name, content in put.items():
            if content is None:
                continue
            _check(name, level, "files")
            try:
                self._put[name] = base64.b64decode(content, validate=True)
            except ValueError:
                raise BadRequest(f"files: the content of {name!r} is not base64") from None
        for name in fetch:
            _check(name, level, "fetch_files")

    async def put(self, session: Session) -> None:
        """Before the code. BadRequest where the session may not write one."""
        for name, content in self._put.items():
            try:
                await session.upload(name, content)
            except OSError as error:
                raise BadRequest(f"files: {error}") from None

    async def fetch(self, session: Session) -> dict[str, str]:
        """After it: those that are there, in base64. BadRequest where they are too large together."""
        found = {}
        left = FETCHED_BYTES
        for name in self._fetch:
            try:
                content = await session.download(name, left + 1)
            except OSError:
                continue  # as SandboxFusion does: what is no file is left out
            left -= len(content)
            if left < 0:
                raise BadRequest(f"fetch_files: more than {FETCHED_BYTES >> 20} MiB together")
            found[name] = base64.b64encode(content).decode()
        return found


def _check(name: str, level: Level, field: str) -> None:
    if name.startswith("/"):
        if level is not Level.NAMESPACES:
            raise BadRequest(
                f"{field}: {name!r}: absolute paths need the isolation level namespaces; here, at {level}, /tmp is not the "
                "session's own, so name a path in the working directory"
            )
        if not posixpath.normpath(f"/{name.lstrip('/')}").startswith("/tmp/"):
            raise BadRequest(f"{field}: {name!r} is neither below /tmp nor in the working directory")
    elif posixpath.normpath(f"/{name}") == "/" or posixpath.normpath(name).startswith("../") or "\0" in name:
        raise BadRequest(f"{field}: {name!r} is not a path in the working directory")
