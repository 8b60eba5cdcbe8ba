"""A pool of warm worker processes for Math-Verify. A worker that exceeds its time limit is killed and replaced."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from aster.errors import UserError
from aster.extras import install_command
from aster.process import start

START_SECONDS = 120.0
"""Time limit for a worker to import Math-Verify. It is long because the machine may be busy."""

ATTEMPTS = 2
"""A worker may be killed from outside (out of memory), so a comparison is tried once more in a new worker."""


class WorkerDied(Exception):
    """The worker process ended before it replied. The message says how."""


class WorkerLate(Exception):
    """The worker process did not reply in time."""


class Worker:
    """One process of :mod:`aster.grading.worker`. Use it from one thread at a time.

    Raises UserError if the process cannot be started.
    """

    def __init__(self) -> None:
        source = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(part for part in (source, os.environ.get("PYTHONPATH")) if part)
        try:
            self.process = start(
                [sys.executable, "-P", "-m", "aster.grading.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=os.environ | {"PYTHONPATH": path},
            )
        except OSError as error:
            raise UserError(f"grading: cannot start a worker process: {error.strerror or error}") from error
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._requests: IO[bytes] = self.process.stdin
        self._replies: IO[bytes] = self.process.stdout
        try:
            self._read_line(START_SECONDS)
        except (WorkerDied, WorkerLate) as error:
            self.process.kill()
            complaint = self.process.stderr.read().decode(errors="replace").strip().splitlines()
            self.close()
            raise UserError(
                f"grading: the worker process did not start ({complaint[-1] if complaint else error}); "
                f"check that math-verify is installed ({install_command('math-verify')})"
            ) from error
        self.process.stderr.close()

    def ask(self, prediction: str, answer: str, seconds: float) -> tuple[bool, str]:
        """Compare two answers and return whether they are equal, and the reason.

        Raises WorkerLate or WorkerDied; after either, the worker cannot be used again.
        """
        request = {"prediction": prediction, "answer": answer}
        try:
            self._requests.write(json.dumps(request).encode() + b"\n")
        except BrokenPipeError:
            raise WorkerDied(self._how_it_ended()) from None
        reply = json.loads(self._read_line(seconds))
        return reply["correct"], reply["reason"]

    def _read_line(self, seconds: float) -> bytes:
        """Return the worker's next line. Waits at most ``seconds``."""
        deadline = time.monotonic() + seconds
        waiter = select.poll()
        waiter.register(self._replies, select.POLLIN)
        line = b""
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not waiter.poll(left * 1000):
                raise WorkerLate(f"no reply after {seconds:g} s")
            part = os.read(self._replies.fileno(), 65536)
            if not part:
                raise WorkerDied(self._how_it_ended())
            line += part
        return line

    def _how_it_ended(self) -> str:
        code = self.process.wait()
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def close(self) -> None:
        """Kill the process and close its pipes."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


class Pool:
    """At most ``size`` workers, started when they are first needed. If all are busy, threads wait."""

    def __init__(self, size: int) -> None:
        self._turns = threading.BoundedSemaphore(size)
        self._lock = threading.Lock()
        self._idle: list[Worker] = []
        self._all: set[Worker] = set()

    @contextlib.contextmanager
    def worker(self) -> Iterator[Worker]:
        """Provide a worker for a ``with`` block. If the block raises, the worker is closed and not used again."""
        with self._turns:
            # Reuse the worker that was used last, so that a single grading thread needs only one.
            with self._lock:
                worker = self._idle.pop() if self._idle else None
            if worker is None:
                worker = Worker()
                with self._lock:
                    self._all.add(worker)
            try:
                yield worker
            except BaseException:
                with self._lock:
                    self._all.discard(worker)
                worker.close()
                raise
            with self._lock:
                self._idle.append(worker)

    def processes(self) -> list[int]:
        """The process ids of the workers."""
        with self._lock:
            return [worker.process.pid for worker in self._all]

    def close(self) -> None:
        """End all workers. A thread that is using one gets an exception."""
        with self._lock:
            workers, self._all, self._idle = self._all, set(), []
        for worker in workers:
            worker.close()


def _new_pool() -> Pool:
    return Pool(min(4, os.cpu_count() or 1))


_pool = _new_pool()


def _forget_after_fork() -> None:
    """Give a forked child a pool of its own. It shares the parent's pipes, and using them would garble the parent's data."""
    global _pool
    _pool = _new_pool()


os.register_at_fork(after_in_child=_forget_after_fork)


def ask(prediction: str, answer: str, seconds: float) -> tuple[bool, str]:
    """Compare two answers in a worker of this process's pool. A time-out or a crash gives False and the reason."""
    ended = ""
    for _ in range(ATTEMPTS):
        try:
            with _pool.worker() as worker:
                return worker.ask(prediction, answer, seconds)
        except WorkerLate:
            return False, f"math-verify: timed out after {seconds:g} s"
        except WorkerDied as error:
            ended = str(error)
    return False, f"math-verify: the worker crashed ({ended})"


def worker_processes() -> list[int]:
    """Return the process ids of this process's workers."""
    return _pool.processes()


def close() -> None:
    """End this process's workers. The next comparison starts new ones. Called automatically at exit."""
    _pool.close()


atexit.register(close)
