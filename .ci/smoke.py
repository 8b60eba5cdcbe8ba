"""ASTER on other Pythons, without torch: ``python .ci/smoke.py [--constraints FILE] INTERPRETER...``.

Installs the package into an environment for each, which is deleted again. Torch is left out, because an index may have only
its build of gigabytes for that Python. Then, from an empty folder: every module is imported that does not need torch or an
extra, commands are run, an answer is graded, and a session runs cells. ``make test-pythons`` runs the whole suite.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "--version": 0,
    "--help": 0,
    "recipe lab --yaml rl.prompts=3": 0,
    "recipe my.yaml": 0,
    "run nothing-of-that-name": 2,
    "doctor": 0,
    "lab problems --count 1": 0,
    "benchmarks": 0,
}
"""Each with its exit status. What ``--yaml`` prints becomes my.yaml."""


class Wrong(Exception):
    """Something does not work on an interpreter."""


def main() -> None:
    """Check the interpreters, two at a time. Status 1 where something is wrong, after the others are through."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--constraints", type=Path)
    parser.add_argument("interpreters", nargs="*")
    arguments = parser.parse_args()
    if not arguments.interpreters:
        print("no other supported Python is here")
    constraints = () if arguments.constraints is None else ("-c", str(arguments.constraints.absolute()))
    with ThreadPoolExecutor(2) as threads:
        complaints = list(threads.map(lambda each: complaint(each, constraints), arguments.interpreters))
    sys.exit("\n".join(filter(None, complaints)) or 0)


def complaint(interpreter: str, constraints: tuple[str, ...]) -> str:
    """What is wrong on one interpreter; empty where nothing is. Prints a line where all is well."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            check(interpreter, constraints, Path(folder))
    except Wrong as wrong:
        return f"{interpreter}: {wrong}"
    return ""


def check(interpreter: str, constraints: tuple[str, ...], folder: Path) -> None:
    """Install and run, in ``folder``. Raises Wrong."""
    python = folder / "environment" / "bin" / "python"
    run(interpreter, "-m", "venv", "--without-pip", str(python.parents[1]))
    install = (sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-compile")
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    run(*install, *constraints, *(line for line in needed if re.split(r"[^\w-]", line)[0] != "torch"))
    run(*install, "--no-deps", str(ROOT))
    empty = folder / "empty"
    empty.mkdir()
    for command, status in COMMANDS.items():
        printed = run(str(python), "-m", "aster", *command.split(), folder=empty, status=status)
        if "--yaml" in command:
            (empty / "my.yaml").write_text(printed)
    print(run(str(python), str(ROOT / ".ci" / "smoke_checks.py"), folder=empty), end="", flush=True)


def run(*command: str, folder: Path | None = None, status: int = 0) -> str:
    """What a command prints to stdout. Raises Wrong where it ends with another status, or with a traceback."""
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if ended.returncode != status or "Traceback (most recent call last)" in ended.stderr:
        raise Wrong(f"{' '.join(command)}: status {ended.returncode}\n{ended.stdout}{ended.stderr}")
    return ended.stdout


if __name__ == "__main__":
    main()
