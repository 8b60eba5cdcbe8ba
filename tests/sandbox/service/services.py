"""Start services in their own processes, on free ports."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2

from aster_sandbox.isolation import Level
from aster_sandbox.supervisor import NOT_ISOLATED
from tests.sandbox.conftest import ISOLATION, level_taken

ALICE, BOB = "alice-0123456789abcdef", "bob-0123456789abcdef"
READY_SECONDS = 120.0


class Listening:
    """A command that serves, in its own process."""

    def __init__(self, command: list[str], **environment: str) -> None:
        more = {**os.environ, **environment}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=more)
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], READY_SECONDS)
        line = self.process.stdout.readline() if ready else ""
        if "listening on " not in line:
            self.process.kill()
            raise AssertionError(f"the service did not start: {self.process.communicate()[1]}")
        self.url = line.split()[-1]

    def client(self, token: str | None = None) -> httpx2.Client:
        """A plain HTTP client for the service."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False)

    def stop(self) -> tuple[int, str]:
        """Send SIGTERM and wait. Returns the exit status and stderr."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


class Service(Listening):
    """A process of ``aster sandbox serve``."""

    def __init__(
        self, *arguments: str, tokens: str = "", preload: str = "[]", port: int = 0, isolation: str = ISOLATION
    ) -> None:
        """``preload`` is empty by default, so that it starts quickly."""
        command = [sys.executable, "-m", "aster", "sandbox", "serve", "--port", str(port)]
        settings = [f"sandbox.preload={preload}", f"sandbox.isolation={isolation}"]
        super().__init__([*command, *settings, *arguments], ASTER_SANDBOX_TOKENS=tokens)

    @property
    def port(self) -> int:
        """The port on which it listens."""
        return int(self.url.rpartition(":")[2])

    def peak_mb(self) -> float:
        """Its peak memory, in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    def kill(self) -> None:
        """Send SIGKILL and wait."""
        self.process.kill()
        self.process.wait()


def as_alice(service: Service) -> Iterator[httpx2.Client]:
    """For a fixture: an HTTP client with Alice's token, whose sessions are closed afterwards."""
    with service.client(ALICE) as client:
        yield client
        for session in client.get("/v1/sessions").json()["sessions"]:
            client.delete(f"/v1/sessions/{session['id']}")


def level_line(isolation: str = ISOLATION) -> str:
    """What a program prints on stderr when its sandbox starts."""
    level = level_taken(isolation)
    return f"{NOT_ISOLATED}\n" if level is Level.RLIMITS else f"sandbox: isolation level {level.value}\n"


def run(http: httpx2.Client, session: str, code: str, request_id: str | None = None) -> dict[str, object]:
    """Run a cell, which must be served, and return the reply."""
    response = http.post(f"/v1/sessions/{session}/run", json={"code": code, "request_id": request_id})
    assert response.status_code == 200, response.text
    reply = response.json()
    assert isinstance(reply, dict)
    return reply


def counter(http: httpx2.Client, name: str) -> float:
    """The value of a metric; 0 if it does not exist yet."""
    for line in http.get("/metrics").text.splitlines():
        if line.rpartition(" ")[0] == name:
            return float(line.rpartition(" ")[2])
    return 0.0


def eventually(condition: object, seconds: float = 20.0) -> bool:
    """Whether a condition becomes true within a generous time."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return bool(condition())
