"""Many sessions opened at once, beside an older checkout of this project, in turn on the same machine.

    git worktree add /tmp/older b6fef26
    python benchmarks/sandbox_opening.py --against /tmp/older [--json] [--sessions 64] [--times 6] [--turns 4]

Each turn starts each checkout's sandbox in a process of its own, with its defaults, opens that many sessions at the same time,
until all have answered that they are ready, closes them, and does so again. Until commit b6fef26 the sandbox was
``aster.sandbox``. Both run with this interpreter and its packages. ``ratio`` is the median of this checkout's times over that
of the other's: below 1 is this one faster. Wanted beside b6fef26: .75 or less."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from _machine import facts, print_json

HERE = Path(__file__).resolve().parents[1]
OPEN = """
import asyncio, json, sys, time
if sys.argv[3] == "aster_sandbox":
    from aster_sandbox import Sandbox, Settings
else:
    from aster.config import Sandbox as Settings
    from aster.sandbox import Sandbox

async def main(count, times):
    taken = []
    async with Sandbox(Settings()) as sandbox:
        for _ in range(times):
            await asyncio.sleep(0.3)
            began = time.perf_counter()
            sessions = await asyncio.gather(*(sandbox.open(number) for number in range(count)))
            taken.append(time.perf_counter() - began)
            await asyncio.gather(*(session.close() for session in sessions))
    print(json.dumps(taken))

asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
"""


def seconds(checkout: Path, sessions: int, times: int) -> list[float]:
    """What each opening took in one process of a checkout's code."""
    # The environment's own installation is in sight too, so it must be said.
    package = "aster_sandbox" if (checkout / "src" / "aster_sandbox").exists() else "aster.sandbox"
    environment = os.environ | {"PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", OPEN, str(sessions), str(times), package],
        env=environment,
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    taken: list[float] = json.loads(done.stdout)
    return taken


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, required=True, metavar="FOLDER", help="the other checkout")
    parser.add_argument("--sessions", type=int, default=64)
    parser.add_argument("--times", type=int, default=6, help="openings in one process")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--json", action="store_true", help="the result as JSON in the last line")
    options = parser.parse_args()
    checkouts = {"here": HERE, "other": options.against.resolve()}
    taken: dict[str, list[float]] = {name: [] for name in checkouts}
    ratios = []
    for _ in range(options.turns):
        turn = {name: seconds(checkout, options.sessions, options.times) for name, checkout in checkouts.items()}
        for name, values in turn.items():
            taken[name] += values
        ratios.append(statistics.median(turn["here"]) / statistics.median(turn["other"]))
    result = {
        "sessions": options.sessions,
        "seconds": {name: round(statistics.median(values), 4) for name, values in taken.items()},
        "ranges": {name: [round(min(values), 4), round(max(values), 4)] for name, values in taken.items()},
        "ratio": round(statistics.median(taken["here"]) / statistics.median(taken["other"]), 3),
        "ratio_by_turn": [round(ratio, 3) for ratio in ratios],
    }
    if options.json:
        print_json(result | {"machine": facts()})
    else:
        for name, value in result.items():
            print(f"{name:16s} {value}")


if __name__ == "__main__":
    main()
