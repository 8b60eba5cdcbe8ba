"""Random sessions give the outputs of plain CPython, also with cells in between that fail in various ways.

``ASTER_SANDBOX_SESSIONS`` sets the number of sessions; the default is small.
"""

from __future__ import annotations

import asyncio
import os
import random

import pytest

from aster_sandbox import CellResult, CellStatus, Sandbox, Session, Settings
from tests.sandbox.test_properties import reference

SESSIONS = int(os.environ.get("ASTER_SANDBOX_SESSIONS", "36"))
AT_ONCE = 12
CELLS = 8
FIRST = """
import random
random.seed(7)
_ = open('file', 'w').write('')
a, b, c = 1, 'x', [1]
def f(x):
    return x
def short(x):
    text = repr(x)
    return x if len(text) < 60 else text[:60]
"""
SPOIL = "a = b = c = f = 'spoilt'\nrandom.seed(9)\nimport os, time, ctypes\nopen('file', 'w').write('spoilt')\n"
DEADLY = {
    "exit": "os._exit(0)",
    "segfault": "ctypes.string_at(0)",
    "killed": "os.kill(os.getpid(), 9)",
    "closed descriptors": "os.closerange(0, 4096)\ntime.sleep(9)",
    "forged reply": "[os.write(fd, b'\\0\\0\\0\\2{}') for fd in range(500, 502)]\ntime.sleep(9)",
    "children": "for i in range(6):\n    if os.fork() == 0: (i % 2 and os.setpgrp(), time.sleep(600))\nos._exit(1)",
    "stubborn": "sum(range(10**13))",
}
HARMLESS = {"interrupted": "__import__('time').sleep(60)", "memory": "bytearray(1 << 40)", "syntax": "a = = 1"}
"""Failures without effects, so that there is nothing to roll back."""
SLOW = ["stubborn", "interrupted"]
QUICK = [name for name in (*DEADLY, *HARMLESS) if name not in SLOW]


class Writer:
    """Draws random cells, which use three variables, a function, a file and random numbers."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)

    def cells(self) -> list[str]:
        """The cells of one session."""
        return [FIRST, *("\n".join(self.statement() for _ in range(self.draw.randint(1, 4))) for _ in range(CELLS))]

    def statement(self) -> str:
        """One statement."""
        name, value = self.draw.choice("abc"), self.expression(2)
        return self.draw.choice(
            [
                value,
                f"{name} = short({value})",
                f"print({value}, end=';')",
                f"for {name} in range({self.draw.randint(0, 4)}):\n    print({value})",
                f"def f(x):\n    return (x, {value.replace('f(', 'str(')})",
                f"try:\n    print({value})\nexcept Exception as e:\n    print(type(e).__name__)",
                f"with open('file', 'a') as file:\n    _ = file.write(str({value})[:20])",
                "print(open('file').read()[-60:])",
                f"class C:\n    value = {value}\n{name} = short(C.value)",
                f"{name} = [x for x in range({self.draw.randint(0, 5)})]",
                "print(random.random(), random.randint(0, 99))",
                f"print(sum(range({self.draw.randint(0, 3) * 1_000_000})))",
            ]
        )

    def expression(self, depth: int) -> str:
        """One expression; it may raise."""
        draw = self.draw
        if depth == 0 or draw.random() < 0.3:
            return draw.choice(["a", "b", "c", str(draw.randint(-9, 9)), "'s'", "[1, 2]", "None", "1.5", "len(str(a))"])
        one, other = self.expression(depth - 1), self.expression(depth - 1)
        operator = draw.choice(["+", "-", "//", "==", "<", "and", "or"])
        times = f"({one} * {draw.randint(0, 3)})"
        return draw.choice([times, f"({one} {operator} {other})", f"[{one}, {other}]", f"str({one})[:30]", f"f({one})"])


def expected(cells: list[str], folder: str) -> list[tuple[str, str]]:
    """The statuses and outputs of cells under plain ``exec`` in this process."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    state, here = random.getstate(), os.getcwd()
    os.chdir(folder)
    try:
        return [reference(code, namespace) for code in cells]
    finally:
        os.chdir(here)
        random.setstate(state)


def found(call: CellResult) -> tuple[str, str]:
    """The status and output of a result, in the form of ``expected``."""
    if call.status is not CellStatus.ERROR:
        return str(call.status), call.output
    before, _, traceback = call.output.partition("Traceback (most recent call last):\n")
    return "error", f"{before}|{traceback.splitlines()[-1]}"


async def fail(session: Session, draw: random.Random, interrupted: list[str]) -> bool:
    """Run a failing cell in a session in which the ``interrupted`` cells (numbers) were interrupted. Returns whether this cell
    was interrupted too."""
    kind = draw.choice([*QUICK, *QUICK, *QUICK, *SLOW])
    call = await session.run(SPOIL + DEADLY[kind] if kind in DEADLY else HARMLESS[kind])
    assert call.status is not CellStatus.OK, kind
    if kind in DEADLY:
        *_, state = call.output.split("the variables and imports of earlier cells are kept")
        # Recovery may report interrupted cells as missing, although these had no effects.
        named = state.removeprefix(", except for what these cells changed: ").removesuffix("]")
        assert set(named.split(", ")) <= {"", *interrupted}, call.output
    return kind == "interrupted"


@pytest.mark.parametrize("failing", [False, True], ids=["plain", "with failing cells"])
def test_random_sessions_match_cpython(failing: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    async def one(sandbox: Sandbox, seed: int) -> None:
        cells = Writer(seed).cells()
        answers = expected(cells, str(tmp_path_factory.mktemp(f"session{seed}")))
        draw = random.Random(f"failures {seed}")
        number = 0
        interrupted: list[str] = []
        async with await sandbox.open(seed) as session:
            for code, answer in zip(cells, answers, strict=True):
                number += 1
                assert found(await session.run(code)) == answer, (seed, code)
                if failing and draw.random() < 0.35:
                    number += 1
                    if await fail(session, draw, interrupted):
                        interrupted.append(str(number))

    async def main() -> None:
        settings = Settings(cell_seconds=3, memory_mb=512, output_characters=10_000, preload=[], sessions=AT_ONCE)
        async with Sandbox(settings) as sandbox:
            await asyncio.gather(*(one(sandbox, seed) for seed in range(SESSIONS)))

    asyncio.run(main())
