"""Training really learns: SFT lowers the loss, and every algorithm that comes with ASTER raises the reward."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import pytest

from aster import pipeline, rl
from aster.config.file import validate_recipe
from aster.run import RunFolder
from tests.stages.runs import LIMITS, Tiny


def test_sft_lowers_the_loss_and_teaches_the_tool(tmp_path: Path) -> None:
    """The lab's base model, which knows no tool, on trajectories of the dense expert."""
    wide = {"context_tokens": 768, "turn_tokens": 256, "tool_calls": 12, "turns": 14}
    recipe = validate_recipe(
        {
            "model": {"threads": 1},
            "problems": {"levels": [2, 4]},
            "sandbox": {"preload": []},
            "synthesize": {"problems": 120, "limits": wide},
            "curate": {"dense_calls": 2},
            "sft": {"stages": [{"trained_tokens": 30000, "batch": 8, "learning_rate": 2e-3}], "warmup_steps": 2},
            "evaluate": {"problems": 12, "k": 1, "policies": ["base", "sft"], "limits": wide},
        },
        "test",
    )
    with RunFolder.open(tmp_path / "run", recipe, []) as run:
        for stage in ("synthesize", "curate", "sft", "evaluate"):
            pipeline.run_stage(stage, recipe, run)
        losses = [line["loss"] for line in run.metrics("sft")]
        calls = [(run.summary(f"evaluate/{name}") or {})["tool_calls"] for name in ("base", "sft")]
    assert fmean(losses[-5:]) < 0.5 * fmean(losses[:5])
    assert calls[0] < 0.5
    assert calls[1] > 1.5


@pytest.mark.parametrize("algorithm", ["grpo", "gspo", "cispo"])
def test_an_algorithm_raises_the_reward(algorithm: str, tiny: Tiny, tmp_path: Path) -> None:
    """The model that tosses coins learns to say 1."""
    recipe = tiny.recipe(
        {
            "cold_start": "zero",
            "rl.algorithm": algorithm,
            "rl.learning_rate": 3e-4,
            "rl.prompts": 8,
            "rl.samples": 8,
            "rl.stages": [{"steps": 9, "limits": LIMITS}],
        }
    )
    with RunFolder.open(tmp_path / "run", recipe, []) as run:
        rl.run(recipe, run)
        rewards = [line["reward"] for line in run.metrics("rl")]
    assert fmean(rewards[-3:]) > fmean(rewards[:3]) + 0.15, rewards
