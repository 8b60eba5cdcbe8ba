"""A session as its user sees it: cells in, results out, and state that outlives the process it is in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from aster.core.types import CallStatus, ToolCall
from aster.sandbox.history import KEPT, LOST, History, Step
from aster.sandbox.keeper_handle import KeeperHandle, NoRoom
from aster.sandbox.output import NO_OUTPUT, Clip
from aster.sandbox.pool import Place
from aster.sandbox.pressure import PATIENCE_SECONDS, Backoff
from aster.sandbox.protocol import Request, SandboxFailure
from aster.sandbox.runner import Outcome, Runner, to_its_end

if TYPE_CHECKING:
    from aster.core import recipe

REPLAY_FACTOR = 3.0
"""In recovery a cell may take this many times ``cell_seconds``, beside what it took at first, and all cells together as long,
beside twice what they took at first."""
STEP_SECONDS = 0.25
"""And so long more for each cell: on a busy machine each has to wait for its turn."""
RECOVERY_ATTEMPTS = 5
"""Replays, each without the cells that ended the ones before; also tries of a cell that its process did not come to read."""
CELL_ATTEMPTS = 2
"""Runs of a cell whose process the keeper or the zygote took along. It may be the cell that kills them."""
LINE_ATTEMPTS, LAUNCH_ATTEMPTS = 2, 4
"""Runners tried below one keeper before another keeper is, and in all."""
SETUP_SECONDS = 30.0
HELLO_SECONDS = 30.0
BRANCH_SECONDS = 30.0


class Host(Protocol):
    """What a session needs of its sandbox."""

    @property
    def settings(self) -> recipe.Sandbox:
        """The recipe's section."""

    async def admit(self, wanted: Callable[[], bool], own: KeeperHandle | None = None) -> None:
        """Wait for memory, unless sessions below the keeper ``own`` are alone. SandboxFailure where there is none for long, or
        the process is not wanted any more."""

    async def take_place(self, clip: Clip) -> Place:
        """A place that no session has; its output goes to ``clip``. SandboxFailure where the zygote cannot be had."""

    async def adopt(self, seed: int, setup: str) -> Session:
        """Another session without a process, as soon as there may be one more."""

    def forget(self, session: Session) -> None:
        """It is closed."""


class Session:
    """A Python interpreter of its own. Made by :meth:`Sandbox.open`; calls of :meth:`run` go one at a time."""

    def __init__(self, host: Host, seed: int, setup: str) -> None:
        self.last_used = time.monotonic()
        self._host = host
        self._seed = seed
        self._setup = setup
        self._clip = Clip(host.settings.output_characters)
        self._history = History()
        self._number = 0
        self._keeper: KeeperHandle | None = None
        self._line = 0
        self._runner: Runner | None = None
        self._note = ""
        """What the next cell's reader must know."""
        self._lock = asyncio.Lock()
        self._closed = False
        self._closing: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Fork, seed and run the setup. SandboxFailure where the setup raises or no process can be had."""
        async with self._lock:
            await self._revive()

    async def run(self, code: str) -> ToolCall:
        """Run one cell. Never raises for what the code does; SandboxFailure where the sandbox itself cannot go on."""
        async with self._lock:
            self._require_open()
            started = time.perf_counter()
            self._number += 1
            try:
                status, output = await self._run(code, started)
            except asyncio.CancelledError:
                # The cell is still running: the next one must not find it. It will be rebuilt from the cells before.
                if self._runner is not None:
                    self._runner.kill()
                raise
            finally:
                self.last_used = time.monotonic()
            return ToolCall(code, status, output, time.perf_counter() - started)

    async def fork(self, seed: int | None = None) -> Session:
        """A second session with the same state, in milliseconds; it waits while ``sandbox.sessions`` are alive. Neither
        notices what the other does from here on.

        Random numbers go on alike in both, unless the new one is given a ``seed``. Where the state cannot be copied by a fork
        (threads, child processes, pipes), or there is no process to fork, the new session runs the earlier cells again.
        """
        self._require_open()
        twin = await self._host.adopt(self._seed, self._setup)
        try:
            async with twin._lock:  # it is busy until it is whole: nobody may take its processes for an idle session's
                async with self._lock:
                    self._require_open()
                    twin._history = self._history.copy()
                    twin._number = self._number
                    twin._note = self._note
                    forked = await self._branch(twin)
                if not forked:
                    state = await twin._recover()
                    if state != KEPT:
                        twin._note = f"[this session's cells had to be run again; {state}]\n"
                if seed is not None:
                    await twin._reseed(seed)
        except BaseException:
            await twin.close()
            raise
        twin.last_used = time.monotonic()
        return twin

    async def reseed(self, seed: int) -> None:
        """Other random numbers from here on: those of the global generators that the session's own seed seeded."""
        async with self._lock:
            self._require_open()
            await self._reseed(seed)

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
    def keeper(self) -> KeeperHandle | None:
        """The session's keeper; None where it has no processes."""
        return self._keeper if self._keeper is not None and self._keeper.alive else None

    @property
    def reclaimable(self) -> bool:
        """Whether its processes can be ended now, and brought back by replay without a loss and in a short time."""
        return self.keeper is not None and not self.busy and self._rebuildable

    @property
    def _rebuildable(self) -> bool:
        return self._history.exact and self._history.seconds <= REPLAY_FACTOR * self._host.settings.cell_seconds

    async def reclaim(self) -> None:
        """End the processes of an idle session. The next cell brings them back."""
        async with self._lock:
            if self._rebuildable:  # a cell may have come first
                await self._let_go()

    @property
    def running(self) -> bool:
        """Whether a process is at work for it."""
        return self.busy and self._runner is not None and not self._runner.doomed

    def shed(self, reason: str) -> None:
        """Kill what holds memory: the running cell's process, or else all there is, such as the savepoint of a session that
        waits for memory itself."""
        if self.running and self._runner is not None:
            self._runner.shed = True
            self._runner.kill(reason)
        elif self._keeper is not None and (self._runner is None or not self._runner.dying):
            self._keeper.close()

    # ----- cells

    def _require_open(self) -> None:
        if self._closed:
            raise SandboxFailure("the session is closed")

    async def _run(self, code: str, started: float) -> tuple[CallStatus, str]:
        step = Step(self._number, code)
        lost = unread = 0
        while True:
            if self._runner is None or self._runner.doomed:
                state = await self._recover()
                if state != KEPT:
                    self._note = f"[the interpreter had to be replaced before this cell; {state}]\n"
            runner = self._runner
            assert runner is not None
            outcome = await runner.request(step.request(len(self._history.steps) + 1), self._host.settings.cell_seconds)
            if outcome.status is not None:
                step.seconds = time.perf_counter() - started
                return self._ended(step, outcome)
            self._require_open()
            await runner.end()
            unread += runner.unread
            if runner.unborn is not None or (runner.unread and unread < RECOVERY_ATTEMPTS):
                continue  # the cell has not begun
            lost += runner.taken_along
            if outcome.overran or not runner.taken_along or lost == CELL_ATTEMPTS:
                return await self._replaced(runner, outcome.overran)
            self._clip.clear()  # the process was taken along, whatever the cell did: run it again

    async def _replaced(self, runner: Runner, overran: bool) -> tuple[CallStatus, str]:
        """The cell took its process along: recover, and say what happened."""
        text = self._take_output()
        note, self._note = self._note, ""
        state = await self._recover()
        if overran:
            limit = f"{self._host.settings.cell_seconds:g} s"
            what = f"[timeout: the cell ran longer than {limit} and did not stop when interrupted, so it was killed; {state}]"
            return CallStatus.TIMEOUT, note + _join(text, what)
        return CallStatus.CRASHED, note + _join(text, f"[crashed: the Python interpreter {runner.ending()}; {state}]")

    def _ended(self, step: Step, outcome: Outcome) -> tuple[CallStatus, str]:
        """The cell came to an end of its own, or gave way to the interrupt: its variables are there."""
        text = self._take_output()
        note, self._note = self._note, ""
        interrupted = outcome.reply.interrupted
        status = CallStatus(outcome.status or "")
        step.status = None if interrupted else status
        self._history.steps.append(step)
        if interrupted:
            limit = f"{self._host.settings.cell_seconds:g} s"
            what = f"[timeout: the cell was interrupted after {limit}; all variables are kept]"
            return CallStatus.TIMEOUT, note + _join(text, what)
        return status, note + (text or NO_OUTPUT)

    def _take_output(self) -> str:
        text = self._clip.text()
        self._clip.clear()
        return text

    async def _reseed(self, seed: int) -> None:
        step = Step(self._number, seed=seed)
        how = ""
        for _ in range(RECOVERY_ATTEMPTS):
            if self._runner is None or self._runner.doomed:
                await self._recover()
            runner = self._runner
            assert runner is not None
            outcome = await runner.request(step.request(len(self._history.steps) + 1), HELLO_SECONDS)
            if outcome.status == "ok":
                self._history.steps.append(step)
                return
            await runner.end()
            how = runner.ending()
        raise SandboxFailure(f"the session cannot be given a seed: its interpreter {how}")

    # ----- processes

    async def _close(self) -> None:
        try:
            if self._runner is not None and self.busy:
                self._runner.kill()  # the cell that is running raises SandboxFailure
            async with self._lock:
                await self._let_go()
        finally:
            self._host.forget(self)

    async def _let_go(self) -> None:
        """End all processes of this session."""
        runner, self._runner = self._runner, None
        keeper, self._keeper = self._keeper, None
        try:
            if keeper is not None:
                await keeper.leave(self._line)
        finally:
            if runner is not None:
                runner.release()

    async def _branch(self, twin: Session) -> bool:
        """Give the twin a fork of this session's runner. False where that cannot be."""
        runner, keeper = self._runner, self._keeper
        if runner is None or runner.doomed or keeper is None or not keeper.alive:
            return False
        await self._host.admit(self._wanted, keeper)
        twin._keeper, twin._line = keeper, keeper.new_line()
        twin._runner = Runner(keeper, twin._line, twin._clip)
        # To the end, or the next cell would meet the reply.
        outcome = await to_its_end(runner.request(Request("branch", twin._line), BRANCH_SECONDS, twin._runner))
        if outcome.status == "ok":
            hello = await twin._runner.request(Request("hello"), HELLO_SECONDS)
            if hello.status == "ok":
                return True
        await twin._let_go()
        return False

    async def _recover(self) -> str:
        """A process with the earlier steps' state: the savepoint's, or the keeper's, and silent replay from there. Returns what
        became of that state, in words."""
        attempts = 0
        patience = time.monotonic() + PATIENCE_SECONDS
        while attempts < RECOVERY_ATTEMPTS:
            runner = await self._revive()
            if await self._replay(runner):
                return self._history.state()
            if all(place in self._history.missing for place in range(len(self._history.steps))):
                break
            # Who was killed for others' memory has not failed; but its own may be what does not fit.
            attempts += not runner.shed or time.monotonic() > patience
        self._history = History()
        await self._let_go()
        await self._revive()
        return LOST

    async def _revive(self) -> Runner:
        """A new runner: its line's savepoint, or one after its setup. Tells the history how far that is."""
        backoff = Backoff()
        failures = 0
        while True:
            runner, new = await self._launch(failures)
            place, files = -1, True
            if not new:
                hello = await runner.request(Request("hello"), HELLO_SECONDS)
                place, files = hello.reply.step, hello.reply.files
                if place > len(self._history.steps):
                    runner.kill()  # it remembers a cell that was cancelled in the moment of its end
            if place < 0 and not runner.doomed:
                await self._start(runner)
            if not runner.doomed:
                self._history.begin_replay(max(place, 0), files)
                return runner
            if isinstance(runner.unborn, NoRoom):
                await backoff.wait(str(runner.unborn))
            elif runner.unborn is not None:
                raise runner.unborn
            else:
                failures += 1
                if failures == LAUNCH_ATTEMPTS:
                    raise SandboxFailure(f"no interpreter can be brought up: it {runner.ending()}")

    async def _launch(self, failures: int) -> tuple[Runner, bool]:
        """A runner, and whether its line is new: the keeper was gone, or has failed before."""
        if self._runner is not None:
            await self._runner.end()
        await self._host.admit(self._wanted)
        new = self._keeper is None or not self._keeper.alive or failures == LINE_ATTEMPTS
        if new:
            await self._let_go()
            place = await self._host.take_place(self._clip)
            self._keeper, self._line, self._runner = place.keeper, place.line, place.runner
            return place.runner, True
        assert self._keeper is not None
        runner = self._runner = Runner(self._keeper, self._line, self._clip)
        await runner.launch(-1 if failures else len(self._history.steps))
        return runner, False

    async def _start(self, runner: Runner) -> None:
        """Seed, and run the setup. Leaves a doomed runner where the process ended for no fault of the setup's."""
        outcome = await runner.request(Request("start", text=f"{self._seed}\n{self._setup}"), SETUP_SECONDS)
        how = self._take_output()
        if outcome.status == "ok":
            return
        if outcome.status is None:
            await runner.end()
            self._require_open()
            if not runner.died_alone:
                return
            how = f"{how}\nthe process {runner.ending()}"
        raise SandboxFailure(f"the session's setup failed:\n{how.strip()}")

    async def _replay(self, runner: Runner) -> bool:
        """Run the steps again that the runner does not have. False where its process ended. A step that did that is not tried
        again."""
        history = self._history
        cell_seconds = self._host.settings.cell_seconds
        allowed = REPLAY_FACTOR * cell_seconds + 2 * history.seconds + STEP_SECONDS * len(history.steps)
        deadline = time.monotonic() + allowed
        last: Step | None = None
        for place in range(history.reached, len(history.steps)):
            step = history.steps[place]
            left = deadline - time.monotonic()
            if not step.repeatable or left <= 0:
                history.missing.add(place)
                continue
            outcome = await runner.request(step.request(place + 1), min(left, REPLAY_FACTOR * cell_seconds + step.seconds))
            self._clip.clear()
            if outcome.status is None and (runner.taken_along or runner.shed or self._closed):
                return False
            if step.seed is None and (outcome.status != step.status or outcome.reply.interrupted):
                history.missing.add(place)
            if outcome.status is None or outcome.reply.interrupted:
                step.status = None
            if outcome.status is None:
                return False
            last = step
        if last is None or (await runner.request(Request("hello"), HELLO_SECONDS)).status is not None:
            return True
        if not (runner.taken_along or runner.shed or self._closed):
            last.status = None  # it left a process behind that cannot go on
        return False

    def _wanted(self) -> bool:
        return not self._closed


def _join(text: str, note: str) -> str:
    return f"{text}\n{note}" if text else note
