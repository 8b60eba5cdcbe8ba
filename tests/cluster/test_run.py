"""A whole run through a real server, which dies in its middle."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from aster.run import RunFolder
from tests.cluster.server import Server
from tests.stages.runs import steps

MINUTES = 60.0


def test_a_run_through_the_server_learns_and_outlives_the_servers_death(
    server: Server, recipe_file: Path, tmp_path: Path
) -> None:
    """SFT, GRPO and evaluation; SIGKILL to the server after two RL steps."""
    folder, errors = tmp_path / "run", tmp_path / "stderr"
    command = [sys.executable, "-m", "aster", "run", str(recipe_file), "--run", str(folder)]
    with open(errors, "wb") as stream:
        run = subprocess.Popen(command, stderr=stream, stdout=stream, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        wait_for(lambda: steps(folder, "rl") >= 2, run, errors)
        server.kill()
        time.sleep(2)
        server.start()
        assert run.wait(30 * MINUTES) == 0, errors.read_text()
    finally:
        if run.poll() is None:
            run.kill()

    said = errors.read_text()
    print(said)
    assert "has lost the policy" in said
    resumed = [line for line in said.splitlines() if line.startswith("rl: resuming after step ")]
    assert len(resumed) == 1
    assert int(resumed[0].rsplit(" ", 1)[1]) >= 1

    done = RunFolder.load(folder)
    sft, rl = done.metrics("sft"), done.metrics("rl")
    assert [line["step"] for line in sft] == list(range(1, len(sft) + 1))
    assert [line["step"] for line in rl] == list(range(1, 6))
    assert sft[-1]["loss"] < 0.6 * sft[0]["loss"]
    assert (rl[-1]["reward"] + rl[-2]["reward"]) / 2 > rl[0]["reward"]
    # Nothing was written off: no attempt failed with the server.
    assert all("engine_error" not in line["stop_reasons"] for line in rl)
    accuracy = {name: done.summary(f"evaluate/{name}") for name in ("base", "sft", "rl")}
    assert all(accuracy.values())


def wait_for(what: object, run: subprocess.Popen[bytes], errors: Path) -> None:
    """Until ``what()`` holds; the run must go on meanwhile."""
    assert callable(what)
    ends = time.monotonic() + 25 * MINUTES
    while not what():
        assert run.poll() is None, errors.read_text()
        assert time.monotonic() < ends, errors.read_text()
        time.sleep(0.05)
