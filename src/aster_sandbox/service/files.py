"""The files of SandboxFusion's requests and replies, which contain them in base64."""

from __future__ import annotations

import base64
import posixpath
from collections.abc import Mapping, Sequence

from aster_sandbox.isolation import Level
from aster_sandbox.session import Session

FETCHED_BYTES = 4 << 20
"""Maximum size of all files in one reply together."""


class BadRequest(Exception):
    """A SandboxFusion request that cannot be served. The message is one line for the client."""


class Files:
    """A request's files: those to write before its code runs, and those to fetch afterwards."""

    def __init__(self, put: Mapping[str, str | None], fetch: Sequence[str], level: Level) -> None:
        """``put``: path -> content in base64. ``fetch``: paths. Raises BadRequest for an invalid path or content."""
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
        """Write the files. Raises BadRequest if the session may not write one."""
        for name, content in self._put.items():
            try:
                await session.upload(name, content)
            except OSError as error:
                raise BadRequest(f"files: {error}") from None

    async def fetch(self, session: Session) -> dict[str, str]:
        """Fetch the files that exist, as path -> content in base64. Raises BadRequest if they are too large together."""
        found = {}
        left = FETCHED_BYTES
        for name in self._fetch:
            try:
                content = await session.download(name, left + 1)
            except OSError:
                continue  # like SandboxFusion, leave out what is not a file
            left -= len(content)
            if left < 0:
                raise BadRequest(f"fetch_files: the files are larger than {FETCHED_BYTES >> 20} MiB together")
            found[name] = base64.b64encode(content).decode()
        return found


def _check(name: str, level: Level, field: str) -> None:
    if name.startswith("/"):
        if level is not Level.NAMESPACES:
            raise BadRequest(
                f"{field}: {name!r}: absolute paths need the isolation level namespaces; at {level}, /tmp is the host's, so "
                "use a path in the working directory"
            )
        if not posixpath.normpath(f"/{name.lstrip('/')}").startswith("/tmp/"):
            raise BadRequest(f"{field}: {name!r} is not below /tmp or in the working directory")
    elif posixpath.normpath(f"/{name}") == "/" or posixpath.normpath(name).startswith("../") or "\0" in name:
        raise BadRequest(f"{field}: {name!r} is not a path in the working directory")
