"""Replies of a session that may be asked for again: what makes a run happen exactly once."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from typing import Generic, TypeVar

from aster_sandbox.service.access import Refused

Reply = TypeVar("Reply")
KEPT_CHARACTERS = 1 << 20
"""Of a session's replies together; the newest is kept however long it is."""


class Replies(Generic[Reply]):
    """Runs each request id once. The last replies are kept; of older ones it is only known that they were given."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._characters: dict[str, int] = {}
        self._kept: OrderedDict[str, tuple[bytes, asyncio.Task[Reply]]] = OrderedDict()
        self._dropped: set[bytes] = set()
        """Short digests of ids: a session's history holds the code of each of its cells, so this is little beside it."""

    def known(self, request_id: str, content: str) -> asyncio.Task[Reply] | None:
        """The task of an earlier request with this id, running or done; None where the id is new.

        Refused with 409 where the id came with other content, with 410 where the reply is no longer kept.
        """
        if request_id in self._kept:
            digest, task = self._kept[request_id]
            if digest != _short(content):
                raise Refused(409, "this request_id was used for another cell")
            return task
        if _short(request_id) in self._dropped:
            raise Refused(410, "this request was answered long ago; its reply is no longer kept")
        return None

    def keep(self, request_id: str, content: str, task: asyncio.Task[Reply]) -> None:
        """Keep the task of a new id. One that fails is forgotten."""
        self._kept[request_id] = (_short(content), task)
        task.add_done_callback(lambda _: self._done(request_id))

    def __len__(self) -> int:
        return len(self._kept)

    def _done(self, request_id: str) -> None:
        _, task = self._kept[request_id]
        if task.cancelled() or task.exception() is not None:
            del self._kept[request_id]
            return
        self._characters[request_id] = len(repr(task.result()))
        while len(self._kept) > self._limit or sum(self._characters.values()) > KEPT_CHARACTERS:
            oldest = next(name for name in self._kept if name in self._characters)
            if oldest == request_id:
                return
            del self._kept[oldest], self._characters[oldest]
            self._dropped.add(_short(oldest))


def _short(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
