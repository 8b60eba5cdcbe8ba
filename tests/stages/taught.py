"""Tiny models that SFT teaches a dialogue in seconds."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from aster.chat import Qwen3Dialect

if TYPE_CHECKING:
    from aster.engines import TrainingSample


def teach_model(
    folder: Path, example: Callable[[Qwen3Dialect, random.Random], TrainingSample], *, steps: int, batch: int
) -> Path:
    """Two layers in the lab's architecture, trained on ``batch`` examples a step and saved; returns the folder."""
    import torch
    from transformers import Qwen3ForCausalLM

    from aster.engines import AdamStep, Loss, TrainingSample
    from aster.engines.local.attention import IMPLEMENTATION
    from aster.engines.local.trainer import LocalTrainer
    from aster.lab.build import base_config
    from aster.lab.tokenizer import build_tokenizer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    dialect = Qwen3Dialect(tokenizer)
    config = base_config(len(tokenizer))
    config.num_hidden_layers = 2
    config.layer_types = ["full_attention"] * 2
    config._attn_implementation = IMPLEMENTATION
    trainer = LocalTrainer(Qwen3ForCausalLM(config))
    rng = random.Random(0)
    for step in range(steps):
        examples = [example(dialect, rng) for _ in range(batch)]
        tokens = sum(sum(sample.loss_mask) for sample in examples)
        trainer.forward_backward(
            [TrainingSample(s.token_ids, s.loss_mask, 1 / tokens) for s in examples], Loss("cross_entropy")
        )
        trainer.optim_step(AdamStep(5e-3 * min(1.0, 2 * (steps - step) / steps)))
    trainer.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
