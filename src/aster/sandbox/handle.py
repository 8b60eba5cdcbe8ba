"""The supervisor's side of one zygote: start it, ask it for keepers, hear of their end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

from aster.sandbox.isolation import Plan
from aster.sandbox.protocol import MAX_PACKET, ForkRequest, SandboxFailure, receive

START_SECONDS = 180.0
"""The imports take 2 s; many times that on a busy machine."""
FORK_SECONDS = 30.0
"""A zygote that was asked for a fork and says nothing for so long hangs."""
FULL_SECONDS = 0.002
"""Between two tries to send where the zygote has not read yet what was sent."""
STOP_SECONDS = 10.0
BURY_SECONDS = 15.0
"""How long the guard may take to end what a killed zygote left behind."""
LOG = "zygote.log"
ENVIRONMENT = ("PATH", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH")
"""All that sessions see of the supervisor's environment."""
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "BLIS_NUM_THREADS")


class ZygoteLost(Exception):
    """The zygote ended or hangs. The caller takes a new one."""


class Expecting(Protocol):
    """Who asked for a keeper."""

    def on_failed(self, error_number: int, reason: str) -> None:
        """It could not be forked."""

    def on_gone(self, status: int | None) -> None:
        """It ended, with all below it. None where the zygote ended and took it along."""


class ZygoteHandle:
    """One zygote, from its start to its end. It is not restarted: the sandbox makes another."""

    def __init__(self, process: subprocess.Popen[bytes], connection: socket.socket) -> None:
        self.alive = True
        self.pidfd: int | None = None
        """The zygote's, once it is ready."""
        self._process = process  # the zygote's guard
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._keepers: dict[int, Expecting] = {}
        self._waiting: set[int] = set()
        """Keepers that were asked for and are not forked yet."""
        self._watch: asyncio.TimerHandle | None = None
        self._burial: asyncio.Task[None] | None = None
        self._queue = asyncio.Lock()
        self._loop.add_reader(connection, self._on_readable)

    @classmethod
    async def start(cls, plan: Plan, preload: list[str]) -> ZygoteHandle:
        """Start a zygote that has imported ``preload`` and keeps its log and its sessions' files below the plan's root.
        SandboxFailure where that fails."""
        root = Path(plan.root)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        # -P: a numpy.py in the working directory is not numpy. no_debug_ranges: shorter tracebacks, less memory.
        command = [sys.executable, "-P", "-X", "no_debug_ranges", "-m", "aster.sandbox.zygote"]
        with theirs, open(root / LOG, "wb") as log:
            try:
                process = subprocess.Popen(
                    [*command, str(theirs.fileno()), plan.to_text(), str(os.getpid()), *preload],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=root,
                    env=environment(root),
                    start_new_session=True,  # Ctrl-C in the terminal is for the supervisor
                )
            except OSError as error:
                ours.close()
                raise SandboxFailure(f"the sandbox's parent process could not be started: {error}") from error
        handle = cls(process, ours)
        try:
            await asyncio.wait_for(asyncio.shield(handle._ready), START_SECONDS)
        except (ZygoteLost, TimeoutError):
            handle.condemn()
            await handle.buried()
            log_text = (root / LOG).read_text(errors="replace").strip()[-2000:]
            raise SandboxFailure(f"the sandbox's parent process did not come up:\n{log_text}") from None
        except asyncio.CancelledError:
            handle.condemn()
            await handle.buried()
            raise
        return handle

    async def fork(self, number: int, request: ForkRequest, control: socket.socket, keeper: Expecting) -> None:
        """Ask for a keeper, in turn, and do not wait for it. ``number`` names it from here on. Raises ZygoteLost."""
        packet = json.dumps({"op": "fork", "id": number, **dataclasses.asdict(request)}).encode()
        async with self._queue:
            while True:
                if not self.alive:
                    raise ZygoteLost
                try:
                    socket.send_fds(self._connection, [packet], [control.fileno()])
                    break
                except BlockingIOError:
                    await asyncio.sleep(FULL_SECONDS)
                except OSError:
                    self.condemn()
        self._keepers[number] = keeper
        self._waiting.add(number)
        self._look_out()

    def awaits(self, number: int) -> bool:
        """Whether a keeper was asked for and is not forked yet."""
        return self.alive and number in self._waiting

    def kill(self, number: int) -> None:
        """Kill a keeper that does not end on request."""
        if self.alive and number in self._keepers:
            try:
                self._connection.send(json.dumps({"op": "kill", "id": number}).encode())
            except BlockingIOError:  # many forks were asked for
                self._loop.call_later(FULL_SECONDS, self.kill, number)
            except OSError:
                self.condemn()

    def condemn(self) -> None:
        """Kill the zygote, and all below it: it hangs, or its connection ended. Its keepers hear of it when all are dead."""
        if not self.alive:
            return
        self.alive = False
        self._loop.remove_reader(self._connection)
        self._connection.close()
        if self.pidfd is None:
            self._process.kill()
        else:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            os.close(self.pidfd)
        if self._watch is not None:
            self._watch.cancel()
        if not self._ready.done():
            self._ready.set_exception(ZygoteLost())
            self._ready.exception()  # nobody may be waiting: that is no error
        self._burial = self._loop.create_task(self._bury())

    async def buried(self) -> None:
        """Wait until all below a condemned zygote is dead."""
        if self._burial is not None:
            await asyncio.shield(self._burial)

    async def _bury(self) -> None:
        # In a thread: with many sessions this takes seconds.
        try:
            await asyncio.to_thread(self._process.wait, BURY_SECONDS)  # the guard ends when all below it is dead
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
        keepers, self._keepers = self._keepers, {}
        for keeper in keepers.values():
            keeper.on_gone(None)

    async def stop(self) -> None:
        """End the zygote in order: it kills and reaps all below it first."""
        if not self.alive:
            await self.buried()
            return
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)
        try:
            await asyncio.wait_for(asyncio.to_thread(self._process.wait, STOP_SECONDS), STOP_SECONDS + 1)
        except (subprocess.TimeoutExpired, TimeoutError):
            self._process.kill()
        self.condemn()
        await self.buried()

    def _on_readable(self) -> None:
        while self.alive:
            try:
                data, descriptors = receive(self._connection, MAX_PACKET, 1)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.condemn()
                return
            self._take(json.loads(data), descriptors)

    def _take(self, message: dict[str, Any], descriptors: list[int]) -> None:
        match message:
            case {"ready": True}:
                self.pidfd = descriptors[0]
                self._ready.set_result(None)
            case {"forked": [*numbers]}:
                for number in numbers:
                    self._waiting.discard(number)
                self._look_out()
            case {"failed": int(number), "errno": int(error_number), "reason": str(reason)}:
                self._waiting.discard(number)
                self._keepers.pop(number).on_failed(error_number, reason)
                self._look_out()
            case {"gone": [*ended]}:
                for number, status in ended:
                    self._keepers.pop(number).on_gone(status)
            case _:
                raise SandboxFailure(f"unknown message from the sandbox's parent process: {message}")

    def _look_out(self) -> None:
        """Give the zygote time for its next sign of life."""
        if self._watch is not None:
            self._watch.cancel()
        self._watch = self._loop.call_later(FORK_SECONDS, self.condemn) if self._waiting else None


def environment(root: Path) -> dict[str, str]:
    """The environment of the zygote and so of all sessions: an allow-list, and what makes runs repeatable."""
    kept = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    package_root = str(Path(__file__).resolve().parents[2])
    path = [package_root, *(entry for entry in sys.path if os.path.isabs(entry) and entry != package_root)]
    fixed = {
        "PYTHONPATH": os.pathsep.join(path),  # whatever the supervisor imports from, in its order
        "PYTHONHASHSEED": "0",
        "PYTHONUTF8": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "MPLBACKEND": "Agg",
        "MPLCONFIGDIR": str(root),
        "HOME": str(root),
        "TMPDIR": str(root),
        "MALLOC_ARENA_MAX": "2",  # an arena a thread would count 64 MiB against the address-space limit
    }
    return kept | fixed | dict.fromkeys(ONE_THREAD, "1")
