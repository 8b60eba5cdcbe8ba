"""A session: runs cells, and restores its state by replay when its process has died."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from aster_sandbox.errors import SandboxFailure
from aster_sandbox.handle import NoRoom
from aster_sandbox.history import KEPT, LOST, STATUS, History, Origin, Step
from aster_sandbox.interface import encode_path
from aster_sandbox.output import NO_OUTPUT, Clip
from aster_sandbox.pressure import PATIENCE_SECONDS, Backoff
from aster_sandbox.protocol import MAX_DATA, Kind, Reply, Request, parts
from aster_sandbox.runner import Outcome, Runner
from aster_sandbox.types import CellResult, CellStatus

if TYPE_CHECKING:
    from aster_sandbox.supervisor import Sandbox

REPLAY_FACTOR = 3.0
"""In replay a cell may take this many times ``cell_seconds``, plus the time it took at first."""
RECOVERY_ATTEMPTS = 5
"""Maximum number of replays in one recovery, each without the cells that ended the ones before; also the maximum number of
attempts at a cell that its process did not read."""
CELL_ATTEMPTS = 2
"""Maximum number of attempts at a cell during which the zygote dies: the cell may be what kills it."""
LAUNCH_ATTEMPTS = 4
SETUP_SECONDS = 30.0
ANSWER_SECONDS, SECONDS_PER_PROCESS = 1.0, 0.01
"""A working runner begins to read a request within the first time, plus the second for each session that has a process, because
it may have to wait for a processor."""
HELLO_GRACE_SECONDS = 0.5
"""Time from the interrupt to SIGKILL for a runner that does not answer after a replay."""
FILE_SECONDS = 30.0


class Session:
    """A stateful Python interpreter, opened by :meth:`Sandbox.open`. Calls of :meth:`run` are served one at a time."""

    def __init__(self, host: Sandbox, origin: Origin) -> None:
        self.last_used = time.monotonic()
        self._host = host
        self._origin = origin
        self._clip = Clip(host.settings.output_characters)
        self._history = History()
        self._number = 0
        self._runner: Runner | None = None
        self._note = ""
        """A note on lost state, for the beginning of the next cell's output."""
        self._lock = asyncio.Lock()
        self._closed = False
        self._closing: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Start the process, seed it and run the setup. Raises SandboxFailure if the setup raises or no process starts."""
        async with self._lock:
            await self._start_runner()

    async def run(self, code: str) -> CellResult:
        """Run one cell. Never raises for what the code does; raises SandboxFailure if the sandbox itself fails."""
        async with self._turn():
            started = time.perf_counter()
            self._number += 1
            status, output = await self._run(code, started)
            return CellResult(code, status, output, time.perf_counter() - started)

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Serve one request at a time, and clean up if it is cancelled."""
        async with self._lock:
            self._require_open()
            try:
                yield
            except asyncio.CancelledError:
                # The process still works on this request. Kill it, so that the next request finds the state before this one.
                if self._runner is not None:
                    self._runner.kill()
                raise
            finally:
                self.last_used = time.monotonic()

    async def fork(self, seed: int | None = None) -> Session:
        """A second, independent session with the same state; waits while ``sessions`` sessions are alive.

        It runs all cells again, so it takes as long as they do. Both continue with the same random numbers, unless the new one
        is given a ``seed``. If part of the state could not be reproduced, the output of its next cell says so.
        """
        self._require_open()
        twin = await self._host.adopt(self._origin)
        try:
            async with twin._lock:  # it counts as busy until it is complete, so that housekeeping does not evict it
                async with self._lock:
                    self._require_open()
                    twin._history = self._history.copy()
                    twin._number = self._number
                    twin._note = self._note
                state = await twin._recover()
                if state != KEPT:
                    twin._note += f"[this session's cells had to be run again; {state}]\n"
                if seed is not None:
                    await twin._reseed(seed)
        except BaseException:
            await twin.close()
            raise
        twin.last_used = time.monotonic()
        return twin

    async def reseed(self, seed: int) -> None:
        """Seed again the global generators that the session's own seed seeded."""
        async with self._turn():
            await self._reseed(seed)

    async def upload(self, path: str, content: bytes) -> None:
        """Write a file in the session, replacing one that exists. ``path``: relative to the working directory, or absolute.
        Creates missing folders. Raises OSError if the session may not write it, or if it is larger than ``file_mb``.

        Replay restores the file: its content is kept in memory until the session ends.
        """
        if len(content) > self._host.settings.file_mb << 20:
            raise OSError(f"{path}: the content is larger than file_mb ({self._host.settings.file_mb} MiB)")
        async with self._turn():
            await self._apply(Request("write", data=encode_path(path) + b"\0" + content), path)

    async def download(self, path: str, most_bytes: int | None = None) -> bytes:
        """The content of a file in the session, or its first ``most_bytes``. ``path``: as for ``upload``. Raises OSError if it
        is not a readable file."""
        async with self._turn():
            content = bytearray()
            while True:
                wanted = MAX_DATA if most_bytes is None else min(MAX_DATA, most_bytes - len(content))
                reply = await self._ask(Request("read", len(content), wanted, encode_path(path)))
                if reply.kind is not Kind.OK:
                    raise OSError(f"{path}: {reply.data.decode('utf-8', 'replace')}")
                content += reply.data
                if not reply.data or len(content) >= reply.finished or len(content) == most_bytes:
                    return bytes(content)

    async def close(self) -> None:
        """End the process and everything it started, and remove its files. May be called twice."""
        self._closed = True
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)  # if this is cancelled, closing must go on: nothing else ends the processes

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # ----- for the sandbox's housekeeping

    @property
    def busy(self) -> bool:
        """Whether a request runs or waits."""
        return self._lock.locked()

    @property
    def runner(self) -> Runner | None:
        """Its process; None if it has none."""
        return self._runner if self._runner is not None and not self._runner.gone.done() else None

    @property
    def evictable(self) -> bool:
        """Whether its process can be ended now: it is idle, and replay can restore all its state quickly."""
        return self.runner is not None and not self.busy and self._rebuildable

    @property
    def _rebuildable(self) -> bool:
        return self._history.exact and self._history.seconds <= REPLAY_FACTOR * self._host.settings.cell_seconds

    async def evict(self) -> None:
        """End the process of an idle session. The next cell restores it."""
        async with self._lock:
            if self._rebuildable:  # not if a cell that came first made a state that replay cannot restore
                await self._end_runner()

    @property
    def running(self) -> bool:
        """Whether its process works on a request."""
        return self.busy and self._runner is not None and not self._runner.doomed

    def kill_for_memory(self, reason: str) -> None:
        """Kill the process because memory is short. ``reason``: how it ended, in the words of a cell's output."""
        if self._runner is not None and not self._runner.doomed:
            self._runner.killed_for_memory = True
            self._runner.kill(reason)

    # ----- cells

    def _require_open(self) -> None:
        if self._closed:
            raise SandboxFailure("the session is closed")

    @property
    def _patience(self) -> float:
        return ANSWER_SECONDS + SECONDS_PER_PROCESS * self._host.processes

    async def _run(self, code: str, started: float) -> tuple[CellStatus, str]:
        request = Request("run", self._number, data=code.encode("utf-8", "surrogatepass"))
        lost = unread = 0
        while True:
            runner = await self._ready_runner()
            if not runner.charged:
                await self._host.charge(runner)
            outcome = await runner.request(request, self._host.settings.cell_seconds, self._patience)
            if outcome.reply is not None and outcome.kind is not Kind.UNREADY:
                return self._ended(request, outcome.reply, time.perf_counter() - started)
            self._require_open()
            await runner.end()
            began = outcome.reply is None and not runner.unread and runner.fork_error is None
            unread += not began
            if not began and unread < RECOVERY_ATTEMPTS:
                continue
            lost += runner.died_with_zygote
            if outcome.overran or not runner.died_with_zygote or lost == CELL_ATTEMPTS:
                return await self._replaced(runner, outcome.overran)
            # The process ended with the zygote, whatever the cell did: run the cell again.

    async def _ready_runner(self) -> Runner:
        """A process with the earlier cells' state. Sets the note if part of the state is lost."""
        if self._runner is None or self._runner.doomed:
            state = await self._recover()
            if state != KEPT:
                self._note = f"[the interpreter had to be replaced before this cell; {state}]\n"
        assert self._runner is not None
        return self._runner

    async def _replaced(self, runner: Runner, overran: bool) -> tuple[CellStatus, str]:
        """Recover after a cell that ended its process. Returns the cell's status and output."""
        note, text = self._take_output()
        state = await self._recover()
        if overran:
            limit = f"{self._host.settings.cell_seconds:g} s"
            what = f"[timeout: the cell ran longer than {limit} and did not stop when interrupted, so it was killed; {state}]"
            return CellStatus.TIMEOUT, note + _join(text, what)
        return CellStatus.CRASHED, note + _join(text, f"[crashed: the Python interpreter {runner.ending()}; {state}]")

    def _ended(self, request: Request, reply: Reply, seconds: float) -> tuple[CellStatus, str]:
        """Record a cell that ended, or was interrupted, in a living process. Returns its status and output."""
        note, text = self._take_output()
        self._history.add(Step.ended(request, reply, seconds))
        status = STATUS[reply.kind]
        if status is CellStatus.TIMEOUT:
            limit = f"{self._host.settings.cell_seconds:g} s"
            return status, note + _join(text, f"[timeout: the cell was interrupted after {limit}; all variables are kept]")
        return status, note + (text or NO_OUTPUT)

    def _take_output(self) -> tuple[str, str]:
        """The note for the cell that has just run, and its output."""
        note, self._note = self._note, ""
        return note, self._clip.text()

    async def _reseed(self, seed: int) -> None:
        request = Request("seed", self._number, data=str(seed).encode())
        try:
            await self._apply(request, "")
        except OSError as error:
            raise SandboxFailure(f"seeding the session failed: {error}") from None

    async def _apply(self, request: Request, path: str) -> None:
        """Send a request that replay must repeat, and record it. Raises OSError if it fails."""
        began = time.perf_counter()
        reply = await self._ask(request)
        if reply.kind is not Kind.OK:
            why = reply.data.decode("utf-8", "replace")
            raise OSError(f"{path}: {why}" if path else why)
        self._history.add(Step.ended(request, reply, time.perf_counter() - began))

    async def _ask(self, request: Request) -> Reply:
        """The reply to a request that is not a cell. Raises SandboxFailure if no process replies."""
        how = ""
        for _ in range(CELL_ATTEMPTS):
            runner = await self._ready_runner()
            outcome = await self._send(runner, request, FILE_SECONDS)
            if outcome.reply is not None and outcome.kind is not Kind.UNREADY:
                return outcome.reply
            self._require_open()
            await runner.end()
            how = runner.ending()
        raise SandboxFailure(f"the session does not answer: its interpreter {how}")

    async def _send(self, runner: Runner, request: Request, seconds: float) -> Outcome:
        """Send a request, a large file in parts up to the first that fails. Returns the last outcome."""
        outcome = Outcome(None)
        for part in parts(request):
            outcome = await runner.request(part, seconds, self._patience)
            if outcome.kind is not Kind.OK:
                break
        return outcome

    # ----- processes

    async def _close(self) -> None:
        try:
            if self._runner is not None and self.busy:
                self._runner.kill()  # the call of run() that is under way raises SandboxFailure
            async with self._lock:
                await self._end_runner()
        finally:
            self._host.forget(self)

    async def _end_runner(self) -> None:
        """End the session's process and wait until it has ended."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.end()

    async def _recover(self) -> str:
        """Start a process and restore the state by replay. Returns what became of it, in the words of a cell's output."""
        attempts = 0
        patience = time.monotonic() + PATIENCE_SECONDS
        while attempts < RECOVERY_ATTEMPTS:
            runner = await self._start_runner()
            if await self._replay(runner):
                return self._history.state()
            if not any(step.repeatable for step in self._history.steps):
                break
            # A replay killed because memory was short does not count, for a while: its own memory may be what does not fit.
            attempts += not runner.killed_for_memory or time.monotonic() > patience
        self._history = History()
        await self._start_runner()
        return LOST

    async def _start_runner(self) -> Runner:
        """Start a process and run the setup in it."""
        backoff = Backoff()
        failures = 0
        while True:
            await self._end_runner()
            runner = self._runner = await self._host.launch(self._clip, lambda: not self._closed)
            await self._start(runner)
            if not runner.doomed:
                self._history.begin_replay()
                return runner
            if isinstance(runner.fork_error, NoRoom):
                await backoff.wait(f"no process could be started for a session: {runner.fork_error}")
            elif runner.fork_error is not None:
                raise runner.fork_error
            else:
                failures += 1
                if failures == LAUNCH_ATTEMPTS:
                    raise SandboxFailure(f"no interpreter starts: it {runner.ending()}")

    async def _start(self, runner: Runner) -> None:
        """Seed the process and run the setup. If something other than the setup ends the process, the runner is doomed."""
        outcome = await runner.request(self._origin.request, SETUP_SECONDS, patience=SETUP_SECONDS)
        if outcome.kind is Kind.OK:
            return
        how = self._clip.text()
        if outcome.reply is None:
            await runner.end()
            self._require_open()
            if not runner.died_by_itself:
                return
            how = f"{how}\nthe process {runner.ending()}"
        runner.kill()  # a process without its setup must not run cells
        raise SandboxFailure(f"the session's setup failed:\n{how.strip()}")

    async def _replay(self, runner: Runner) -> bool:
        """Run all steps again in a new process. Returns False if the process ended; the step that ended it is not repeated."""
        history, settings = self._history, self._host.settings
        if history.steps:
            await self._host.charge(runner)
        deadline = time.monotonic() + max(settings.replay_seconds, 2 * history.seconds)
        last: Step | None = None
        for place, step in enumerate(history.steps):
            left = deadline - time.monotonic()
            if not step.repeatable or left <= 0:
                history.missing.add(place)
                continue
            seconds = min(left, REPLAY_FACTOR * settings.cell_seconds + step.seconds)
            outcome = await self._send(runner, step.request, seconds)
            if outcome.kind is Kind.UNREADY or (outcome.reply is None and runner.unread):
                return self._blame(runner, last)
            if outcome.kind is not step.expected:
                history.missing.add(place)
            if outcome.reply is None:
                return self._blame(runner, step)
            last = step
        if last is None:
            return True
        hello = await runner.request(Request("hello"), self._patience, self._patience, HELLO_GRACE_SECONDS)
        return hello.kind is Kind.OK or self._blame(runner, last)

    def _blame(self, runner: Runner, step: Step | None) -> bool:
        """Mark a step as not repeatable because the process failed after it, unless it ended for another reason. Returns
        False."""
        if step is not None and not (runner.died_with_zygote or runner.killed_for_memory or self._closed):
            step.repeatable = False
        return False


def _join(text: str, note: str) -> str:
    return f"{text}\n{note}" if text else note
