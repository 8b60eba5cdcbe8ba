"""What the ``shop`` fixture gives to tests."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from aster.environments import Environment, PythonMath, PythonTool
from aster_sandbox import Sandbox

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shop:
    """A warm sandbox and the event loop it lives in."""

    loop: asyncio.AbstractEventLoop
    sandbox: Sandbox

    @property
    def environment(self) -> Environment:
        """Mathematics with Python in the warm sandbox."""
        return PythonMath([PythonTool(sandbox=self.sandbox)])

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run to the end, in at most a minute."""
        return self.loop.run_until_complete(asyncio.wait_for(work, 60))
