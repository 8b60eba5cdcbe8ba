"""The lab's arms on both families, several seeds each: what becomes of accuracy and tool use.

    .venv/bin/python studies/lab_arms.py --out runs/arms [--seeds 1 2 3] [--families chain hunt] [field=value ...]

Runs ``aster run lab`` for every family, cold start and seed, as many processes as there are cores, each with one
thread. Runs that are finished are not run again, so an interrupted study goes on. The last table is in docs/results/lab.md.

Prints a Markdown table to stdout, each seed's value and their mean: avg@k and tool calls per trajectory on held-out problems
before and after RL (before: the cold start; for the zero arms the base), and the entropy in nats per sampled token in the first
and last five steps of RL.
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

from aster.run import read_json_lines

ARMS = ("aster", "program", "retool", "demyagent", "zero", "zero_force_tool")


def command(family: str, arm: str, seed: int, folder: Path, overrides: list[str]) -> list[str]:
    """The command of one run."""
    return [
        *(sys.executable, "-m", "aster", "run", "lab"),
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


ENTROPY_STEPS = 5
"""RL steps whose mean entropy stands for the beginning, and for the end."""


def read_run(folder: Path, arm: str) -> dict[str, float] | None:
    """The numbers of one finished run; None where it has not finished."""
    if not (folder / "summary.json").exists():
        return None
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    before, after = summary["base" if arm.startswith("zero") else "sft"], summary["rl"]
    entropy = [line["entropy"] for line in read_json_lines(folder / "metrics.jsonl") if line["stage"] == "rl"]
    return {
        "accuracy before": before["accuracy"],
        "accuracy after": after["accuracy"],
        "half width": (after["high"] - after["low"]) / 2,
        "calls before": before["tool_calls"],
        "calls after": after["tool_calls"],
        "entropy before": mean(entropy[:ENTROPY_STEPS]),
        "entropy after": mean(entropy[-ENTROPY_STEPS:]),
    }


COLUMNS = {
    "accuracy before": 3,
    "accuracy after": 3,
    "calls before": 2,
    "calls after": 2,
    "entropy before": 4,
    "entropy after": 4,
}
"""The table's columns with their digits."""


def row(family: str, arm: str, runs: list[dict[str, float]]) -> str:
    """One line of the table: each seed's value, then their mean."""

    def cell(name: str, digits: int) -> str:
        each = " / ".join(f"{run[name]:.{digits}f}" for run in runs)
        return f"{each} (**{mean(run[name] for run in runs):.{digits}f}**)" if runs else "-"

    return f"| {family} | {arm} | " + " | ".join(cell(*column) for column in COLUMNS.items()) + " |"


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
    print(f"| family | cold start | {' | '.join(COLUMNS)} |")
    print("|---|---|" + "---|" * len(COLUMNS))
    widths = []
    for family, arm in product(arguments.families, arguments.arms):
        read = [read_run(places[family, arm, seed], arm) for seed in arguments.seeds]
        runs = [run for run in read if run is not None]
        widths += [run["half width"] for run in runs]
        print(row(family, arm, runs))
    if widths:
        print(f"\nHalf the 95% interval of one accuracy after RL: {min(widths):.3f} to {max(widths):.3f}.")


if __name__ == "__main__":
    main()
