"""The kept replies of a session. With them, a request that is sent again gets its reply and does not run twice."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from typing import Generic, TypeVar

from aster_sandbox.service.access import Refused

Reply = TypeVar("Reply")
KEPT_CHARACTERS = 1 << 20
"""Maximum length of a session's kept replies together; the newest is kept however long it is."""


class Replies(Generic[Reply]):
    """The tasks of a session's requests by request id. The last ``limit`` are kept; for older ones, only that they were
    served."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._characters: dict[str, int] = {}
        self._kept: OrderedDict[str, tuple[bytes, asyncio.Task[Reply]]] = OrderedDict()
        self._dropped: set[bytes] = set()
        """Digests of the ids of dropped replies. They never expire, but are small beside the session's history of code."""

    def known(self, request_id: str, content: str) -> asyncio.Task[Reply] | None:
        """The task of an earlier request with this id, running or done; None if the id is new.

        Raises Refused: with 409 if the id was used for other content, with 410 if the reply is no longer kept.
        """
        if request_id in self._kept:
            digest, task = self._kept[request_id]
            if digest != _short(content):
                raise Refused(409, "this request_id was used for another cell")
            return task
        if _short(request_id) in self._dropped:
            raise Refused(410, "this request was served long ago; its reply is no longer kept")
        return None

    def keep(self, request_id: str, content: str, task: asyncio.Task[Reply]) -> None:
        """Keep the task of a new id. A task that fails is dropped, so that its id can be used again."""
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
