"""A model that can be trained by RL in seconds: it tosses coins, with and without the tool."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.stages.runs import SETTINGS, Commands, Tiny, merged


@pytest.fixture(scope="session")
def coin_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers in the lab's architecture that answer ``Toss N`` with 0 or 1 at random, half of the time after one cell."""
    import torch
    from transformers import Qwen3ForCausalLM

    from aster.chat import Qwen3Dialect
    from aster.lab.base import base_config
    from aster.lab.tokenizer import build_tokenizer
    from aster.policy.attention import IMPLEMENTATION
    from aster.policy.base import AdamStep, Loss, TrainingSample
    from aster.policy.trainer import LocalTrainer

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

    def toss() -> TrainingSample:
        ids = dialect.prompt_ids(f"Toss {rng.randrange(10)}")
        mask = [0] * len(ids)
        spans = [(dialect.turn_ids("end", f"\\boxed{{{rng.randrange(2)}}}", []), 1)]
        if rng.random() < 0.5:
            spans = [(dialect.turn_ids("run", "", ["v=1\nv"]), 1), (dialect.tool_ids(["1"]), 0), *spans]
        for span, trained in spans:
            ids = ids + span
            mask += [trained] * len(span)
        return TrainingSample(ids, mask, 1.0)

    for step in range(60):
        batch = [toss() for _ in range(12)]
        tokens = sum(sum(sample.loss_mask) for sample in batch)
        trainer.forward_backward([TrainingSample(s.token_ids, s.loss_mask, 1 / tokens) for s in batch], Loss("cross_entropy"))
        trainer.optim_step(AdamStep(5e-3 * min(1.0, (60 - step) / 30)))
    folder = tmp_path_factory.mktemp("coin") / "model"
    trainer.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def coin_problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight tosses; the answer is always 1."""
    path = tmp_path_factory.mktemp("problems") / "coins.jsonl"
    path.write_text("".join(json.dumps({"id": f"coin-{i}", "prompt": f"Toss {i}", "answer": "1"}) + "\n" for i in range(8)))
    return path


@pytest.fixture(scope="session")
def tiny(coin_model: Path, coin_problems: Path) -> Tiny:
    """The recipe of seconds."""
    paths = {"model.path": coin_model, "problems.train": coin_problems, "problems.evaluate": coin_problems}
    return Tiny(merged(SETTINGS, {key: str(path) for key, path in paths.items()}))


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    """The command line, in processes that start at once."""
    return Commands(tmp_path_factory.mktemp("commands"))
