"""What ``smoke.py`` checks inside the environment that it has made: imports, the verifier, the sandbox."""

from __future__ import annotations

import asyncio
import importlib
import pkgutil
import sys

import aster
import aster_sandbox
from aster.extras import packages_for
from aster.grading import verify
from aster_sandbox import Sandbox

TRACEBACK = ['  File "<cell 4>", line 1, in <module>', "    1 / 0", "ZeroDivisionError: division by zero"]


def import_all() -> set[str]:
    """Import every module. Returns the packages that were missing: torch, and those of extras."""
    missing: set[str] = set()
    for package in (aster, aster_sandbox):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name.endswith("__main__"):
                continue
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError as error:
                if not packages_for(error.name):
                    raise
                missing.add(str(error.name))
    return missing


async def run_cells() -> list[str]:
    """The outputs of a session that fails, runs out of time, and goes on."""
    async with Sandbox(cell_seconds=2, preload=["sympy"]) as sandbox:
        session = await sandbox.open(seed=7)
        cells = ("x = 20", "2 * x + 1", "import sympy; sympy.factorint(x)", "1 / 0", "while True: pass", "x")
        return [(await session.run(cell)).output.rstrip() for cell in cells]


def main() -> None:
    """Print one line; an exception says what is wrong."""
    missing = import_all()
    outputs = asyncio.run(run_cells())
    if outputs[1:3] != ["41", "{2: 2, 5: 1}"] or outputs[3].splitlines()[-3:] != TRACEBACK or outputs[5] != "20":
        raise SystemExit(f"cells: {outputs}")
    verdicts = [verify(text, "1/2").correct for text in (r"\frac{1}{2}", r"\int_0^1 x\,dx", "2")]
    if verdicts != [True, True, False]:
        raise SystemExit(f"verdicts: {verdicts}")
    print(f"Python {sys.version.split()[0]}: ok, without {', '.join(sorted(missing))}")


if __name__ == "__main__":
    main()
