"""vLLM for real, on a CPU: from an environment of its own, which ``make test-engines`` sets up. Without one these tests are
skipped, and say so."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from aster.config import Model, Policy, Rollout
from aster.config.engine import BASE_MODEL
from aster.config.recipe import Recipe
from aster.engines.opening import open_engine
from aster.engines.vllm import VllmEngine
from tests.stages.conftest import coin_model, coin_problems, commands, tiny

__all__ = ["coin_model", "coin_problems", "commands", "tiny"]

VARIABLE = "ASTER_VLLM_PYTHON"
"""Names the Python of the environment with vLLM."""
START_SECONDS = 600


@pytest.fixture(scope="session")
def vllm_python() -> str:
    """The Python with vLLM."""
    found = os.environ.get(VARIABLE, "")
    if not found:
        pytest.skip(f"NOT RUN: vLLM itself; make test-engines runs it ({VARIABLE} names a Python that has vLLM)")
    return found


@pytest.fixture(scope="session")
def lab_server(vllm_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a vLLM server, as a user would start it, on the lab's base model."""
    options = ["--max-model-len", "1024", "--served-model-name", "lab"]
    with vllm_server(vllm_python, BASE_MODEL, options, tmp_path_factory.mktemp("server") / "log") as address:
        yield address


@contextmanager
def vllm_server(python: str, model: Path, options: list[str], log: Path) -> Iterator[str]:
    """A vLLM server on a free port, from when it answers to the end of the block; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager", *options]
    with open(log, "wb") as output:
        process = subprocess.Popen(command, env=environment(), stdout=output, stderr=output, process_group=0)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers(f"{address}/health"):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def environment() -> dict[str, str]:
    """One thread, one GiB of cache, and nothing asked of the network."""
    changes = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **changes, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}


def answers(url: str) -> bool:
    """Whether a server answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


class Engine:
    """A policy with vLLM as its sampler, and the event loop that it lives in."""

    def __init__(self, recipe: Recipe, capacity: int) -> None:
        self.recipe = recipe
        self.loop = asyncio.new_event_loop()
        self._stack = AsyncExitStack()
        policy = self.run(lambda: self._stack.enter_async_context(open_engine(recipe.engine, capacity=capacity)))
        assert isinstance(policy, VllmEngine)
        self.policy: VllmEngine = policy

    def run(self, work: Callable[[], Any]) -> Any:
        """Run a coroutine to its end."""
        return self.loop.run_until_complete(asyncio.wait_for(work(), START_SECONDS))

    def close(self) -> None:
        """End vLLM."""
        self.run(self._stack.aclose)
        self.loop.close()


@pytest.fixture(scope="session")
def engine(vllm_python: str, coin_model: Path) -> Iterator[Engine]:
    """One on the model that tosses coins, with or without the tool."""
    recipe = Recipe(
        model=Model(path=str(coin_model), device="cpu", threads=1),
        policy=Policy(sampler="vllm", vllm_python=vllm_python),
        rollout=Rollout(slots=16, cache_tokens=1 << 14),
    )
    found = Engine(recipe, 512)
    yield found
    found.close()
