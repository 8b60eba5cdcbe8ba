"""Weights in bfloat16 with masters in float32, and memory that does not grow with the vocabulary."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from aster.engines import AdamStep, Loss, TrainingSample
from aster.engines.local.engine import LocalEngine
from tests.engines.models import random_ids, recipe_for

SAMPLES = [TrainingSample(random_ids(n, 40), [0] * 10 + [1] * 30, 1 / 90) for n in range(3)]


def losses(policy: LocalEngine, steps: int, rate: float) -> list[float]:
    async def work() -> list[float]:
        found = []
        for _ in range(steps):
            found.append((await policy.forward_backward(SAMPLES, Loss("cross_entropy")))["loss"])
            await policy.optim_step(AdamStep(learning_rate=rate))
        return found

    return asyncio.run(work())


def test_small_updates_of_bfloat16_weights_add_up(lab_folder: Path) -> None:
    """At this rate a step is less than half of the last bit of nearly all weights: without masters they would not move."""
    half, full = LocalEngine(recipe_for(lab_folder, dtype="bfloat16")), LocalEngine(recipe_for(lab_folder))
    before = {name: p.detach().clone() for name, p in half.model.named_parameters()}
    once = losses(half, 1, 2e-5)
    large = {name: p.abs() > 0.02 for name, p in before.items()}
    still = [(p == before[name])[large[name]].float().mean() for name, p in half.model.named_parameters() if large[name].any()]
    assert torch.stack(still).mean() > 0.95
    found, expected = once + losses(half, 80, 2e-5), losses(full, 81, 2e-5)
    gain, expected_gain = found[0] - found[-1], expected[0] - expected[-1]
    assert expected_gain > 0.05
    assert abs(gain - expected_gain) < 0.2 * expected_gain
    assert all(p.dtype == torch.bfloat16 for p in half.model.parameters())


def test_masters_are_kept_in_checkpoints(lab_folder: Path, tmp_path: Path) -> None:
    recipe = recipe_for(lab_folder, dtype="bfloat16")
    policy = LocalEngine(recipe)
    losses(policy, 6, 5e-5)
    asyncio.run(policy.save(tmp_path / "checkpoint"))
    further = losses(policy, 12, 5e-5)
    assert losses(LocalEngine(recipe, tmp_path / "checkpoint", optimizer=True), 12, 5e-5) == further
    (tmp_path / "checkpoint" / "optimizer.pt").unlink()
    assert losses(LocalEngine(recipe, tmp_path / "checkpoint", optimizer=True), 12, 5e-5) != further


MEASURE = """
import json, sys, torch
from transformers import Qwen3Config, Qwen3ForCausalLM
from aster.engines import AdamStep, Loss, TrainingSample
from aster.engines.local.attention import IMPLEMENTATION
from aster.engines.local.trainer import LocalTrainer
torch.set_num_threads(1)
vocabulary = 60_000
config = Qwen3Config(vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                     num_key_value_heads=1, head_dim=16, tie_word_embeddings=True, attn_implementation=IMPLEMENTATION)
trainer = LocalTrainer(Qwen3ForCausalLM(config))
found = []
for length in (64, 2048, 4096):
    tokens = torch.randint(vocabulary, (length,)).tolist()
    trainer.forward_backward([TrainingSample(tokens, [1] * length, 1 / length)], Loss("cross_entropy"))
    found.append(trainer.optim_step(AdamStep(1e-4))["peak_memory_mb"])
print(json.dumps(found))
"""


def test_peak_memory_has_no_whole_logits_and_grows_linearly_with_length() -> None:
    """Whole logits of the longest would take 937 MiB, and so would their gradient."""
    ended = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    short, medium, long = json.loads(ended.stdout.splitlines()[-1])
    assert long - short < 250, (short, medium, long)
    assert long - medium < 1.5 * (medium - short) + 30, (short, medium, long)
