"""The supervisor's side of one zygote: start it, request forks of runners, and receive reports of their end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

from aster_sandbox.errors import SandboxFailure, SettingsError
from aster_sandbox.isolation import Plan
from aster_sandbox.protocol import MAX_PACKET, receive

START_SECONDS = 180.0
"""Time limit for starting. The imports take 2 s; on a busy machine many times that."""
SILENT_SECONDS = 30.0
"""A zygote that owes a report of a fork or of an end and sends nothing for so long counts as hanging."""
FULL_SECONDS = 0.002
"""Pause between attempts to send while the zygote's socket buffer is full."""
STOP_SECONDS = 10.0
KILL_SECONDS = 15.0
"""How long the guard may take to end what a killed zygote left behind."""
MOST_DESCRIPTORS = 64
"""Maximum number of descriptors with one packet from the zygote."""
LOG = "zygote.log"
ENVIRONMENT = ("PATH", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH")
"""The only variables of the supervisor's environment that sessions see."""
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "BLIS_NUM_THREADS")


class ZygoteLost(Exception):
    """The zygote ended or hangs. The caller should start another."""


class NoRoom(Exception):
    """A fork failed because the machine is temporarily short of memory or processes."""


class ForkListener(Protocol):
    """Receives the reports on a runner from the zygote."""

    def on_forked(self, pidfd: int) -> None:
        """The runner was forked. The receiver owns the pidfd."""

    def on_failed(self, error: Exception) -> None:
        """The fork failed with NoRoom (try again) or SandboxFailure."""

    def on_gone(self, status: int | None) -> None:
        """The runner and everything it started have ended. ``status``: as of waitpid; None if it ended with the zygote."""


class ZygoteHandle:
    """One zygote, from start to end. It is never restarted; the sandbox starts another."""

    def __init__(self, process: subprocess.Popen[bytes], connection: socket.socket) -> None:
        self.alive = True
        self.pidfd: int | None = None
        """The zygote's pidfd, once it is ready."""
        self._process = process  # the zygote's guard
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._runners: dict[int, ForkListener] = {}
        self._expected: set[int] = set()
        """Numbers of runners for which the zygote owes a report: of the fork, or of the end."""
        self._watch: asyncio.TimerHandle | None = None
        self._reaping: asyncio.Task[None] | None = None
        self._queue = asyncio.Lock()
        self._loop.add_reader(connection, self._on_readable)

    @classmethod
    async def start(cls, plan: Plan) -> ZygoteHandle:
        """Start a zygote, with its log and its sessions' files below the plan's root. Raises SandboxFailure if it does not
        start, and SettingsError if a package in ``preload`` cannot be imported."""
        root = Path(plan.root)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        # -P: do not import from the working directory. no_debug_ranges: shorter tracebacks, less memory.
        command = [sys.executable, "-P", "-X", "no_debug_ranges", "-m", "aster_sandbox.zygote"]
        with theirs, open(root / LOG, "wb") as log:
            try:
                process = subprocess.Popen(
                    [*command, str(theirs.fileno()), plan.to_text(), str(os.getpid())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=root,
                    env=environment(root),
                    start_new_session=True,  # so that Ctrl-C in the terminal reaches only the supervisor
                )
            except OSError as error:
                ours.close()
                raise SandboxFailure(f"the sandbox's parent process could not be started: {error}") from error
        handle = cls(process, ours)
        try:
            await asyncio.wait_for(asyncio.shield(handle._ready), START_SECONDS)
        except (ZygoteLost, TimeoutError):
            handle.kill()
            await handle.wait_dead()
            log_text = (root / LOG).read_text(errors="replace").strip()[-2000:]
            last = log_text.rpartition("\n")[2]
            if last.startswith("sandbox."):  # the message of warm.Unloadable, which names a setting
                raise SettingsError(last) from None
            raise SandboxFailure(f"the sandbox's parent process did not start; its log:\n{log_text}") from None
        except asyncio.CancelledError:
            handle.kill()
            await handle.wait_dead()
            raise
        return handle

    @property
    def pid(self) -> int | None:
        """The zygote's pid as this process sees it; None if it has ended."""
        return pid_of(self.pidfd) if self.alive and self.pidfd is not None else None

    async def fork(self, number: int, name: str, descriptors: list[int], runner: ForkListener) -> None:
        """Request the fork of runner ``number`` without waiting for it. Raises ZygoteLost.

        ``name``: of its directory. ``descriptors``: its ends of the connection and of the output pipe."""
        packet = json.dumps({"op": "fork", "id": number, "name": name}).encode()
        async with self._queue:
            while True:
                if not self.alive:
                    raise ZygoteLost
                try:
                    socket.send_fds(self._connection, [packet], descriptors)
                    break
                except BlockingIOError:
                    await asyncio.sleep(FULL_SECONDS)
                except OSError:
                    self.kill()
        self._runners[number] = runner
        self._expect_message(number)

    def expect_end(self, number: int) -> None:
        """Expect the zygote to report the end of a runner that was killed."""
        if self.alive and number in self._runners:
            self._expect_message(number)

    def kill(self) -> None:
        """Kill the zygote and everything below it, because it hangs or closed its connection. When all of that has ended,
        ``on_gone`` of each runner is called."""
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
            self._ready.exception()  # marks it as retrieved, in case nothing waits for it
        self._reaping = self._loop.create_task(self._reap())

    async def wait_dead(self) -> None:
        """Wait until everything below a killed zygote has ended."""
        if self._reaping is not None:
            await asyncio.shield(self._reaping)

    async def _reap(self) -> None:
        # In a thread: with many sessions this takes seconds.
        try:
            await asyncio.to_thread(self._process.wait, KILL_SECONDS)  # the guard ends after everything below it
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
        runners, self._runners = self._runners, {}
        for runner in runners.values():
            runner.on_gone(None)

    async def stop(self) -> None:
        """Shut the zygote down: it kills and reaps everything below it, then ends."""
        if not self.alive:
            await self.wait_dead()
            return
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)
        try:
            await asyncio.wait_for(asyncio.to_thread(self._process.wait, STOP_SECONDS), STOP_SECONDS + 1)
        except (subprocess.TimeoutExpired, TimeoutError):
            self._process.kill()
        self.kill()
        await self.wait_dead()

    def _on_readable(self) -> None:
        while self.alive:
            try:
                data, descriptors = receive(self._connection, MAX_PACKET, MOST_DESCRIPTORS)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.kill()
                return
            self._take(json.loads(data), descriptors)

    def _take(self, message: dict[str, Any], descriptors: list[int]) -> None:
        match message:
            case {"ready": True}:
                self.pidfd = descriptors[0]
                self._ready.set_result(None)
            case {"forked": [*numbers]}:
                for number, pidfd in zip(numbers, descriptors, strict=True):
                    self._expected.discard(number)
                    self._runners[number].on_forked(pidfd)
            case {"failed": int(number), "errno": int(error_number), "reason": str(reason)}:
                self._expected.discard(number)
                self._runners.pop(number).on_failed(_fork_error(error_number, reason))
            case {"gone": [*ended]}:
                for number, status in ended:
                    self._expected.discard(number)
                    self._runners.pop(number).on_gone(status)
            case _:
                raise SandboxFailure(f"unknown message from the sandbox's parent process: {message}")
        self._restart_watchdog()

    def _expect_message(self, number: int) -> None:
        self._expected.add(number)
        if self._watch is None or self._watch.cancelled():
            self._restart_watchdog()

    def _restart_watchdog(self) -> None:
        """Restart the timer after which a silent zygote counts as hanging."""
        if self._watch is not None:
            self._watch.cancel()
        self._watch = self._loop.call_later(SILENT_SECONDS, self.kill) if self._expected and self.alive else None


def _fork_error(error_number: int, reason: str) -> Exception:
    """The exception for a failed fork: NoRoom if it may succeed later."""
    if error_number in (errno.EAGAIN, errno.ENOMEM):
        return NoRoom(reason)
    return SandboxFailure(f"no process could be started for a session: {reason}")


def pid_of(pidfd: int) -> int | None:
    """The pid of a pidfd's process as this process sees it, whatever namespace it is in; None if it has ended."""
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        pid = next((int(line.split()[1]) for line in file if line.startswith("Pid:")), 0)
    return pid if pid > 0 else None


def environment(root: Path) -> dict[str, str]:
    """The environment of the zygote and so of all sessions: an allow-list of the supervisor's, and fixed values."""
    kept = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    package_root = str(Path(__file__).resolve().parents[1])
    path = [package_root, *(entry for entry in sys.path if os.path.isabs(entry) and entry != package_root)]
    fixed = {
        # The interpreter's folder comes first, so that ``python`` in a cell's subprocess is this interpreter.
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), kept.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join(path),  # the supervisor's own import path
        "PYTHONHASHSEED": "0",
        "PYTHONUTF8": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PIP_NO_INDEX": "1",  # there is no network: pip fails at once instead of retrying
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "MPLBACKEND": "module://aster_sandbox.figures",
        "HOME": str(root),
        "TMPDIR": str(root),
        "MALLOC_ARENA_MAX": "2",  # each further arena counts 64 MiB against the address-space limit
    }
    return kept | fixed | dict.fromkeys(ONE_THREAD, "1")
