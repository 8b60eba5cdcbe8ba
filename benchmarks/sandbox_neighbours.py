"""What a hostile session costs the one beside it, and how long anything outlives a killed supervisor.

    python benchmarks/sandbox_neighbours.py [--json] [--seconds 3] [--isolation auto]

A victim runs cells of 5 ms of processor time, one after the other: alone, and beside one attacker, in turns. The peer is the
victim alone. ``slower`` is how many times longer the median cell takes beside that attacker. The attackers have the sandbox's
default limits.

``outlived_ms``: a supervisor with 64 sessions that compute, sleep, print and have child processes is killed by SIGKILL; so
long it takes until none of its processes is left.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from _machine import facts, print_json, processes_naming

from aster_sandbox import Sandbox, Session, Settings

CELL = "end = time.process_time() + 0.005\nwhile time.process_time() < end:\n    pass"
FORKS = "import os\nwhile True:\n    try: {}\n    except OSError: pass"
THREADS = """
import threading
def spin():
    while True: pass
for _ in range(32):
    threading.Thread(target=spin, daemon=True).start()
spin()
"""
FILES = """
while True:
    try:
        with open('f', 'wb') as file:
            while True: file.write(bytes(1 << 20))
    except OSError: pass
"""
MEMORY = """
hoard = []
while True:
    try: hoard.append(bytearray(1 << 20))
    except MemoryError: hoard.clear()
"""
ATTACKERS = {
    "loop": "while True: pass",
    "threads": THREADS,
    "fork bomb": FORKS.format("os.fork()"),
    "fork bomb, each a session": FORKS.format("os.fork() or os.setsid()"),
    "output": "while True: print('x' * 1000)",
    "memory": MEMORY,
    "files": FILES,
    "crashes": "import os; os._exit(1)",
}
"""What runs beside the victim, again and again."""
SESSIONS = 64
BUSY = r"""
import asyncio, sys, tempfile
from aster_sandbox import Settings
from aster_sandbox import Sandbox
tempfile.tempdir = sys.argv[1]
WORK = [
    "while True: pass",
    "import time; time.sleep(600)",
    "while True: print('x' * 1000)",
    "import os, time\nfor n in range(4):\n    if os.fork() == 0: (n % 2 and os.setpgrp(), time.sleep(600))\nwhile True: pass",
]
async def main():
    settings = Settings(cell_seconds=600, sessions=int(sys.argv[2]), isolation=sys.argv[3])
    async with Sandbox(settings) as sandbox:
        sessions = await asyncio.gather(*(sandbox.open(number) for number in range(settings.sessions)))
        cells = [asyncio.create_task(session.run(WORK[number % len(WORK)])) for number, session in enumerate(sessions)]
        await asyncio.sleep(2)
        print("ready", flush=True)
        await asyncio.gather(*cells)
asyncio.run(main())
"""


async def cells_for(session: Session, seconds: float) -> list[float]:
    """How long each of the victim's cells took, in seconds."""
    times = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.perf_counter()
        await session.run(CELL)  # beside some it does not come to its end in time: that counts as the time it had
        times.append(time.perf_counter() - began)
    return times


async def again_and_again(session: Session, code: str) -> None:
    """Attack until cancelled."""
    while True:
        await session.run(code)


async def measure_attackers(isolation: str, seconds: float) -> dict[str, float]:
    """How many times longer the victim's median cell takes beside each attacker."""
    slower = {}
    async with Sandbox(Settings.model_validate({"cell_seconds": 1.0, "isolation": isolation})) as sandbox:
        victim = await sandbox.open(1, "import time")
        for name, code in ATTACKERS.items():
            alone = await cells_for(victim, seconds / 2)
            async with await sandbox.open(2) as attacker:
                attack = asyncio.create_task(again_and_again(attacker, code))
                await asyncio.sleep(0.3)
                beside = await cells_for(victim, seconds)
                attack.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await attack
            alone += await cells_for(victim, seconds / 2)
            slower[name] = round(statistics.median(beside) / statistics.median(alone), 2)
    return slower


def measure_orphans(isolation: str) -> tuple[int, float]:
    """How many processes a busy supervisor had, and milliseconds from its end to theirs."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", BUSY, folder, str(SESSIONS), isolation]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as supervisor:
            assert supervisor.stdout is not None
            if supervisor.stdout.readline() != b"ready\n":
                raise SystemExit("the supervisor did not come up")
            count = processes_naming(folder)
            os.kill(supervisor.pid, signal.SIGKILL)
            began = time.perf_counter()
            while processes_naming(folder):
                if time.perf_counter() - began > 60:
                    raise SystemExit("processes of a killed supervisor are still alive after 60 s")
            return count, 1e3 * (time.perf_counter() - began)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--isolation", default="auto")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    about = facts("aster-tir")
    slower = asyncio.run(measure_attackers(options.isolation, options.seconds))
    processes, outlived = measure_orphans(options.isolation)
    for name, times in slower.items():
        print(f"{name:28s} {times:6.2f} times slower")
    print(f"{'supervisor killed':28s} {outlived:6.0f} ms until {processes} processes were gone")
    if options.json:
        print_json({"slower": slower, "outlived_ms": round(outlived), "processes": processes, "machine": about})


if __name__ == "__main__":
    main()
