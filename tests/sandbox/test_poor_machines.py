"""Machines and users with fewer rights than usual."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from tests.sandbox.conftest import ISOLATION

ONE_CELL = f"""
import asyncio, sys
from aster_sandbox import Sandbox, SandboxFailure
async def main():
    async with Sandbox(preload=[], isolation={ISOLATION!r}, sessions=512) as sandbox, await sandbox.open() as session:
        print((await session.run("6 * 7")).output)
try:
    asyncio.run(main())
except SandboxFailure as error:
    sys.exit(f"failed: {{error}}")
"""


def one_cell(*prefix: str, limit: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program that runs one cell, started by the ``prefix`` program. ``limit``: code that it runs first."""
    command = [*prefix, sys.executable, "-c", limit + ONE_CELL]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_user_who_may_not_change_scheduling() -> None:
    if shutil.which("chrt") is None or (os.geteuid() == 0 and shutil.which("setpriv") is None):
        pytest.skip("chrt and setpriv (util-linux) are not installed")
    # A process without CAP_SYS_NICE cannot leave the idle class.
    unable = ["setpriv", "--bounding-set=-sys_nice", "--inh-caps=-sys_nice"] if os.geteuid() == 0 else []
    done = one_cell("chrt", "-i", "0", *unable)
    assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr


@pytest.mark.parametrize(
    ("most", "code", "words"),
    [(120, 1, ("failed: ", "512", "120", "ulimit")), (600, 0, ("600", "194", "sandbox.sessions", "ulimit"))],
)
def test_low_limit_of_open_files_is_reported(most: int, code: int, words: tuple[str, ...]) -> None:
    done = one_cell(limit=f"import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, ({most}, {most}))\n")
    assert done.returncode == code
    assert all(word in done.stderr for word in words), done.stderr
