"""A session as its user sees it: cells in, results out, and state that outlives the process it is in."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from aster_sandbox.errors import SandboxFailure
from aster_sandbox.handle import NoRoom
from aster_sandbox.history import KEPT, LOST, STATUS, History, Step
from aster_sandbox.interface import check_environment
from aster_sandbox.output import NO_OUTPUT, Clip
from aster_sandbox.pressure import PATIENCE_SECONDS, Backoff
from aster_sandbox.protocol import MAX_DATA, Kind, Reply, Request, parts
from aster_sandbox.runner import Outcome, Runner
from aster_sandbox.types import CellResult, CellStatus

if TYPE_CHECKING:
    from aster_sandbox.settings import Settings

REPLAY_FACTOR = 3.0
"""In replay a cell may take this many times ``cell_seconds``, beside what it took at first."""
RECOVERY_ATTEMPTS = 5
"""Replays, each without the cells that ended the ones before; also tries of a cell that its process did not come to read."""
CELL_ATTEMPTS = 2
"""How often a cell is tried when the zygote dies under it. Not more often: the cell may be what kills the zygote."""
LAUNCH_ATTEMPTS = 4
SETUP_SECONDS = 30.0
ANSWER_SECONDS, SECONDS_PER_PROCESS = 1.0, 0.01
"""A runner that can run a cell begins to read it within the first; the second is added for each session that has a process,
because it may have to wait for a processor."""
HELLO_GRACE_SECONDS = 0.5
"""From the interrupt to the end of a runner that does not answer after replay."""
FILE_SECONDS = 30.0


class Host(Protocol):
    """What a session needs of its sandbox."""

    @property
    def settings(self) -> Settings:
        """What sessions may do."""

    @property
    def processes(self) -> int:
        """How many sessions have a process."""

    async def launch(self, clip: Clip, wanted: Callable[[], bool]) -> Runner:
        """A new process, whose output goes to ``clip``, when there is memory for it. SandboxFailure where there is none for
        long, where the zygote cannot be had, or where the process is not wanted any more."""

    async def charge(self, runner: Runner) -> None:
        """Count what is held for a process from here on: its first cell is about to begin."""

    async def adopt(self, origin: Origin) -> Session:
        """Another session without a process, as soon as there may be one more."""

    def forget(self, session: Session) -> None:
        """It is closed."""


class Origin:
    """What a session begins with, each time that it begins."""

    def __init__(self, seed: int, setup: str, environment: Mapping[str, str] | None) -> None:
        check_environment(environment or {})
        self.request = Request(
            "start", data=json.dumps({"seed": seed, "setup": setup, "environment": dict(environment or {})}).encode("ascii")
        )


class Session:
    """A Python interpreter of its own. Made by :meth:`Sandbox.open`; calls of :meth:`run` go one at a time."""

    def __init__(self, host: Host, origin: Origin) -> None:
        self.last_used = time.monotonic()
        self._host = host
        self._origin = origin
        self._clip = Clip(host.settings.output_characters)
        self._history = History()
        self._number = 0
        self._runner: Runner | None = None
        self._note = ""
        """What the next cell's reader must know."""
        self._lock = asyncio.Lock()
        self._closed = False
        self._closing: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Fork, seed and run the setup. SandboxFailure where the setup raises or no process can be had."""
        async with self._lock:
            await self._start_runner()

    async def run(self, code: str) -> CellResult:
        """Run one cell. Never raises for what the code does; SandboxFailure where the sandbox itself cannot go on."""
        async with self._turn():
            started = time.perf_counter()
            self._number += 1
            status, output = await self._run(code, started)
            return CellResult(code, status, output, time.perf_counter() - started)

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """One request at a time."""
        async with self._lock:
            self._require_open()
            try:
                yield
            except asyncio.CancelledError:
                # The request is still under way: the next one must not meet it. The process is rebuilt from the cells before.
                if self._runner is not None:
                    self._runner.kill()
                raise
            finally:
                self.last_used = time.monotonic()

    async def fork(self, seed: int | None = None) -> Session:
        """A second session that has run the same cells; it waits while ``sessions`` are alive. Neither notices what the other
        does from here on.

        The cells are run again in it, so it takes as long as they do. Random numbers go on alike in both, unless the new one is
        given a ``seed``. Where its state is not the same, its next cell says so.
        """
        self._require_open()
        twin = await self._host.adopt(self._origin)
        try:
            async with twin._lock:  # it is busy until it is whole: nobody may take its processes for an idle session's
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
        """Other random numbers from here on: those of the global generators that the session's own seed seeded."""
        async with self._turn():
            await self._reseed(seed)

    async def upload(self, path: str, content: bytes) -> None:
        """Put a file into the session, in place of what is there. ``path`` is from the working directory, or absolute; folders
        that are missing are made. OSError where the session may not write it, or where it is larger than ``file_mb``.

        Replay brings it back. Its content is kept for that, in memory, until the session ends.
        """
        if len(content) > self._host.settings.file_mb << 20:
            raise OSError(f"{path}: a file has at most {self._host.settings.file_mb} MiB (file_mb)")
        async with self._turn():
            await self._keep(Request("write", data=_path(path) + b"\0" + content), path)

    async def download(self, path: str, most_bytes: int | None = None) -> bytes:
        """A file of the session's, or its first ``most_bytes``. ``path`` as for ``upload``. OSError where there is none that
        can be read."""
        async with self._turn():
            content = bytearray()
            while True:
                wanted = MAX_DATA if most_bytes is None else min(MAX_DATA, most_bytes - len(content))
                reply = await self._ask(Request("read", len(content), wanted, _path(path)))
                if reply.kind is not Kind.OK:
                    raise OSError(f"{path}: {reply.data.decode('utf-8', 'replace')}")
                content += reply.data
                if not reply.data or len(content) >= reply.finished or len(content) == most_bytes:
                    return bytes(content)

    async def close(self) -> None:
        """End the process with all that it started, and remove its files. Closing twice is fine."""
        self._closed = True
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)  # it goes on where this is cancelled: nobody else would end the processes

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # ----- for the sandbox's housekeeping

    @property
    def busy(self) -> bool:
        """Whether a cell runs, or waits to run."""
        return self._lock.locked()

    @property
    def runner(self) -> Runner | None:
        """Its process; None where it has none."""
        return self._runner if self._runner is not None and not self._runner.gone.done() else None

    @property
    def evictable(self) -> bool:
        """Whether its process can be ended now: it is idle, and replay runs all of its cells again in a short time."""
        return self.runner is not None and not self.busy and self._rebuildable

    @property
    def _rebuildable(self) -> bool:
        return self._history.exact and self._history.seconds <= REPLAY_FACTOR * self._host.settings.cell_seconds

    async def evict(self) -> None:
        """End the process of an idle session. The next cell brings it back."""
        async with self._lock:
            if self._rebuildable:  # a cell may have come first
                await self._end_runner()

    @property
    def running(self) -> bool:
        """Whether a process is at work for it."""
        return self.busy and self._runner is not None and not self._runner.doomed

    def kill_for_memory(self, reason: str) -> None:
        """Kill what holds memory."""
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
            # The process was taken along, whatever the cell did: run it again.

    async def _ready_runner(self) -> Runner:
        """A process with the earlier cells' state. Where that is not whole, a note says so."""
        if self._runner is None or self._runner.doomed:
            state = await self._recover()
            if state != KEPT:
                self._note = f"[the interpreter had to be replaced before this cell; {state}]\n"
        assert self._runner is not None
        return self._runner

    async def _replaced(self, runner: Runner, overran: bool) -> tuple[CellStatus, str]:
        """The cell took its process along: recover, and say what happened."""
        text = self._clip.text()
        note, self._note = self._note, ""
        state = await self._recover()
        if overran:
            limit = f"{self._host.settings.cell_seconds:g} s"
            what = f"[timeout: the cell ran longer than {limit} and did not stop when interrupted, so it was killed; {state}]"
            return CellStatus.TIMEOUT, note + _join(text, what)
        return CellStatus.CRASHED, note + _join(text, f"[crashed: the Python interpreter {runner.ending()}; {state}]")

    def _ended(self, request: Request, reply: Reply, seconds: float) -> tuple[CellStatus, str]:
        """The cell came to an end of its own, or gave way to the interrupt: its variables are there."""
        text = self._clip.text()
        note, self._note = self._note, ""
        self._history.add(Step.ended(request, reply, seconds))
        status = STATUS[reply.kind]
        if status is CellStatus.TIMEOUT:
            limit = f"{self._host.settings.cell_seconds:g} s"
            return status, note + _join(text, f"[timeout: the cell was interrupted after {limit}; all variables are kept]")
        return status, note + (text or NO_OUTPUT)

    async def _reseed(self, seed: int) -> None:
        request = Request("seed", self._number, data=str(seed).encode())
        try:
            await self._keep(request, "")
        except OSError as error:
            raise SandboxFailure(f"the session cannot be given a seed: {error}") from None

    async def _keep(self, request: Request, path: str) -> None:
        """Have something done that replay must do again. OSError where it fails."""
        began = time.perf_counter()
        reply = await self._ask(request)
        if reply.kind is not Kind.OK:
            said = reply.data.decode("utf-8", "replace")
            raise OSError(f"{path}: {said}" if path else said)
        self._history.add(Step.ended(request, reply, time.perf_counter() - began))

    async def _ask(self, request: Request) -> Reply:
        """The answer to what is no cell. SandboxFailure where no process answers."""
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
        """What came of a request. A large file is sent in parts, up to the first that fails."""
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
                self._runner.kill()  # the cell that is running raises SandboxFailure
            async with self._lock:
                await self._end_runner()
        finally:
            self._host.forget(self)

    async def _end_runner(self) -> None:
        """End this session's process."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.end()

    async def _recover(self) -> str:
        """A process with the earlier steps' state, by silent replay. Returns what became of that state, in words."""
        attempts = 0
        patience = time.monotonic() + PATIENCE_SECONDS
        while attempts < RECOVERY_ATTEMPTS:
            runner = await self._start_runner()
            if await self._replay(runner):
                return self._history.state()
            if not any(step.repeatable for step in self._history.steps):
                break
            # Who was killed for others' memory has not failed; but its own may be what does not fit.
            attempts += not runner.killed_for_memory or time.monotonic() > patience
        self._history = History()
        await self._start_runner()
        return LOST

    async def _start_runner(self) -> Runner:
        """A new process, after its setup."""
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
                    raise SandboxFailure(f"no interpreter can be brought up: it {runner.ending()}")

    async def _start(self, runner: Runner) -> None:
        """Seed, and run the setup. Leaves a doomed runner where the process ended for no fault of the setup's."""
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
        runner.kill()  # without its setup it is no session's
        raise SandboxFailure(f"the session's setup failed:\n{how.strip()}")

    async def _replay(self, runner: Runner) -> bool:
        """Run all steps again in a fresh process. False where it ended. A step that did that is not tried again."""
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
        """A process cannot go on after a step, for the step's sake unless it ended for others'. Returns False."""
        if step is not None and not (runner.died_with_zygote or runner.killed_for_memory or self._closed):
            step.repeatable = False
        return False


def _path(path: str) -> bytes:
    if not path or "\0" in path:
        raise OSError(f"{path!r} is no path")
    return path.encode("utf-8", "surrogateescape")


def _join(text: str, note: str) -> str:
    return f"{text}\n{note}" if text else note
