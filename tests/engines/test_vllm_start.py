"""What starting vLLM refuses, in one line, without vLLM. tests/vllm runs the real one."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aster.config import EngineConfig, Model, Policy, Rollout
from aster.engines.local.engine import LocalEngine
from aster.engines.opening import open_engine
from tests.processes import running, wait_until
from tests.refusals import refused

FAKE = """#!{python}
# A fake Python with a vLLM that {what}.
import os, sys, time
if sys.argv[1] == "-c":
    sys.exit(0)
{body}
"""


def recipe_for(folder: Path, **settings: Any) -> EngineConfig:
    return EngineConfig(
        model=Model(path=str(folder), device="cpu", threads=1),
        policy=Policy(sampler="vllm", **settings),
        rollout=Rollout(slots=2, cache_tokens=4096),
    )


def not_opened(recipe: EngineConfig, field: str, *named: str, capacity: int = 256) -> str:
    """The message of the UserError with which opening ends. It must name the field, and hold each text of ``named``."""

    async def main() -> None:
        async with open_engine(recipe, capacity=capacity):
            raise AssertionError("it was opened")

    with refused(field, *named) as caught:
        asyncio.run(main())
    return str(caught.value)


def fake_python(path: Path, what: str, body: str) -> str:
    """A script that stands in for the Python of an environment with vLLM."""
    path.write_text(FAKE.format(python=sys.executable, what=what, body=body))
    path.chmod(0o755)
    return str(path)


def test_a_python_without_vllm(lab_folder: Path, tmp_path: Path) -> None:
    empty = tmp_path / "python"
    empty.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n')
    empty.chmod(0o755)
    not_opened(recipe_for(lab_folder, vllm_python=str(empty)), "policy.vllm_python", str(empty), "vllm")
    missing = str(tmp_path / "none")
    not_opened(recipe_for(lab_folder, vllm_python=missing), "policy.vllm_python", missing, os.strerror(errno.ENOENT))


def test_a_context_beyond_the_model_s_positions(lab_folder: Path, tmp_path: Path) -> None:
    python = fake_python(tmp_path / "python", "is never started", "")
    not_opened(recipe_for(lab_folder, vllm_python=python), "limits.context_tokens", "4096", "2048", capacity=4096)


def test_a_server_that_does_not_start_is_told_with_its_error_and_leaves_nothing_but_its_log(
    lab_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("aster.engines.handover.SHARED_MEMORY", tmp_path / "none")
    body = "print('ValueError: No available memory for the cache blocks.'); print('bye'); sys.exit(3)"
    recipe = recipe_for(lab_folder, vllm_python=fake_python(tmp_path / "python", "fails", body))
    error = "ValueError: No available memory for the cache blocks."
    message = not_opened(recipe, "policy.sampler", "exit code 3", error)
    (log,) = tmp_path.glob("aster-vllm-*")
    assert message.endswith(str(log))


def test_what_a_server_started_ends_with_it(lab_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it does not answer, does not heed SIGTERM, and has a child."""
    monkeypatch.setattr("aster.engines.vllm.START_SECONDS", 2.0)
    monkeypatch.setattr("aster.engines.vllm.TERM_SECONDS", 0.5)
    body = f"""
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.fork()
with open({str(tmp_path / "pids")!r}, "a") as file:
    print(os.getpid(), file=file)
time.sleep(600)
"""
    not_opened(recipe_for(lab_folder, vllm_python=fake_python(tmp_path / "python", "hangs", body)), "policy.sampler", " 2 s;")
    pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    wait_until(lambda: not any(running(pid) for pid in pids), 60)


def test_a_server_ends_and_its_weights_are_deleted_when_aster_is_killed(lab_folder: Path, tmp_path: Path) -> None:
    body = f"""
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open({str(tmp_path / "pids")!r}, "a") as file:
    print(os.getpid(), sys.argv[sys.argv.index("--model") + 1], file=file)
time.sleep(600)
"""
    python = fake_python(tmp_path / "python", "hangs", body)
    script = f"""
import asyncio
from aster.config import Model, Policy
from aster.config import EngineConfig
from aster.engines import vllm
from aster.engines.opening import open_engine

vllm.TERM_SECONDS = 0.5

async def main():
    recipe = EngineConfig(model=Model(path={str(lab_folder)!r}), policy=Policy(sampler="vllm", vllm_python={python!r}))
    async with open_engine(recipe, capacity=256):
        pass

asyncio.run(main())
"""
    aster = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "TMPDIR": str(tmp_path)})
    try:
        wait_until(lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text().endswith("\n"), 180)
    finally:
        aster.kill()
        aster.wait()
    pid, weights = (tmp_path / "pids").read_text().split()
    wait_until(lambda: not running(int(pid)), 60)
    assert not Path(weights).parent.exists()


def test_without_sampling_nothing_is_started(lab_folder: Path) -> None:
    async def main() -> None:
        async with open_engine(recipe_for(lab_folder, vllm_python=os.devnull)) as policy:
            assert isinstance(policy, LocalEngine)

    asyncio.run(main())
