"""The supervisor's side of one zygote: start it, ask it for sessions, hear of their end."""

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
from dataclasses import dataclass
from pathlib import Path

from aster.sandbox.isolation import Plan
from aster.sandbox.protocol import MAX_PACKET, ForkRequest, SandboxFailure

START_SECONDS = 180.0
"""The imports take 2 s; many times that on a busy machine."""
FORK_SECONDS = 30.0
STOP_SECONDS = 10.0
BURY_SECONDS = 15.0
"""How long the guard may take to end what a killed zygote left behind."""
LOG = "zygote.log"
ENVIRONMENT = ("PATH", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH")
"""All that sessions see of the supervisor's environment."""
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "BLIS_NUM_THREADS")


class ZygoteLost(Exception):
    """The zygote ended or hangs. The caller takes a new one."""


@dataclass(frozen=True, slots=True)
class Forked:
    """A new session's process."""

    pid: int
    pidfd: int
    gone: asyncio.Future[int | None]
    """Its status as of waitpid once it and its group are dead; None where its zygote ended and took it along."""


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
        self._fork: asyncio.Future[Forked] | None = None
        self._fork_lock = asyncio.Lock()
        self._gone: dict[int, asyncio.Future[int | None]] = {}
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
            log_text = (root / LOG).read_text(errors="replace").strip()[-2000:]
            raise SandboxFailure(f"the sandbox's parent process did not come up:\n{log_text}") from None
        except asyncio.CancelledError:
            handle.condemn()
            raise
        return handle

    async def fork(self, request: ForkRequest, connection: socket.socket, output: int) -> Forked:
        """Fork a session. Raises ZygoteLost, or SandboxFailure where the zygote cannot fork. Not to be cancelled."""
        async with self._fork_lock:
            if not self.alive:
                raise ZygoteLost
            self._fork = self._loop.create_future()
            try:
                packet = json.dumps(dataclasses.asdict(request)).encode()
                socket.send_fds(self._connection, [packet], [connection.fileno(), output])
                return await asyncio.wait_for(asyncio.shield(self._fork), FORK_SECONDS)
            except (OSError, TimeoutError):
                self.condemn()
                raise ZygoteLost from None
            finally:
                self._fork = None

    def condemn(self) -> None:
        """Kill the zygote, and all its sessions with it: it hangs, or its connection ended."""
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
        try:
            self._process.wait(BURY_SECONDS)  # it ends when all below it is dead
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for future in (self._ready, self._fork):
            if future is not None and not future.done():
                future.set_exception(ZygoteLost())
                future.exception()  # nobody may be waiting: that is no error
        for gone in self._gone.values():
            gone.set_result(None)
        self._gone.clear()

    async def stop(self) -> None:
        """End the zygote in order: it kills and reaps all below it first."""
        if not self.alive:
            return
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)
        try:
            await asyncio.wait_for(asyncio.to_thread(self._process.wait, STOP_SECONDS), STOP_SECONDS + 1)
        except (subprocess.TimeoutExpired, TimeoutError):
            self._process.kill()
        self.condemn()

    def _on_readable(self) -> None:
        while self.alive:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._connection, MAX_PACKET, 1)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.condemn()
                return
            self._take(json.loads(data), descriptors)

    def _take(self, message: dict[str, int | str], descriptors: list[int]) -> None:
        match message:
            case {"ready": int()}:
                self.pidfd = descriptors[0]
                self._ready.set_result(None)
            case {"forked": int(pid)}:
                gone = self._gone[pid] = self._loop.create_future()
                if self._fork is not None:
                    self._fork.set_result(Forked(pid, descriptors[0], gone))
            case {"failed": str(reason)}:
                if self._fork is not None:
                    self._fork.set_exception(SandboxFailure(f"no process could be started for a session: {reason}"))
            case {"gone": int(pid), "status": int(status)}:
                self._gone.pop(pid).set_result(status)
            case _:
                raise SandboxFailure(f"unknown message from the sandbox's parent process: {message}")


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
