"""Files of SandboxFusion's forms: in base64, put into a session before its code runs, fetched after it."""

from __future__ import annotations

import base64
import binascii
import posixpath
from collections.abc import Iterable, Mapping

from aster_sandbox.interface import AnySession
from aster_sandbox.isolation import Level

FETCHED_BYTES = 4 << 20
"""Of all files of one answer together."""


class Unfit(Exception):
    """A file cannot be put there or fetched. The message is one line for the client."""


def decode_files(files: Mapping[str, str | None], level: Level) -> dict[str, bytes]:
    """Paths and contents of a request's ``files``. Unfit where one cannot be used."""
    decoded = {}
    for name, content in files.items():
        if content is None:
            continue
        _check(name, level, "files")
        try:
            decoded[name] = base64.b64decode(content, validate=True)
        except (binascii.Error, ValueError):
            raise Unfit(f"files: the content of {name!r} is not base64") from None
    return decoded


def check_names(names: Iterable[str], level: Level) -> None:
    """Unfit where one of ``fetch_files`` cannot be asked for."""
    for name in names:
        _check(name, level, "fetch_files")


async def put_files(session: AnySession, files: Mapping[str, bytes]) -> None:
    """Put decoded files into a session. Unfit where it may not write one."""
    for name, content in files.items():
        try:
            await session.upload(name, content)
        except OSError as error:
            raise Unfit(f"files: {error}") from None


async def fetch_files(session: AnySession, names: Iterable[str]) -> dict[str, str]:
    """Those of the files that are there, in base64. Unfit where they are too large together."""
    found = {}
    left = FETCHED_BYTES
    for name in names:
        try:
            content = await session.download(name, left + 1)
        except OSError:
            continue  # as SandboxFusion does: what is no file is left out
        left -= len(content)
        if left < 0:
            raise Unfit(f"fetch_files: more than {FETCHED_BYTES >> 20} MiB together")
        found[name] = base64.b64encode(content).decode()
    return found


def _check(name: str, level: Level, field: str) -> None:
    if name.startswith("/"):
        if level is not Level.NAMESPACES:
            raise Unfit(
                f"{field}: {name!r}: absolute paths need the isolation level namespaces; here, at {level}, /tmp is not the "
                "session's own, so name a path in the working directory"
            )
        if not posixpath.normpath(f"/{name.lstrip('/')}").startswith("/tmp/"):
            raise Unfit(f"{field}: {name!r} is neither below /tmp nor in the working directory")
    elif posixpath.normpath(f"/{name}") == "/" or posixpath.normpath(name).startswith("../") or "\0" in name:
        raise Unfit(f"{field}: {name!r} is not a path in the working directory")
