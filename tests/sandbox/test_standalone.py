"""The sandbox alone, in an environment without torch, transformers and ``aster``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox.conftest import ISOLATION
from tests.sandbox.service.services import Listening

MISSING = ("torch", "transformers", "aster", "numpy", "scipy", "sympy", "networkx", "mpmath", "rich", "jinja2", "matplotlib")
PROGRAM = """\
import asyncio
from aster_sandbox import Sandbox

async def main():
    async with Sandbox(preload=[], isolation={isolation!r}) as sandbox:
        async with await sandbox.open(seed=7) as session:
            await session.run("x = 41")
            print((await session.run("x + 1")).output)

asyncio.run(main())
"""
REMOTE = """\
import asyncio, sys
from aster_sandbox import SandboxClient

async def main():
    async with SandboxClient(sys.argv[1:]) as sandbox:
        async with await sandbox.open(environment={"ANSWER": "42"}) as session:
            await session.upload("in.txt", b"from here")
            print((await session.run("import os; os.environ['ANSWER'], open('in.txt').read()")).output)

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of a virtual environment with a copy of ``aster_sandbox`` and this environment's packages except
    MISSING."""
    folder = tmp_path_factory.mktemp("alone") / "env"
    venv.create(folder, symlinks=True)
    there = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(folder)}))
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        name = path.name.lower()
        if not name.startswith((*MISSING, "_aster", "__editable__", "distutils")) and path.suffix != ".pth":
            (there / path.name).symlink_to(path)
    shutil.copytree(Path(__file__).parents[2] / "src" / "aster_sandbox", there / "aster_sandbox")
    return str(folder / "bin" / "python")


def run(python: str, *arguments: str, given: str = "") -> str:
    """Run a command that must succeed, and return what it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [python, *arguments], input=given, capture_output=True, text=True, check=False, env=environment, cwd="/", timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_environment_lacks_the_other_packages(python: str) -> None:
    code = f"from importlib.util import find_spec\nprint(list(filter(find_spec, {MISSING})), find_spec('aster_sandbox').origin)"
    missing, _, place = run(python, "-c", code).strip().partition(" ")
    assert missing == "[]"
    assert Path(place).is_relative_to(Path(python).parents[1])


def test_ten_line_program(python: str) -> None:
    program = PROGRAM.format(isolation=ISOLATION)
    assert len(program.splitlines()) == 10
    assert run(python, "-c", program) == "42\n"


def test_piped_prompt(python: str) -> None:
    command = ["-m", "aster_sandbox", "run", "preload=[]", f"isolation={ISOLATION}"]
    assert run(python, *command, given="x = 41\nx + 1\n") == "42\n"


@pytest.fixture
def served(python: str) -> Iterator[str]:
    """The address of a service that runs in that environment."""
    service = Listening([python, "-m", "aster_sandbox", "serve", "--port", "0", "preload=[]", f"isolation={ISOLATION}"])
    yield service.url
    assert service.stop()[0] == 0


def test_service_and_client(python: str, served: str) -> None:
    assert run(python, "-c", REMOTE, served) == "('42', 'from here')\n"
    # A plain HTTP client works too.
    assert '"status":"ok"' in run(
        sys.executable, "-c", f"import httpx2; print(httpx2.get('{served}/health', trust_env=False).text)"
    )
