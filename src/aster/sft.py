"""The stage sft: supervised fine-tuning on the curated trajectories. All assistant turns are trained; tool output is masked.

The plan (the trajectories and the learning rate of each optimizer step) depends only on the recipe and the curated set, so a
resumed run continues exactly from its checkpoint.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass

from aster.checkpoints import resume_point, until_finished
from aster.config import SftStage
from aster.config.recipe import Recipe
from aster.engines import AdamStep, Loss, TrainingSample
from aster.engines.opening import open_engine
from aster.errors import UserError
from aster.run import RunFolder, read_trajectories
from aster.seeds import derive
from aster.terminal import Progress, say
from aster.types import Trajectory


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step of the plan."""

    stage: int
    trajectories: list[Trajectory]
    learning_rate: float


def run(recipe: Recipe, folder: RunFolder) -> None:
    """Train on the curated trajectories. Resumes at the newest checkpoint."""
    asyncio.run(until_finished(folder, "sft", lambda: _run(recipe, folder)))


async def _run(recipe: Recipe, folder: RunFolder) -> None:
    kept = read_trajectories(folder.trajectory_file("curate", "kept"))
    plan, left_out = make_plan(recipe, kept)
    done, checkpoint = resume_point(folder, "sft")
    losses = [line["loss"] for line in folder.metrics("sft")]
    async with open_engine(recipe.engine, checkpoint, optimizer=True) as policy:
        with Progress("sft", len(plan), "step", done=done) as progress:
            for number, step in enumerate(plan[done:], done + 1):
                began = time.monotonic()
                samples = to_samples(step.trajectories)
                metrics = await policy.forward_backward(samples, Loss("cross_entropy"))
                stepped = await policy.optim_step(AdamStep(step.learning_rate, **recipe.sft.adam.model_dump()))
                seconds = time.monotonic() - began
                losses.append(metrics["loss"])
                tokens = sum(len(sample.token_ids) for sample in samples)
                # Only an engine that computes all logits knows the entropy on a teacher's text.
                entropy = {"entropy": metrics["entropy_sum"] / metrics["tokens"]} if "entropy_sum" in metrics else {}
                folder.log(
                    "sft",
                    number,
                    stage_index=step.stage,
                    loss=metrics["loss"],
                    **entropy,
                    learning_rate=step.learning_rate,
                    grad_norm=stepped["grad_norm"],
                    peak_memory_mb=stepped.get("peak_memory_mb"),
                    tokens=tokens,
                    trained_tokens=int(metrics["tokens"]),
                    seconds=round(seconds, 3),
                    tokens_per_second=round(tokens / seconds),
                )
                if number % recipe.sft.checkpoint_every == 0 or number == len(plan):
                    await policy.save(folder.checkpoint_path("sft", number))
                    folder.prune_checkpoints("sft")
                progress.advance(loss=metrics["loss"])
    if left_out:
        say(f"sft: {left_out} trajectories were longer than the stage's context_tokens and left out")
    folder.finish(
        "sft",
        {
            "steps": len(plan),
            "trajectories": len(kept),
            "trained_tokens": sum(line["trained_tokens"] for line in folder.metrics("sft")),
            "left_out": left_out,
            "final_loss": losses[-1],
        },
    )


def make_plan(recipe: Recipe, kept: list[Trajectory]) -> tuple[list[Step], int]:
    """The optimizer steps of all stages, and the number of trajectories left out because they were too long. Raises UserError
    where a stage has no trajectory."""
    plan: list[Step] = []
    too_long = 0
    for index, stage in enumerate(recipe.sft.stages):
        short = [t for t in kept if len(t.token_ids) <= stage.context_tokens]
        too_long += len(kept) - len(short)
        usable = [t for t in short if t.tool_calls >= stage.min_calls]
        if not usable:
            raise UserError(
                f"sft.stages.{index}: none of the {len(kept)} curated trajectories has at least {stage.min_calls} calls "
                f"within {stage.context_tokens} tokens; lower min_calls or raise context_tokens"
            )
        for number, batch in enumerate(_batches(stage, usable, derive(recipe.seed, "sft", index))):
            warm = min(1.0, (number + 1) / (recipe.sft.warmup_steps + 1))
            plan.append(Step(index, batch, stage.learning_rate * warm))
    return plan, too_long


def _batches(stage: SftStage, usable: list[Trajectory], seed: int) -> list[list[Trajectory]]:
    """Shuffled epochs in batches. With ``trained_tokens``, batches until that number of sampled tokens is reached."""
    found: list[list[Trajectory]] = []
    tokens = 0
    epoch = 0
    while True:
        order = list(usable)
        random.Random(derive(seed, epoch)).shuffle(order)
        for start in range(0, len(order), stage.batch):
            found.append(order[start : start + stage.batch])
            tokens += sum(t.sampled_tokens for t in found[-1])
            if stage.trained_tokens is not None and tokens >= stage.trained_tokens:
                return found
        epoch += 1
        if stage.trained_tokens is None and epoch == stage.epochs:
            return found


def to_samples(trajectories: list[Trajectory]) -> list[TrainingSample]:
    """Training samples whose summed loss is the mean over the batch's trained tokens."""
    scale = 1.0 / sum(t.sampled_tokens for t in trajectories)
    return [TrainingSample(t.token_ids, t.loss_mask, scale) for t in trajectories]
