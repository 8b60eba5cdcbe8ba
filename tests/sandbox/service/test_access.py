"""Kept replies, gates and tokens, without a service."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from aster_sandbox.service.access import Accounts, Gate, Limits, Refused
from aster_sandbox.service.replies import Replies


def start(replies: Replies[Any], request_id: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Start some work and keep its task."""
    task = asyncio.create_task(work)
    replies.keep(request_id, "code", task)
    return task


def test_kept_replies_are_bounded_in_length() -> None:
    async def main() -> None:
        replies: Replies[str] = Replies(16)

        async def give(length: int) -> str:
            return "x" * length

        for number in range(6):
            await start(replies, f"r{number}", give(400_000))
        assert len(replies) == 2
        await start(replies, "longest", give(3_000_000))
        assert len(replies) == 1
        assert replies.known("longest", "code") is not None

    asyncio.run(main())


def test_kept_replies_are_bounded_in_number_and_exclude_failures() -> None:
    async def main() -> None:
        replies: Replies[int] = Replies(4)

        async def give(value: int) -> int:
            return value

        async def fail() -> int:
            raise Refused(424, "broken")

        for number in range(100):
            await start(replies, f"r{number}", give(number))
        assert len(replies) == 4
        known = replies.known("r99", "code")
        assert known is not None
        assert await known == 99
        with pytest.raises(Refused) as dropped:
            replies.known("r3", "code")
        with pytest.raises(Refused) as reused:
            replies.known("r99", "other code")
        assert (dropped.value.status, reused.value.status) == (410, 409)
        task = start(replies, "bad", fail())
        with pytest.raises(Refused, match="broken"):
            await task
        await asyncio.sleep(0)
        assert replies.known("bad", "code") is None

    asyncio.run(main())


def test_running_requests_are_never_dropped() -> None:
    async def main() -> None:
        replies: Replies[int] = Replies(2)
        go = asyncio.Event()

        async def wait() -> int:
            await go.wait()
            return 0

        tasks = [start(replies, f"r{number}", wait()) for number in range(6)]
        await asyncio.sleep(0)
        assert all(replies.known(f"r{number}", "code") is tasks[number] for number in range(6))
        go.set()
        await asyncio.gather(*tasks)
        await asyncio.sleep(0)
        assert len(replies) == 2

    asyncio.run(main())


def test_gate_limits_users_and_waiters() -> None:
    async def main() -> None:
        gate = Gate(1, 1, 429, "full")
        await gate.enter()
        waiting = asyncio.create_task(gate.enter(5))
        await asyncio.sleep(0)
        with pytest.raises(Refused, match="full") as refused:
            await gate.enter(5)
        assert (refused.value.status, refused.value.retry_seconds) == (429, 1)
        gate.leave()
        await waiting
        with pytest.raises(Refused, match="full"):
            await gate.enter(0.01)
        waiting = asyncio.create_task(gate.enter(5))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert (gate.inside, gate.waiting) == (1, 0)
        gate.leave()
        await gate.enter(0.01)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("Bearer secret-secret-one", "one"),
        ("bearer  secret-secret-two ", "two"),
        ("Basic YW55OnNlY3JldC1zZWNyZXQtdHdv", "two"),
        ("Basic YW55OnNlY3JldA==", None),
        ("Basic nonsense", None),
        ("Bearer secret-secret", None),
        ("secret-secret-one", None),
        ("Bearer \xff\xfe", None),
        ("", None),
    ],
)
def test_token_selects_its_account(header: str, name: str | None) -> None:
    async def find() -> str | None:
        accounts = Accounts({"one": "secret-secret-one", "two": "secret-secret-two"}, Limits(1, 1, 1))
        account = accounts.find(header)
        return account.name if account is not None else None

    assert asyncio.run(find()) == name
