"""The same recipe on the local engine and on a Tinker server: are the learning curves the same within the seeds' spread?

    .venv/bin/python studies/tinker_curves.py --base-url http://127.0.0.1:8000 --out runs/curves \
        [--recipe lab] [--seeds 1 2 3] [--until sft] [policy.lora_rank=16 field=value ...]

Runs the stages of ``--recipe`` up to ``--until`` for every seed and engine, one after the other; runs that are finished are not
run again. Prints two Markdown tables to stdout: the loss of each SFT step and the reward of each RL step, as the mean and the
range of the seeds on either engine. The adapters begin with different random numbers on the two, so the curves agree in
distribution and not to the bit; the first loss, where they do nothing yet, agrees to rounding.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from statistics import mean

from aster.run import read_json_lines

STAGES = ("synthesize", "curate", "sft", "rl")
CURVES = {"sft": "loss", "rl": "reward"}


def overrides(engine: str, base_url: str) -> list[str]:
    """What makes a recipe one engine's."""
    return ["policy.kind=tinker", f"policy.base_url={base_url}"] if engine == "tinker" else ["policy.kind=local"]


def curve(folder: Path, stage: str) -> list[float]:
    """A stage's curve, step by step."""
    lines = [line for line in read_json_lines(folder / "metrics.jsonl") if line["stage"] == stage]
    return [line[CURVES[stage]] for line in lines]


def table(stage: str, curves: dict[str, list[list[float]]]) -> str:
    """One row a step: mean and range on either engine."""
    engines = list(curves)
    rows = [f"| {stage} step | " + " | ".join(f"{CURVES[stage]}, {engine}" for engine in engines) + " |"]
    rows.append("|---" * (len(engines) + 1) + "|")
    for step in range(min(len(one) for several in curves.values() for one in several)):
        cells = []
        for engine in engines:
            values = [one[step] for one in curves[engine]]
            cells.append(f"{mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        rows.append(f"| {step + 1} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main() -> None:
    """Run what is missing, then print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", default="lab")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--until", choices=["sft", "rl"], default="rl")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args()
    stages = STAGES[: STAGES.index(arguments.until) + 1]
    folders = {engine: [arguments.out / f"{engine}-s{seed}" for seed in arguments.seeds] for engine in ("local", "tinker")}
    for engine, several in folders.items():
        for seed, folder in zip(arguments.seeds, several, strict=True):
            common = [f"seed={seed}", "beside=[]", *arguments.overrides, *overrides(engine, arguments.base_url)]
            for stage in stages:
                command = [sys.executable, "-m", "aster", stage, arguments.recipe, *common, "--run", str(folder)]
                subprocess.run(command, check=True)
    for stage in CURVES:
        if stage in stages:
            print(f"\n{table(stage, {engine: [curve(f, stage) for f in several] for engine, several in folders.items()})}")


if __name__ == "__main__":
    main()
