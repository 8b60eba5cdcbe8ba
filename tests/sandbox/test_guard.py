"""Who is killed when a runner has ended: what it left behind, and nobody else."""

from __future__ import annotations

import subprocess
import sys

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
newborn = forked()  # a runner that does not lead its session yet
stray = forked(os.setsid)
kill_strays({newborn})
state = open(f"/proc/{newborn}/stat").read().rpartition(")")[2].split()[0]
print(state in "RS", os.path.exists(f"/proc/{stray}"))
os.kill(newborn, 9)
"""


def test_a_runner_that_was_forked_a_moment_ago_is_no_stray() -> None:
    done = subprocess.run([sys.executable, "-c", SCENE], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("True False\n", "")
