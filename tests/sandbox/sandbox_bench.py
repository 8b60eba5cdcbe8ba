"""A sandbox together with its event loop, for synchronous tests."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from aster_sandbox import CellResult, Sandbox, Session

Result = TypeVar("Result")


class Bench:
    """A sandbox and its event loop, for synchronous tests."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sandbox: Sandbox) -> None:
        self.loop = loop
        self.sandbox = sandbox
        self._open: list[Session] = []

    def do(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine and return its result."""
        return self.loop.run_until_complete(asyncio.wait_for(coroutine, 120))

    def open(self, seed: int = 0, setup: str = "") -> Session:
        """Open a session; the fixture closes it."""
        session = self.do(self.sandbox.open(seed, setup))
        self._open.append(session)
        return session

    def fork(self, session: Session, seed: int | None = None) -> Session:
        """Fork a session; the fixture closes the fork."""
        child = self.do(session.fork(seed))
        self._open.append(child)
        return child

    def cells(self, *codes: str, seed: int = 0, setup: str = "") -> list[CellResult]:
        """Run cells in one new session and return their results."""
        session = self.open(seed, setup)
        return [self.do(session.run(code)) for code in codes]

    def zygote_pid(self) -> int:
        """The zygote's pid as this process sees it, whatever namespace it is in."""
        return zygote_pid(self.sandbox)

    def close_sessions(self) -> None:
        """Close the sessions that the test opened."""
        while self._open:
            self.do(self._open.pop().close())


def zygote_pid(sandbox: Sandbox) -> int:
    """The zygote's pid as this process sees it, whatever namespace it is in."""
    handle = sandbox._zygote
    assert handle is not None
    with open(f"/proc/self/fdinfo/{handle.pidfd}") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pid:"))
