"""A session as its user sees it: cells in, results out, and state that outlives the process it is in."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aster.core.types import CallStatus, ToolCall
from aster.sandbox.handle import ZygoteLost
from aster.sandbox.output import NO_OUTPUT, Clip
from aster.sandbox.process import SessionProcess
from aster.sandbox.protocol import SandboxFailure

if TYPE_CHECKING:
    from aster.core import recipe

SETUP_SECONDS = 30.0
REPLAY_FACTOR = 3.0
"""Recovery may take this many times ``cell_seconds`` before earlier state is given up."""
LAUNCH_ATTEMPTS = 3
"""Processes tried where the zygote dies each time."""
CELL_ATTEMPTS = 2
"""Runs of a cell whose process the zygote took along. It may be the cell that kills it."""
KEPT = "the variables and imports of earlier cells are kept"
LOST = "the variables and imports of earlier cells are lost"


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell that ran to its end, for replay."""

    number: int
    code: str
    status: CallStatus | None
    """``ok`` or ``error``; None for an interrupted cell, which replay leaves out."""


class Session:
    """A Python interpreter of its own. Made by :meth:`Sandbox.open`; calls of :meth:`run` go one at a time."""

    def __init__(
        self,
        settings: recipe.Sandbox,
        seed: int,
        setup: str,
        fork: Callable[[Clip], Awaitable[SessionProcess]],
        release: Callable[[Session], None],
    ) -> None:
        self._settings = settings
        self._seed = seed
        self._setup = setup
        self._fork = fork
        self._release = release
        self._clip = Clip(settings.output_characters)
        self._history: list[Cell] = []
        self._number = 0
        self._process: SessionProcess | None = None
        self._lock = asyncio.Lock()
        self._closed = False

    async def begin(self) -> None:
        """Fork, seed and run the setup. SandboxFailure where the setup raises or no process can be had."""
        async with self._lock:
            await self._launch()

    async def run(self, code: str) -> ToolCall:
        """Run one cell. Never raises for what the code does; SandboxFailure where the sandbox itself cannot go on."""
        async with self._lock:
            self._require_open()
            started = time.perf_counter()
            self._number += 1
            try:
                status, output = await self._run(code)
            except asyncio.CancelledError:
                # The cell is still running: the next one must not find it. It will be rebuilt from the cells before.
                if self._process is not None:
                    self._process.kill()
                raise
            return ToolCall(code, status, output, time.perf_counter() - started)

    async def close(self) -> None:
        """End the process with all that it started, and remove its files. Closing twice is fine."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._process is not None:
                self._process.kill()  # a cell that is running ends with it, and raises SandboxFailure
            async with self._lock:
                if self._process is not None:
                    await self._process.end()
        finally:
            self._release(self)

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _require_open(self) -> None:
        if self._closed:
            raise SandboxFailure("the session is closed")

    async def _run(self, code: str) -> tuple[CallStatus, str]:
        note = ""
        message = {"op": "run", "number": self._number, "code": code}
        for attempt in itertools.count(1):
            if self._process is None or self._process.doomed:
                state = await self._recover()
                if state == LOST:
                    note = f"[the interpreter had to be replaced before this cell; {state}]\n"
            process = self._process
            assert process is not None
            outcome = await process.request(message, self._settings.cell_seconds)
            if outcome.status is not None:
                return self._ended(code, CallStatus(outcome.status), outcome.interrupted, note)
            self._require_open()
            await process.end()
            if outcome.overran or not process.zygote_lost or attempt == CELL_ATTEMPTS:
                return await self._replaced(process, outcome.overran, note)
            self._clip.clear()  # the zygote took this session along, whatever the cell did: run it again
        raise AssertionError("unreachable")

    async def _replaced(self, process: SessionProcess, overran: bool, note: str) -> tuple[CallStatus, str]:
        """The cell took its process along: recover, and say what happened."""
        text = self._take_output()
        state = await self._recover()
        if overran:
            limit = f"{self._settings.cell_seconds:g} s"
            what = f"[timeout: the cell ran longer than {limit} and did not stop when interrupted, so it was killed; {state}]"
            return CallStatus.TIMEOUT, note + _join(text, what)
        return CallStatus.CRASHED, note + _join(text, f"[crashed: the Python interpreter {process.ending()}; {state}]")

    def _ended(self, code: str, status: CallStatus, interrupted: bool, note: str) -> tuple[CallStatus, str]:
        """The cell came to an end of its own, or gave way to the interrupt: its variables are there."""
        text = self._take_output()
        self._history.append(Cell(self._number, code, None if interrupted else status))
        if interrupted:
            what = f"[timeout: the cell was interrupted after {self._settings.cell_seconds:g} s; all variables are kept]"
            return CallStatus.TIMEOUT, note + _join(text, what)
        return status, note + (text or NO_OUTPUT)

    def _take_output(self) -> str:
        text = self._clip.text()
        self._clip.clear()
        return text

    async def _launch(self) -> SessionProcess:
        """A fresh process, seeded, after its setup."""
        for _ in range(LAUNCH_ATTEMPTS):
            self._require_open()
            try:
                process = self._process = await self._fork(self._clip)
            except ZygoteLost:
                continue
            self._require_open()
            outcome = await process.request({"op": "start", "seed": self._seed, "setup": self._setup}, SETUP_SECONDS)
            text = self._take_output()
            if outcome.status == "ok":
                return process
            await process.end()
            self._require_open()
            if not process.zygote_lost:
                how = text if outcome.status == "error" else f"{text}\nthe process {process.ending()}"
                raise SandboxFailure(f"the session's setup failed:\n{how.strip()}")
        raise SandboxFailure("the sandbox's parent process keeps dying")

    async def _recover(self) -> str:
        """A fresh process with the earlier cells' state, by silent replay. Returns what became of that state, in words."""
        for _ in range(LAUNCH_ATTEMPTS):
            if self._process is not None:
                await self._process.end()
            process = await self._launch()
            different = await self._replay(process)
            if different is not None:
                cells = ", ".join(map(str, different))
                return f"{KEPT}, except for what these cells changed: {cells}" if different else KEPT
            await process.end()
            if not process.zygote_lost:
                break
        self._history.clear()
        await self._launch()
        return LOST

    async def _replay(self, process: SessionProcess) -> list[int] | None:
        """Run the earlier cells again, within the time cap. None where that fails.

        Returns the numbers of the cells whose effects may differ: interrupted ones, which nobody can interrupt at the same
        place again, and those that ended with another status.
        """
        different = []
        deadline = time.monotonic() + REPLAY_FACTOR * self._settings.cell_seconds
        for cell in self._history:
            if cell.status is None:
                different.append(cell.number)
                continue
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            outcome = await process.request({"op": "run", "number": cell.number, "code": cell.code}, left)
            self._clip.clear()
            if outcome.status is None or outcome.interrupted:
                return None
            if outcome.status != cell.status:
                different.append(cell.number)
        return different


def _join(text: str, note: str) -> str:
    return f"{text}\n{note}" if text else note
