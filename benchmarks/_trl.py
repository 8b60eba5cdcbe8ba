"""TRL's GRPOTrainer, set up for the benchmarks."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

try:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer
    from trl.chat_template_utils import qwen3_template
except ImportError as error:
    raise SystemExit(f"this benchmark needs TRL ({error}); give `make bench`, or pip install '.[bench]'") from error


def make_trainer(
    model: Any,
    tokenizer: Any,
    folder: str,
    *,
    rows: int,
    microbatches: int,
    group: int,
    rewards: Callable[..., list[float]],
    tools: list[Callable[..., str]] | None = None,
    rollout: Callable[..., dict[str, Any]] | None = None,
    checkpointing: bool = False,
    learning_rate: float = 1e-6,
) -> Any:
    """A trainer with ASTER's settings of the algorithm: DAPO's loss, clip 0.2 and 0.28, no KL term, temperature 1.

    A batch has ``rows * microbatches`` completions in groups of ``group``.
    """
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout functions are experimental, and it says so each time
    parameter = next(model.parameters())
    settings = GRPOConfig(
        output_dir=folder,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=microbatches,
        steps_per_generation=microbatches,
        num_generations=group,
        max_completion_length=model.config.max_position_embeddings,
        loss_type="dapo",
        epsilon=0.2,
        epsilon_high=0.28,
        beta=0.0,
        temperature=1.0,
        learning_rate=learning_rate,
        adam_beta2=0.95,
        lr_scheduler_type="constant",
        max_steps=1_000_000,
        bf16=False,  # the weights have their type already
        gradient_checkpointing=checkpointing,
        use_cpu=parameter.device.type == "cpu",
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    # Its parser of tool calls is found by the chat template, and ours is not among those it knows.
    tokenizer.response_template = qwen3_template
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": ""}]}] * (rows * microbatches))
    return GRPOTrainer(
        model=model,
        reward_funcs=rewards,
        args=settings,
        train_dataset=data,
        processing_class=tokenizer,
        tools=tools,
        rollout_func=rollout,
    )
