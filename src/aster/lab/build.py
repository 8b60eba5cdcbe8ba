"""Train the lab's base model: a tiny Qwen3 that solves problems without the tool, like the paper's base models.

It is trained from scratch on two kinds of text:

- solved walks (*chain* and *coded*, but never a *hunt*), half of them with the tool's schema in the system turn. They are
  solved without the tool in both cases.
- drills: the prompt says which lines of code to run. The model calls the tool with these lines, one call after the other, and
  repeats the last result. So it knows how to write calls, like the paper's base models, but has never used one to solve a
  problem.

Matrices are trained with Muon, the rest with AdamW.

    aster lab build-base --out DIR          trains it again; docs/lab.md has the measured cost
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from aster.chat import Qwen3Dialect
from aster.engines.base import Loss, TrainingSample
from aster.engines.local.attention import IMPLEMENTATION
from aster.engines.local.memory import keep_freed_memory
from aster.engines.local.trainer import LocalTrainer
from aster.environments.lab import LABELS, MOST, any_operation, draw, split_of, to_problem
from aster.lab.tokenizer import build_tokenizer
from aster.seeds import derive
from aster.teacher.lab_experts import text_only
from aster.terminal import Progress

BATCH_TOKENS = 8192
MUON_RATE = 0.02
ADAM_RATE = 3e-3


def base_config(vocabulary: int) -> Qwen3Config:
    """Return the model's configuration: about 0.6M parameters."""
    return Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
    )


DRILLS = 0.2
"""Share of drills among the examples."""
MOST_CALLS = 8
"""Largest number of calls in a drill."""
MOST_STEPS = 12
"""Largest number of steps in a walk. It exceeds the lab's ten, so that the labels of the last steps are not the rarest labels
in the training text."""


def examples(dialect: Qwen3Dialect, seed: int) -> Iterator[TrainingSample]:
    """Yield training examples without end: drills, and walks of 1 to MOST_STEPS steps from the training split.

    All assistant turns are trained.
    """
    rng = random.Random(derive(seed, "base"))
    while True:
        if rng.random() < DRILLS:
            yield drill(dialect, rng)
            continue
        walk = draw(rng, rng.choice(("chain", "chain", "coded")), rng.randint(1, MOST_STEPS))
        problem = to_problem(walk)
        if split_of(problem) != "train":
            continue
        thinking, answer = text_only(walk)
        prompt = dialect.prompt_ids(problem.prompt, tools=rng.random() < 0.5)
        turn = dialect.turn_ids(thinking, f"\\boxed{{{answer}}}", [])
        yield TrainingSample(prompt + turn, [0] * len(prompt) + [1] * len(turn), 1.0)


def drill(dialect: Qwen3Dialect, rng: random.Random) -> TrainingSample:
    """Return a drill: run the given lines, one call after the other, and repeat the last result.

    The results are random numbers, so there is nothing to compute.
    """
    snippets = [(label, _snippet(rng, first=label == LABELS[0])) for label in LABELS[: rng.randint(1, MOST_CALLS)]]
    told = " ".join(f"{label}:{code}" for label, code in snippets)
    pieces = [(dialect.prompt_ids(f"Run {told}"), 0)]
    output = ""
    for label, code in snippets:
        output = str(rng.randint(1, MOST))
        pieces += [(dialect.turn_ids(label, "", [f"{code}\nv"]), 1), (dialect.tool_ids([output]), 0)]
    pieces.append((dialect.turn_ids("end", f"\\boxed{{{output}}}", []), 1))
    token_ids = [token for ids, _ in pieces for token in ids]
    return TrainingSample(token_ids, [trained for ids, trained in pieces for _ in ids], 1.0)


def _snippet(rng: random.Random, first: bool) -> str:
    """Return one or two lines of code for a drill."""
    line = f"v={rng.randint(1, MOST)}{any_operation(rng)}" if first else f"v=v{any_operation(rng)}"
    return f"{line}\nv=v{any_operation(rng)} if v%2==0 else v{any_operation(rng)}" if rng.random() < 0.2 else line


def batches(samples: Iterator[TrainingSample]) -> Iterator[list[TrainingSample]]:
    """Yield batches of at least BATCH_TOKENS tokens, scaled so that the loss is the mean over trained tokens."""
    while True:
        batch: list[TrainingSample] = []
        tokens = 0
        while tokens < BATCH_TOKENS:
            batch.append(next(samples))
            tokens += len(batch[-1].token_ids)
        scale = 1.0 / sum(sum(sample.loss_mask) for sample in batch)
        yield [TrainingSample(sample.token_ids, sample.loss_mask, scale) for sample in batch]


class Muon:
    """Muon (Keller Jordan, 2024): momentum, orthogonalized by five Newton-Schulz steps.

    ``torch.optim.Muon`` does the same in bfloat16. Processors without bfloat16 arithmetic emulate it: there it took 0.7 s per
    step, two thirds of the time of the forward and backward pass. This implementation uses float32 and processes all matrices
    of one shape at once.
    """

    MOMENTUM = 0.95
    COEFFICIENTS = (3.4445, -4.7750, 2.0315)

    def __init__(self, matrices: list[torch.nn.Parameter]) -> None:
        self.groups = [[m for m in matrices if m.shape == shape] for shape in dict.fromkeys(m.shape for m in matrices)]
        self.momenta = [torch.zeros(len(group), *group[0].shape) for group in self.groups]

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Update the matrices. The update is scaled by sqrt(max(1, rows / columns)), as in the original."""
        for group, momentum in zip(self.groups, self.momenta, strict=True):
            gradient = torch.stack([matrix.grad for matrix in group if matrix.grad is not None])
            momentum.lerp_(gradient, 1 - self.MOMENTUM)
            update = self.orthogonalize(gradient.lerp(momentum, self.MOMENTUM))
            rows, columns = update.shape[-2:]
            for matrix, change in zip(group, update, strict=True):
                matrix.sub_(change, alpha=learning_rate * max(1.0, rows / columns) ** 0.5)

    def orthogonalize(self, batch: torch.Tensor) -> torch.Tensor:
        """Orthogonalize matrices (B, rows, columns) approximately: their singular values become close to 1."""
        a, b, c = self.COEFFICIENTS
        tall = batch.shape[-2] > batch.shape[-1]
        x = batch.mT if tall else batch
        x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
        for _ in range(5):
            gram = x @ x.mT
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x.mT if tall else x


def build_base(out: Path, seed: int, tokens: int) -> None:
    """Train the base model on ``tokens`` tokens and write it to ``out`` as a ``transformers`` folder."""
    keep_freed_memory()
    torch.manual_seed(derive(seed, "weights") % (1 << 31))
    tokenizer = build_tokenizer()
    dialect = Qwen3Dialect(tokenizer)
    config = base_config(len(tokenizer))
    config._attn_implementation = IMPLEMENTATION
    config.eos_token_id = dialect.end_id
    model: Any = Qwen3ForCausalLM(config)
    trainer = LocalTrainer(model)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name and "lm_head" not in name]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    muon = Muon(matrices)
    adam = torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    steps = max(1, math.ceil(tokens / BATCH_TOKENS))
    with Progress("base model", steps, "step") as progress:
        for step, batch in enumerate(itertools.islice(batches(examples(dialect, seed)), steps)):
            # Linear warm-up over the first 2% of the steps, with a linear decay to zero.
            rate = min((step + 1) / max(1.0, 0.02 * steps), (steps - step) / steps)
            adam.param_groups[0]["lr"] = ADAM_RATE * rate
            metrics = trainer.forward_backward(batch, Loss("cross_entropy"))
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            muon.step(MUON_RATE * rate)
            adam.step()
            model.zero_grad(set_to_none=True)
            progress.advance(loss=metrics["loss"])
    model.generation_config.eos_token_id = dialect.end_id
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
