"""A long run of the sandbox in which every answer is known, and cells fail in all ways.

    python benchmarks/sandbox_soak.py [--json] [--cells 200000] [--sessions 500] [--at-once 64] [--failing 0.05] [--seed 1]

Each session has a model of itself here: variables, a file, random numbers. Every cell's answer is compared with it. Failing
cells first spoil the variables and the file, and then end their interpreter, or run too long, or fill the memory; after that
everything must be as before. Now and then a session is forked, and both go on. At the end nothing may be left: no process, no
descriptor, no file, and no memory. Ends with status 1 where something was wrong. It checks, it does not compare: there is no
peer, and its times are of this machine under this load.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import os
import platform
import random
import re
import sys
import tempfile
import time
from pathlib import Path

from _machine import processes_naming

from aster_sandbox import CellStatus, Sandbox, Session, Settings

CELL_SECONDS = 2.0
SPOIL = "n = -1\nlog = None\nopen('f', 'w').write('spoilt')\nimport os, time, ctypes, signal\n"
DEADLY = {
    "exit": "os._exit(3)",
    "segfault": "ctypes.string_at(0)",
    "killed": "os.kill(os.getpid(), 9)",
    "aborted": "os.abort()",
    "closed descriptors": "os.closerange(0, 4096)\ntime.sleep(9)",
    "forged reply": "[os.write(fd, b'\\0\\0\\0\\2{}') for fd in (500, 501)]\ntime.sleep(9)",
    "children": "for i in range(8):\n    if os.fork() == 0: (i % 2 and os.setpgrp(), time.sleep(600))\nos._exit(4)",
    "group killed": "os.killpg(0, 9)",
    "output, then exit": "os._exit(5)",
}
"""Ends of an interpreter. The session must be as it was before the cell."""
BEFORE = {"output, then exit": "print('x' * 300_000)\n"}
"""What comes before a cell's spoiling: a cell that a busy machine does not take the output of in time has spoilt nothing."""
STUBBORN = "sum(range(10**13))"
SWALLOWS = "import time\nn += 1\nwhile True:\n    try: time.sleep(60)\n    except BaseException: pass"
MEMORY = "hoard = []\nwhile True:\n    hoard.append(bytearray(1 << 24))"


KEPT = "of earlier cells are kept]"
NAMED = re.compile(r"of earlier cells are kept, except for what these cells changed: ([^\]]+)\]$")
NOTE = re.compile(
    r"\[(?:this session's cells had to be run again|the interpreter had to be replaced before this cell); the variables and "
    r"imports of earlier cells are kept, except for what these cells changed: ([^\]]+)\]\n"
)


class Wrong(Exception):
    """An answer that is not the known one."""


class Model:
    """What a session must answer."""

    def __init__(self, seed: int) -> None:
        self.n = 0
        self.log: list[int] = []
        self.file = ""
        self.random = random.Random(seed)
        self.number = 0
        """Of the last cell."""
        self.interrupted: set[str] = set()
        """Numbers of cells that were interrupted: what they did after their last whole statement, which is nothing, is named as
        lost when the session is replayed."""
        self.failed = "no failure"
        """The last failure's kind."""

    def copy(self) -> Model:
        """For a fork."""
        twin = Model(0)
        twin.n, twin.log, twin.file = self.n, [*self.log], self.file
        twin.number, twin.interrupted = self.number, {*self.interrupted}
        twin.random.setstate(self.random.getstate())
        return twin

    def fits(self, output: str, end: str) -> bool:
        """Whether an output ends so, beside what may be named as lost."""
        named = NAMED.search(output)
        if end != KEPT or named is None:
            return output.endswith(end)
        return output.endswith(named[0]) and self._may_name(named[1])

    def without_note(self, output: str) -> str:
        """An output without the note before it that names what may be named as lost."""
        named = NOTE.match(output)
        return output[named.end() :] if named is not None and self._may_name(named[1]) else output

    def _may_name(self, cells: str) -> bool:
        return {each.split()[0] for each in cells.split(", ")} <= self.interrupted

    def cell(self, draw: random.Random) -> tuple[str, CellStatus, str]:
        """A cell that ends by itself: its code, status and output (of an error, its last line)."""
        value = draw.randrange(1000)
        match draw.choice(["count", "log", "file", "random", "error", "function", "work", "print"]):
            case "count":
                self.n += value
                return f"n += {value}\nn", CellStatus.OK, str(self.n)
            case "log":
                self.log = [*self.log, value][-50:]
                return f"log = [*log, {value}][-50:]\nlen(log), sum(log)", CellStatus.OK, str((len(self.log), sum(self.log)))
            case "file":
                self.file = (self.file + f"{value} ")[-400:]
                code = f"text = (open('f').read() + '{value} ')[-400:]\n_ = open('f', 'w').write(text)\nopen('f').read()"
                return code, CellStatus.OK, repr(self.file)
            case "random":
                return "random.random()", CellStatus.OK, repr(self.random.random())
            case "error":
                self.n += value  # what ran before an error is kept
                return f"n += {value}\nn // 0", CellStatus.ERROR, "ZeroDivisionError: integer division or modulo by zero"
            case "function":
                return f"def f(x):\n    return x * {value} + n\nf(7)", CellStatus.OK, str(7 * value + self.n)
            case "work":
                return f"sum(i % 7 for i in range({value * 300}))", CellStatus.OK, str(sum(i % 7 for i in range(value * 300)))
        return f"print(n, {value})\nprint(len(log))", CellStatus.OK, f"{self.n} {value}\n{len(self.log)}"


class Soak:
    """The run and its counts."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.counts: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self.memory: list[float] = []

    async def run(self) -> None:
        """All sessions, some at once."""
        places = 2 * self.options.at_once  # each may have a fork
        settings = Settings(cell_seconds=CELL_SECONDS, memory_mb=256, sessions=places, preload=["numpy"])
        async with Sandbox(settings) as sandbox:
            turns = asyncio.Semaphore(self.options.at_once)

            async def one(number: int) -> None:
                async with turns:
                    await self.session(sandbox, number)
                    self.memory.append(resident_mb(sandbox))

            await asyncio.gather(*(one(number) for number in range(self.options.sessions)))

    async def session(self, sandbox: Sandbox, number: int) -> None:
        """One session's life."""
        draw = random.Random(f"{self.options.seed} {number}")
        cells = self.options.cells // self.options.sessions
        setup = "import random\nn, log = 0, []\nopen('f', 'w').close()"
        session = await sandbox.open(number, setup)
        model = Model(number)
        try:
            for _ in range(cells):
                await self.step(session, model, draw)
                if draw.random() < 0.002:
                    self.counts["forks"] += 1
                    async with await session.fork() as fork:
                        twin = model.copy()
                        for _ in range(3):
                            await self.step(fork, twin, draw)
        except Wrong as error:
            self.wrong.append(f"session {number}, after {model.failed}: {error}")
        finally:
            await session.close()

    async def step(self, session: Session, model: Model, draw: random.Random) -> None:
        """A failing cell, sometimes, or one that must find everything as it was."""
        self.counts["cells"] += 1
        if draw.random() < self.options.failing:
            await self.fail(session, model, draw)
            return
        code, status, output = model.cell(draw)
        model.number += 1
        call = await session.run(code)
        told = model.without_note(call.output)
        found = told if status is CellStatus.OK else told.splitlines()[-1]
        if (call.status, found) != (status, output):
            raise Wrong(f"{code!r} gave {call.status} {call.output!r} instead of {status} {output!r}")

    async def fail(self, session: Session, model: Model, draw: random.Random) -> None:
        """A cell that fails, and what must be said of it."""
        kind = draw.choice([*DEADLY, *DEADLY, "interrupted", "swallows", "stubborn", "memory", "killed from outside"])
        self.counts[f"failing: {kind}"] += 1
        model.failed = kind
        if kind == "killed from outside":
            if session.runner is not None:
                runner = session.runner
                runner.kill()
                await runner.gone
            return
        model.number += 1
        if kind == "memory":
            code, status, end = MEMORY, CellStatus.ERROR, "MemoryError"
        elif kind in ("interrupted", "swallows"):
            model.n += 1
            model.interrupted.add(str(model.number))
            code = SWALLOWS if kind == "swallows" else "n += 1\nimport time\ntime.sleep(60)"
            status, end = CellStatus.TIMEOUT, "all variables are kept]"
        elif kind == "stubborn":
            code, status, end = SPOIL + STUBBORN, CellStatus.TIMEOUT, KEPT
        else:
            code, status, end = BEFORE.get(kind, "") + SPOIL + DEADLY[kind], CellStatus.CRASHED, KEPT
        call = await session.run(code)
        if (
            kind == "memory" or kind in BEFORE
        ) and call.status == CellStatus.TIMEOUT:  # it did not come so far on a busy machine
            model.interrupted.add(str(model.number))
        elif call.status != status or not model.fits(call.output, end):
            raise Wrong(f"{kind} gave {call.status} {call.output[-300:]!r}")
        if kind == "memory":
            model.number += 1
            call = await session.run("hoard = None")
            if call.status != CellStatus.OK:
                raise Wrong(f"after a memory error: {call.status} {call.output!r}")


def resident_mb(sandbox: Sandbox) -> float:
    """Resident memory of this process and the zygote."""
    assert sandbox._zygote is not None
    about = Path(f"/proc/self/fdinfo/{sandbox._zygote.pidfd}").read_text()
    pids = ["self", about.partition("Pid:")[2].split()[0]]
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    """Run, check, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--sessions", type=int, default=500)
    parser.add_argument("--at-once", type=int, default=64)
    parser.add_argument("--failing", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    soak = Soak(options)
    descriptors = len(os.listdir("/proc/self/fd"))
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        asyncio.run(soak.run())
        left_files = len(os.listdir(folder))
        left_processes = processes_naming(folder)
    seconds = time.monotonic() - began
    tenth = max(1, len(soak.memory) // 10)
    result = {
        "cells": soak.counts["cells"],
        "sessions": options.sessions,
        "failing": {name.removeprefix("failing: "): n for name, n in sorted(soak.counts.items()) if name.startswith("failing")},
        "forks": soak.counts["forks"],
        "seconds": round(seconds, 1),
        "wrong": soak.wrong[:20],
        "wrong_sessions": len(soak.wrong),
        "left_processes": left_processes,
        "left_descriptors": len(os.listdir("/proc/self/fd")) - descriptors,
        "left_files": left_files,
        # From the first tenth of the sessions to the last.
        "memory_growth_mb": round(max(soak.memory[-tenth:]) - max(soak.memory[:tenth]), 1),
        "memory_mb": round(soak.memory[-1], 1),
        "machine": {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version(), "load": os.getloadavg()[0]},
    }
    if options.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:18s} {value}")
    bad = soak.wrong or result["left_processes"] or result["left_descriptors"] or result["left_files"]
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
