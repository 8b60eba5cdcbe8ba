"""Training: ASTER's packed forward and backward against padded ``transformers``, on one long-tailed batch.

    OMP_NUM_THREADS=1 python benchmarks/trainer.py [--json] [--trajectories 96] [--repeats 5] [--default-malloc]

Contestants, all with the same weights and the same token-mean loss over the batch, in turns within one process:

- **aster**: ``aster.policy.trainer.LocalTrainer``: packed, the output layer on trained tokens alone.
- **padded**: ``transformers``' forward with ``labels`` and its own loss, ``--rows`` trajectories a micro-batch in the given
  order, padded to the longest of them.
- **padded, sorted**: the same with the batch sorted by length first, which is what good padding can do.

Each also takes an AdamW step. Before anything is timed the gradients of all three are compared. Only the trajectories' own
tokens count, padding does not. ``--default-malloc`` leaves out ``aster.policy.memory``'s setting of glibc's allocator, which
otherwise holds for all contestants: compare two runs to see what it is worth.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from typing import Any

import torch
from _common import finish, load_pair, print_table, side_by_side, summarize

from aster.lab.tokenizer import build_tokenizer
from aster.policy import AdamStep, Loss, TrainingSample
from aster.policy.memory import keep_freed_memory
from aster.policy.trainer import LocalTrainer, trained_positions

RATE = 1e-6
"""So small that the weights of the contestants stay as good as equal."""
IGNORED = -100
"""The label that the loss of ``transformers`` leaves out."""


def long_tailed_batch(count: int, vocabulary: int, seed: int) -> list[TrainingSample]:
    """Trajectories of log-normal length (median 150 tokens, at most 1,024): a prompt, then turns and tool responses."""
    rng = random.Random(seed)
    drawn: list[tuple[list[int], list[int]]] = []
    for _ in range(count):
        length = min(1024, max(80, round(rng.lognormvariate(5.0, 0.8))))
        mask = [0] * min(60, length // 2)
        while len(mask) < length:
            mask += [1] * rng.randint(10, 40) + [0] * rng.randint(6, 16)
        drawn.append(([rng.randrange(vocabulary) for _ in range(length)], mask[:length]))
    trained = sum(sum(mask) for _, mask in drawn)
    return [TrainingSample(tokens, mask, 1.0 / trained) for tokens, mask in drawn]


def padded_backward(model: Any, samples: list[TrainingSample], rows: int) -> None:
    """Add the gradient of the token-mean loss, the way a plain ``transformers`` loop does."""
    trained = sum(len(trained_positions(sample)) for sample in samples)
    for start in range(0, len(samples), rows):
        part = samples[start : start + rows]
        longest = max(len(sample.token_ids) for sample in part)
        shape = (len(part), longest)
        tokens, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, IGNORED)
        for row, sample in enumerate(part):
            length = len(sample.token_ids)
            tokens[row, :length] = torch.tensor(sample.token_ids)
            mask[row, :length] = 1
            positions = trained_positions(sample)
            labels[row, positions] = tokens[row, positions]
        output = model(input_ids=tokens, attention_mask=mask, labels=labels, num_items_in_batch=trained, use_cache=False)
        output.loss.backward()


def gradients(model: Any) -> torch.Tensor:
    """All gradients as one vector; cleared."""
    vector = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    model.zero_grad(set_to_none=True)
    return vector


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trajectories", type=int, default=96, help="trajectories of the batch (default 96)")
    parser.add_argument("--rows", type=int, default=8, help="rows of a padded micro-batch (default 8)")
    parser.add_argument("--repeats", type=int, default=5, help="measured repeats (default 5)")
    parser.add_argument("--default-malloc", action="store_true", help="leave the C allocator at its defaults")
    parser.add_argument("--json", action="store_true", help="the result as JSON in the last line")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.default_malloc:
        keep_freed_memory()
    model, peer, origin = load_pair(len(build_tokenizer()))
    samples = long_tailed_batch(options.trajectories, model.config.vocab_size, seed=1)
    ordered = sorted(samples, key=lambda sample: len(sample.token_ids))
    lengths = [len(sample.token_ids) for sample in ordered]
    tokens = sum(lengths)
    trainer, peer_optimizer = LocalTrainer(model), torch.optim.AdamW(peer.parameters(), lr=RATE)
    loss = Loss("cross_entropy")

    trainer.forward_backward(samples, loss)
    reference = gradients(model)
    for batch in (samples, ordered):
        padded_backward(peer, batch, options.rows)
        error = float((gradients(peer) - reference).norm() / reference.norm())
        if error > 1e-3:
            raise SystemExit(f"the contestants do not compute the same gradient (relative difference {error:.1e})")

    def packed(_repeat: int) -> int:
        trainer.forward_backward(samples, loss)
        trainer.optim_step(AdamStep(RATE))
        return tokens

    def padded(batch: list[TrainingSample]) -> Callable[[int], int]:
        def run(_repeat: int) -> int:
            padded_backward(peer, batch, options.rows)
            torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
            peer_optimizer.step()
            peer_optimizer.zero_grad(set_to_none=True)
            return tokens

        return run

    malloc = "default" if options.default_malloc else "keep_freed_memory"
    print(f"{origin}; {len(samples)} trajectories of {lengths[0]} to {lengths[-1]} tokens, median {lengths[len(lengths) // 2]}")
    contestants = {"aster": packed, "padded": padded(samples), "padded, sorted": padded(ordered)}
    summary = summarize(side_by_side(contestants, options.repeats))
    print_table(f"forward, backward and AdamW step (malloc: {malloc})", summary)
    result = {"benchmark": "trainer", "model": origin, "malloc": malloc, "tokens": tokens, "rows": options.rows}
    finish(result | {"trajectories": len(samples)} | summary, options.json)


if __name__ == "__main__":
    main()
