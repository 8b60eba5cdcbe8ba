"""SkyRL's Tinker API server on a CPU, as the tests start, kill and start it again.

It lives in a Python environment of its own (``make test-cluster`` makes it): it needs Python 3.12 and other versions of
transformers than ASTER's.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

ENVIRONMENT = "ASTER_TINKER_SERVER"
"""Names the folder of the server's Python environment."""
# The server starts its engine through ``uv run --extra tinker --extra jax``: the folder it is started in must know these.
PROJECT = """\
[project]
name = "server"
version = "0"
requires-python = ">=3.12"

[project.optional-dependencies]
tinker = []
jax = []
"""
# One sequence a micro-batch, and always 32 in a decoding batch: JAX compiles every new shape, which takes longer than all else.
BACKEND = {"train_micro_batch_size": 1, "sample_max_num_sequences": 32, "max_lora_adapters": 4}


class Server:
    """One server on a port of its own. What it saves, and what it remembers, outlives :meth:`kill`."""

    def __init__(self, folder: Path, base_model: Path) -> None:
        self.folder = folder
        self.base_model = base_model
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        (folder / "pyproject.toml").write_text(PROJECT)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; returns as soon as it answers. Its engine goes on loading."""
        environment = Path(os.environ[ENVIRONMENT])
        settings = {
            **os.environ,
            "PATH": f"{environment / 'bin'}:{os.environ['PATH']}",
            "UV_PROJECT_ENVIRONMENT": str(environment),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(environment / "jax-cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        }
        arguments = {
            "base-model": str(self.base_model),
            "backend": "jax",
            "host": "127.0.0.1",
            "port": str(self.port),
            "checkpoints-base": str(self.folder / "states"),
            "database-url": f"sqlite:///{self.folder / 'server.db'}",
            "backend-config": json.dumps(BACKEND),
        }
        command = ["uv", "run", "--no-sync", "-m", "skyrl.tinker.api"]
        for name, value in arguments.items():
            command += [f"--{name}", value]
        with open(self.folder / "server.log", "ab") as stream:
            self._process = subprocess.Popen(
                command, cwd=self.folder, env=settings, stdout=stream, stderr=stream, start_new_session=True
            )
        ends = time.monotonic() + 180
        while not self._answers():
            log = (self.folder / "server.log").read_text()[-2000:]
            assert self._process.poll() is None, log
            assert time.monotonic() < ends, log
            time.sleep(0.5)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/healthz", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        """SIGKILL to the server and its engine: nothing is saved on the way."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
