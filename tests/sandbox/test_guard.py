"""When a runner or a sandbox has ended, what it left behind is killed, and nothing else."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest

from aster_sandbox import Sandbox

SCENE = """
import os, sys, time
from aster_sandbox.isolation.guard import kill_strays
from aster_sandbox.isolation.syscalls import PR_SET_CHILD_SUBREAPER, prctl

def forked(*steps):
    child = os.fork()
    if child == 0:
        for step in steps:
            step()
        time.sleep(60)
    return child

prctl(PR_SET_CHILD_SUBREAPER, 1)
newborn = forked()  # a runner that does not lead its process session yet
stray = forked(os.setsid)
kill_strays({newborn})
state = open(f"/proc/{newborn}/stat").read().rpartition(")")[2].split()[0]
print(state in "RS", os.path.exists(f"/proc/{stray}"))
os.kill(newborn, 9)
"""


def test_newly_forked_runner_is_not_killed_as_a_stray() -> None:
    done = subprocess.run([sys.executable, "-c", SCENE], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("True False\n", "")


def test_sandbox_whose_close_was_cancelled_leaves_nothing() -> None:
    async def main() -> None:
        ready = asyncio.Event()
        sandbox = Sandbox(preload=[])

        async def use() -> None:
            async with sandbox, await sandbox.open() as session:
                await session.run("1")
                ready.set()

        user = asyncio.create_task(use())
        await ready.wait()
        while sandbox._entered:
            await asyncio.sleep(0)
        user.cancel()  # while the sandbox closes
        with pytest.raises(asyncio.CancelledError):
            await user
        assert sandbox._plan is not None
        async with asyncio.timeout(20):
            while os.path.exists(sandbox._plan.root):
                await asyncio.sleep(0.01)
        assert sandbox._zygote is not None
        assert not sandbox._zygote.alive

    asyncio.run(main())
