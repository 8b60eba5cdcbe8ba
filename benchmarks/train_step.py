"""One training step of GRPO: ASTER's packed trainer beside TRL's, a padded ``transformers`` loop, and the bare matrix products.

    OMP_NUM_THREADS=1 python benchmarks/train_step.py [--json] [--model lab|smollm2|FOLDER] [--repeats 5]
    python benchmarks/train_step.py --device cuda --dtype bfloat16 --shape qwen3-0.6b --longest 18432 --trajectories 64

Contestants, all with copies of the same weights, on the same long-tailed batch, in turns within one process. A step is forward,
backward, clipping of the gradient's norm and AdamW:

- **aster**: ``LocalEngine.forward_backward`` and ``optim_step``: packed, the output layer only on trained tokens.
- **trl**: ``GRPOTrainer.training_step`` for each micro-batch of ``--rows`` trajectories, then its optimizer. TRL itself
  prepares the batch beforehand, untimed: rewards to advantages, shuffled, padded to the longest prompt and completion *of the
  batch*.
- **sorted**: ``transformers``' forward on ``--rows`` trajectories a micro-batch, sorted by length and padded to the
  micro-batch's longest, the output layer only on trained tokens: what good padding can do without packing.
- **floor**: the linear layers' matrix products of the packed batch, and nothing else; see ``_floors.MatmulFloor``.

The loss is DAPO's: token mean over the batch, clip 0.2 and 0.28, no KL term, on-policy. Loss and gradient of the three are
compared before anything is timed, and the benchmark ends where they differ by more than 1e-4 of their size (in float32; 5e-2
in bfloat16). On-policy every ratio is 1, so the loss says only that tokens, mask and scale agree; the gradient says the
rest. Tokens per second count the trajectories' own tokens, not padding. Each group of 8 has four right answers.

Lengths are log-normal (median a seventh of the longest, sigma 0.8, cut at ``--longest``), like trajectories under a limit of
18K tokens, scaled down. Without ``--checkpointing`` no contestant recomputes activations (TRL's default is to do so).
On a CPU TRL's loss runs its output layer on all positions, on a GPU on those of the completion.

**Memory** is measured in a process of its own for each contestant, which does one step to warm up, and then resets the
kernel's record of its peak (``/proc/self/clear_refs``) and does another. ``whole`` is the peak of the resident set; ``step``
what the step adds to the resident set before the model's first step: gradients, optimizer state, activations. In those
processes ASTER sets its allocator as it always does and the peers leave theirs alone. On a GPU both are what torch allocated
there.

``ratios``: ``train_vs_trl``, ``train_vs_sorted``, ``train_vs_floor`` (aster's tokens per second over theirs),
``memory_vs_trl`` and ``memory_vs_sorted`` (``step``, aster's over theirs: below 1 is aster smaller), ``memory_whole_vs_trl``.
``matmul_share`` is the share of the machine's measured rate of a large matrix product that the linear layers' operations come
to.

``--default-malloc`` leaves out the setting of glibc's allocator (``aster.engines.local.memory``), which else holds for all
contestants that are timed: compare two runs to see what it is worth.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from _common import finish, print_table, side_by_side, summarize
from _floors import MatmulFloor, matmul_ceiling
from _memory import peak, reset_peak, resident
from _models import Subject, add_options, open_subject
from _train_contestants import CONTESTANTS, Aster, Batch, Contestant, make_batch

from aster.engines.local import engine as local
from aster.engines.local.trainer import MICROBATCH_TOKENS

TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
"""The largest relative difference of losses and of gradients."""
DEFAULTS = {"lab": (64, 1024), "smollm2": (16, 512)}
"""Trajectories, and tokens of the longest."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--trajectories", type=int, help="of the batch, in groups of 8 (default 64; smollm2: 16)")
    parser.add_argument("--longest", type=int, help="tokens of the longest trajectory (default 1024; smollm2: 512)")
    parser.add_argument("--rows", type=int, default=8, help="trajectories of a padded micro-batch (default 8)")
    parser.add_argument("--checkpointing", action="store_true", help="all recompute activations in the backward pass")
    parser.add_argument("--repeats", type=int, default=5, help="measured repeats (default 5)")
    parser.add_argument("--default-malloc", action="store_true", help="leave the C allocator at its defaults")
    parser.add_argument("--smoke", action="store_true", help="a little of everything, in seconds; its numbers mean nothing")
    parser.add_argument("--json", action="store_true", help="the result as JSON in the last line")
    parser.add_argument("--memory-of", choices=sorted(CONTESTANTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    trajectories, longest = DEFAULTS.get("lab" if options.shape else options.model, DEFAULTS["smollm2"])
    options.trajectories, options.longest = options.trajectories or trajectories, options.longest or longest
    if options.smoke:
        options.trajectories, options.longest, options.repeats = 16, 128, 1
    if options.default_malloc:
        local.keep_freed_memory = lambda: None  # a policy sets it when it opens
    with open_subject(options, "train_step") as subject, tempfile.TemporaryDirectory() as folder:
        batch = make_batch(options.trajectories, options.longest, options.rows, len(subject.tokenizer), folder)
        if options.memory_of:
            print(json.dumps(memory(CONTESTANTS[options.memory_of], subject, batch, options)))
            return
        result = measure(subject, batch, options)
    finish(result, options.json)


def measure(subject: Subject, batch: Batch, options: argparse.Namespace) -> dict[str, Any]:
    """Check, time and weigh all contestants."""
    lengths = sorted(len(sample.token_ids) for sample in batch.samples)
    tokens, padded = sum(lengths), batch.padded_tokens
    print(f"{subject.name}, {options.device}: {len(lengths)} trajectories of {lengths[0]} to {lengths[-1]} tokens, ", end="")
    print(f"median {lengths[len(lengths) // 2]}; {tokens} in all, {padded} with TRL's padding", flush=True)
    # Before this process has any: together they may need more memory than there is.
    weighed = {name: weigh(name) for name in CONTESTANTS}
    contestants = {name: make(subject, batch, options.checkpointing) for name, make in CONTESTANTS.items()}
    malloc = "default" if options.default_malloc else "keep_freed_memory"
    agreement = compare(contestants, TOLERANCE[options.dtype])
    aster = contestants["aster"]
    assert isinstance(aster, Aster)
    # As many even micro-batches as ASTER's bound makes of so many tokens.
    parts = -(-tokens // MICROBATCH_TOKENS[aster.model.device.type])
    trained = sum(len(sample.trained_positions) for sample in batch.samples)
    floor = MatmulFloor(aster.model, [(tokens // parts, trained // parts)] * parts)
    runs = {name: timed(contestant, tokens) for name, contestant in contestants.items()}
    summary = summarize(side_by_side(runs | {"floor": lambda _: floor.run()}, options.repeats, warm_up=not options.smoke))
    print_table(f"forward, backward and AdamW step (malloc: {malloc})", summary)
    ceiling = matmul_ceiling(aster.model.device, aster.model.dtype)
    share = {
        name: round(floor.operations() * summary["median"][name] / tokens / ceiling, 4) for name in ("aster", "trl", "floor")
    }
    print(f"  share of {ceiling / 1e9:,.0f} GFLOP/s, a large product's: " + ", ".join(f"{n} {s:.1%}" for n, s in share.items()))
    print(
        "\npeak memory, MiB"
        + "".join(f"\n  {n:28s} step {w['step']:8,.0f}   whole {w['whole']:8,.0f}" for n, w in weighed.items())
    )
    ratios = {f"train_vs_{name}": ratio["median"] for name, ratio in summary["ratio"].items()}
    for name in ("trl", "sorted"):
        ratios[f"memory_vs_{name}"] = round(weighed["aster"]["step"] / weighed[name]["step"], 3)
    ratios["memory_whole_vs_trl"] = round(weighed["aster"]["whole"] / weighed["trl"]["whole"], 3)
    return {
        "benchmark": "train_step", "model": subject.name, "device": options.device, "dtype": options.dtype, "malloc": malloc,
        "checkpointing": options.checkpointing, "trajectories": len(lengths), "tokens": tokens, "padded_tokens": padded,
        "rows": options.rows, "smoke": options.smoke, "agreement": agreement, "ratios": ratios, "memory_mib": weighed,
        "matmul_share": share,
    } | summary  # fmt: skip


def timed(contestant: Contestant, tokens: int) -> Callable[[int], int]:
    """A step as :func:`side_by_side` takes it."""

    def run(_repeat: int) -> int:
        contestant.step()
        return tokens

    return run


def compare(contestants: dict[str, Contestant], tolerance: float) -> dict[str, dict[str, float]]:
    """The relative differences of loss and gradient from ASTER's. SystemExit where one is too large."""
    loss, gradient = contestants["aster"].loss_and_gradient()
    size = gradient.norm()
    differences = {}
    for name in [name for name in contestants if name != "aster"]:
        other_loss, other = contestants[name].loss_and_gradient()
        differences[name] = {"loss": abs(other_loss - loss) / abs(loss), "gradient": float((other - gradient).norm() / size)}
        if max(differences[name].values()) > tolerance:
            raise SystemExit(f"aster and {name} do not compute the same: relative differences {differences[name]}")
    print("relative differences from aster: " + json.dumps(differences))
    return differences


def weigh(name: str) -> dict[str, float]:
    """:func:`memory` of a contestant in a process of its own, with this command's options."""
    command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"measuring the memory of {name} failed:\n{done.stderr}")
    weighed: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return weighed


def memory(
    make: Callable[[Subject, Batch, bool], Contestant], subject: Subject, batch: Batch, options: argparse.Namespace
) -> dict[str, float]:
    """MiB of this process, whose only contestant it is."""
    contestant = make(subject, batch, options.checkpointing)
    device = torch.device(options.device)
    before = resident(device)
    contestant.step()
    reset_peak(device)
    contestant.step()
    whole = peak(device)
    return {"whole": round(whole, 1), "step": round(whole - before, 1)}


if __name__ == "__main__":
    main()
