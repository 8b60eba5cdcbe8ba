"""The lab's arms on both families, several seeds each: what becomes of accuracy and tool use.

    .venv/bin/python studies/lab_arms.py --out runs/arms [--seeds 1 2 3] [--families chain hunt] [field=value ...]

Runs ``aster run recipes/lab.yaml`` for every family, cold start and seed, as many processes as there are cores, each with one
thread. Runs that are finished are not run again, so an interrupted study goes on. Prints a Markdown table to stdout; the last
one is in docs/results/lab.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

ARMS = ("dense", "program", "sparse", "zero")


def command(family: str, arm: str, seed: int, folder: Path, overrides: list[str]) -> list[str]:
    """The command of one run."""
    return [
        *(sys.executable, "-m", "aster", "run", "recipes/lab.yaml"),
        *(f"problems.families={{{family}: 1.0}}", f"cold_start={arm}", f"seed={seed}", "beside=[]"),
        *overrides,
        *("--run", str(folder)),
    ]


async def run_all(runs: list[tuple[list[str], Path]], processes: int) -> None:
    """Run the commands, so many at once; the log of each stands beside its folder."""
    free = asyncio.Semaphore(processes)

    async def one(arguments: list[str], folder: Path) -> None:
        async with free:
            print("running", *arguments[2:], file=sys.stderr, flush=True)
            folder.parent.mkdir(parents=True, exist_ok=True)
            with open(folder.with_suffix(".log"), "ab") as log:
                process = await asyncio.create_subprocess_exec(
                    *arguments, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
                )
                if await process.wait() != 0:
                    print(f"failed: {folder} (see {folder.with_suffix('.log')})", file=sys.stderr, flush=True)

    await asyncio.gather(*(one(*run) for run in runs))


def row(family: str, arm: str, summaries: list[dict[str, Any]]) -> str:
    """One line of the table: each seed's value, then their mean."""

    def cells(policy: str, key: str, digits: int) -> str:
        values = [summary[policy][key] for summary in summaries if policy in summary]
        if not values:
            return "-"
        each = " / ".join(f"{value:.{digits}f}" for value in values)
        return f"{each} (**{mean(values):.{digits}f}**)"

    before = "base" if arm == "zero" else "sft"
    columns = [(before, "accuracy", 3), ("rl", "accuracy", 3), (before, "tool_calls", 2), ("rl", "tool_calls", 2)]
    parts = [cells(policy, key, digits) for policy, key, digits in columns]
    return f"| {family} | {arm} | " + " | ".join(parts) + " |"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--families", nargs="+", default=["chain", "hunt"])
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    arguments, overrides = parser.parse_known_args()
    places = {
        (family, arm, seed): arguments.out / f"{family}-{arm}-s{seed}"
        for seed, family, arm in product(arguments.seeds, arguments.families, arguments.arms)
    }
    asyncio.run(
        run_all([(command(*place, folder, overrides), folder) for place, folder in places.items()], arguments.processes)
    )
    print("| family | cold start | before RL, each seed (mean) | after RL | calls before | calls after |")
    print("|---|---|---|---|---|---|")
    for family, arm in product(arguments.families, arguments.arms):
        files = [places[family, arm, seed] / "summary.json" for seed in arguments.seeds]
        print(row(family, arm, [json.loads(file.read_text()) for file in files if file.exists()]))


if __name__ == "__main__":
    main()
