"""Machines and users that may do less than most."""

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
    """A program that runs one cell, behind another program, with a limit that it sets itself before."""
    command = [*prefix, sys.executable, "-c", limit + ONE_CELL]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_a_user_who_may_not_choose_how_processes_are_scheduled() -> None:
    if shutil.which("chrt") is None or (os.geteuid() == 0 and shutil.which("setpriv") is None):
        pytest.skip("chrt and setpriv, of util-linux, are not installed")
    # From the idle class a process without CAP_SYS_NICE comes to no other.
    unable = ["setpriv", "--bounding-set=-sys_nice", "--inh-caps=-sys_nice"] if os.geteuid() == 0 else []
    done = one_cell("chrt", "-i", "0", *unable)
    assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr


@pytest.mark.parametrize(
    ("most", "code", "said"),
    [(120, 1, "failed: the sandbox needs 512 open files, and this process may have 120"), (600, 0, "enough for about 194 of")],
)
def test_few_open_files_are_told(most: int, code: int, said: str) -> None:
    done = one_cell(limit=f"import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, ({most}, {most}))\n")
    assert done.returncode == code
    assert said in done.stderr
