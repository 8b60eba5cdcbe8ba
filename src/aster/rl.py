"""RL: GRPO with outcome reward, in stages.

One step: draw prompts, sample a group of trajectories for each, turn rewards into group-relative advantages, and take one
optimizer step a minibatch on the token-mean of the clipped loss over the whole batch. :mod:`aster.rollout.groups` makes the
batch, :mod:`aster.algorithms.training` trains on it, :mod:`aster.rollout.schedule` has their order.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict

from aster.algorithms.prompts import drop_solved
from aster.algorithms.training import describe, learning_rate, train_batch
from aster.checkpoints import note_faults, resume_point, starting_point, training_problems, until_finished
from aster.config.recipe import Recipe
from aster.engines import Engine
from aster.engines.opening import open_engine
from aster.rollout import Rollouts, Workshop
from aster.rollout.groups import Batch, GroupSampler
from aster.rollout.schedule import Place, overlap, places
from aster.run import RunFolder, write_trajectories
from aster.terminal import Progress
from aster.types import Problem
from aster_sandbox import make_sandbox


def run(recipe: Recipe, folder: RunFolder) -> None:
    """Train; resumes at the newest checkpoint."""
    asyncio.run(until_finished(folder, "rl", lambda: _run(recipe, folder)))


async def _run(recipe: Recipe, folder: RunFolder) -> None:
    settings = recipe.rl
    problems = {problem.id: problem for problem in training_problems(recipe, settings.train_problems)}
    folder.remember_problems(problems.values())
    done, checkpoint = resume_point(folder, "rl")
    capacity = max(stage.limits.context_tokens for stage in settings.stages)
    plan = places(settings)
    async with (
        open_engine(
            recipe,
            checkpoint or starting_point(folder),
            optimizer=done > 0,
            capacity=capacity,
            overlapped=settings.max_staleness > 0,
        ) as policy,
        make_sandbox(recipe.sandbox, beside_sampler=recipe.policy.samples_here) as sandbox,
        Rollouts(
            Workshop(
                lambda _: policy,
                policy.dialect,
                sandbox,
                recipe.rollout.slots,
                recipe.rollout.deterministic,
                recipe.demand.system,
                recipe.demand.prompt,
            )
        ) as rollouts,
    ):
        groups = GroupSampler(recipe, problems, rollouts)
        lines = folder.metrics("rl")
        groups.recall(lines[-1].get("carried", []) if lines else [])
        with Progress("rl", len(plan), "step", done=done) as progress:
            trainer = _Trainer(recipe, folder, policy, len(plan), progress)
            await overlap(
                plan,
                done,
                settings.max_staleness,
                sample=lambda place, version: groups.sample(
                    place, _drawable(recipe, folder, problems, place), version, wait=place.last
                ),
                train=trainer.step,
                refresh=policy.refresh_sampler,
            )
    lines = folder.metrics("rl")
    last = lines[-5:]
    folder.finish(
        "rl",
        {
            "steps": len(plan),
            "reward": sum(line["reward"] for line in last) / len(last),
            "tool_calls": sum(line["tool_calls"] for line in last) / len(last),
            "sampled_tokens": sum(line["sampled_tokens"] for line in lines),
        },
    )


def _drawable(recipe: Recipe, folder: RunFolder, problems: dict[str, Problem], place: Place) -> list[str]:
    """The problems a step's prompts are drawn from: without those solved in the stages before, where the stage says so."""
    if not recipe.rl.stages[place.stage_index].drop_solved:
        return list(problems)
    history: dict[str, list[float]] = defaultdict(list)
    for line in folder.metrics("rl"):
        if line["stage_index"] < place.stage_index:
            for problem_id, rewards in line["rewards"].items():
                history[problem_id] += rewards
    return drop_solved(list(problems), history)


class _Trainer:
    """Takes the steps: trajectories written, weights trained, metrics logged, checkpoints saved."""

    def __init__(self, recipe: Recipe, folder: RunFolder, policy: Engine, steps: int, progress: Progress) -> None:
        self.settings, self.folder, self.policy, self.steps, self.progress = recipe.rl, folder, policy, steps, progress
        self.ended = time.monotonic()

    async def step(self, batch: Batch) -> None:
        """Train on a batch."""
        step, settings = batch.place.step, self.settings
        trajectories = [t for group in batch.groups for t in group] + batch.discarded
        note_faults(f"rl step {step}", trajectories)
        write_trajectories(self.folder.trajectory_file("rl", f"step_{step:06d}"), trajectories)
        began = time.monotonic()
        await self.policy.pause_sampler()
        trained = await train_batch(self.policy, settings, batch.groups, learning_rate(settings, step, self.steps))
        now = time.monotonic()
        metrics = describe(batch.groups) | trained
        rewards = defaultdict(list)
        for trajectory in trajectories:
            rewards[trajectory.problem_id].append(trajectory.reward)
        self.folder.log(
            "rl",
            step,
            stage_index=batch.place.stage_index,
            problems_left=batch.problems_left,
            resampled_groups=len(batch.discarded) // settings.samples,
            staleness=sum(batch.staleness) / len(batch.staleness),
            staleness_max=max(batch.staleness),
            carried=batch.carried,
            carried_trajectories=batch.unfinished,
            **metrics,
            sample_seconds=round(batch.seconds, 3),
            train_seconds=round(now - began, 3),
            tokens_per_second=round(metrics["sampled_tokens"] / (now - self.ended)),
            step_seconds=round(now - self.ended, 3),
            rewards=rewards,
        )
        self.ended = now
        if step % settings.checkpoint_every == 0 or step == self.steps:
            await self.policy.save(self.folder.checkpoint_path("rl", step))
            self.folder.prune_checkpoints("rl")
        self.progress.advance(reward=metrics["reward"], calls=metrics["tool_calls"], entropy=metrics["entropy"])
