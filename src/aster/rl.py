"""RL, from top to bottom: sample, score, advantages, loss, step, evaluate, log, checkpoint.

One step of GRPO draws prompts, samples a group of trajectories for each, turns their rewards into advantages within the
group, and takes one optimizer step a minibatch. What each word means is one call away:

    sample, score    :mod:`aster.rollout.loop`      a trajectory; :mod:`aster.rollout.groups`, a batch of groups
    advantages, loss :mod:`aster.algorithms`        GRPO, GSPO, CISPO or your own
    step             the engine's ``optim_step``    :mod:`aster.engines`

The order of sampling and training, with batches that are sampled while another is trained on, is in
:mod:`aster.rollout.schedule`.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from contextlib import aclosing
from dataclasses import replace

from aster.algorithms import Algorithm, Grpo, make_algorithm, to_samples
from aster.algorithms.prompts import drop_solved
from aster.checkpoints import note_faults, resume_point, starting_point, until_finished
from aster.config import Rl
from aster.config.recipe import Recipe
from aster.engines import AdamStep, Engine
from aster.engines.opening import open_engine
from aster.environments.opening import make_environment
from aster.environments.problems import evaluation_problems, training_problems
from aster.rollout import Decoding, RolloutContext, Rollouts, make_jobs
from aster.rollout.groups import Batch, GroupSampler
from aster.rollout.schedule import Place, places, run_pipelined
from aster.run import RunFolder, write_trajectories
from aster.telemetry.collapse import CollapseWatch
from aster.telemetry.metrics import describe, summarize_updates
from aster.terminal import Progress
from aster.types import Problem, Trajectory


def run(recipe: Recipe, folder: RunFolder) -> None:
    """Train; resumes at the newest checkpoint."""
    asyncio.run(until_finished(folder, "rl", lambda: train(recipe, folder)))


async def train(recipe: Recipe, folder: RunFolder) -> None:
    """All steps that are left."""
    settings, here = recipe.rl, recipe.policy.samples_here
    problems = {problem.id: problem for problem in training_problems(recipe.problems, settings.train_problems, recipe.seed)}
    folder.remember_problems(problems.values())
    algorithm = open_algorithm(settings)
    plan = places(settings)
    done, checkpoint = resume_point(folder, "rl")
    async with (
        open_engine(
            recipe.engine,
            checkpoint or starting_point(folder),
            optimizer=done > 0,
            capacity=max(stage.limits.context_tokens for stage in settings.stages),
            overlapped=settings.max_staleness > 0,
        ) as engine,
        make_environment(recipe.environment, recipe.tools, recipe.sandbox, recipe.demand, beside_sampler=here) as environment,
        Rollouts(
            RolloutContext(lambda _: engine, engine.dialect, environment, recipe.rollout.slots, recipe.rollout.deterministic)
        ) as rollouts,
    ):
        groups = GroupSampler(settings, recipe.seed, problems, rollouts)
        lines = folder.metrics("rl")
        groups.recall(lines[-1].get("carried", []) if lines else [])
        watch = CollapseWatch([line["tool_calls"] for line in lines])

        async def sample(place: Place, version: int) -> Batch:
            return await groups.sample(place, drawable(settings, folder, problems, place), version, wait=place.last)

        batches = run_pipelined(plan, done, settings.max_staleness, sample=sample, refresh=engine.refresh_sampler)
        async with aclosing(batches):
            with Progress("rl", len(plan), "step", done=done) as progress:
                ended = time.monotonic()
                async for batch in batches:  # sampled and scored
                    step = batch.place.step
                    note_faults(f"rl step {step}", batch.trajectories)
                    write_trajectories(folder.trajectory_file("rl", f"step_{step:06d}"), batch.trajectories)

                    began = time.monotonic()
                    await engine.pause_sampler()
                    trained = await update(engine, algorithm, settings, batch, learning_rate(settings, step, len(plan)))
                    now = time.monotonic()

                    metrics = describe(batch.groups) | trained
                    if settings.evaluate_every and step % settings.evaluate_every == 0:
                        await engine.refresh_sampler()
                        metrics["held_out"] = await held_out(recipe, rollouts, batch.place)
                    folder.log(
                        "rl",
                        step,
                        **batch.describe(settings.samples),
                        **metrics,
                        train_seconds=round(now - began, 3),
                        tokens_per_second=round(metrics["sampled_tokens"] / (now - ended)),
                        step_seconds=round(now - ended, 3),
                        rewards=rewards_by_problem(batch),
                    )
                    ended = now
                    watch.see(metrics["tool_calls"])

                    if step % settings.checkpoint_every == 0 or step == len(plan):
                        await engine.save(folder.checkpoint_path("rl", step))
                        folder.prune_checkpoints("rl")
                    progress.advance(reward=metrics["reward"], calls=metrics["tool_calls"], entropy=metrics["entropy"])
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


async def update(engine: Engine, algorithm: Algorithm, settings: Rl, batch: Batch, rate: float) -> dict[str, float | None]:
    """One optimizer step a minibatch: advantages, loss, step. Minibatches without any advantage are skipped, and counted."""
    tokens = sum(t.sampled_tokens for group in batch.groups for t in group)
    size = -(-len(batch.groups) // settings.minibatches)
    minibatches = [
        to_samples(batch.groups[start : start + size], algorithm, tokens) for start in range(0, len(batch.groups), size)
    ]
    minibatches = [samples for samples in minibatches if samples]
    # The old log-probabilities are those before the first step; on the first minibatch the present ones are those.
    for index in range(1, len(minibatches)):
        old = await engine.forward(minibatches[index])
        minibatches[index] = [
            replace(sample, old_logprobs=logprobs) for sample, logprobs in zip(minibatches[index], old, strict=True)
        ]
    updates, steps = [], []
    for samples in minibatches:
        updates.append(await engine.forward_backward(samples, algorithm.loss))
        steps.append(await engine.optim_step(AdamStep(rate, **settings.adam.model_dump())))
    return summarize_updates(updates, steps)


def learning_rate(settings: Rl, step: int, steps: int) -> float:
    """The rate of a step (from 1): linear warm-up, and linear decay to ``final_rate`` of it at the last step."""
    warm = min(1.0, step / (settings.warmup_steps + 1))
    decay = 1.0 - (1.0 - settings.final_rate) * (step - 1) / max(1, steps - 1)
    return settings.learning_rate * warm * decay


def open_algorithm(settings: Rl) -> Algorithm:
    """The algorithm that the section names."""
    # The section's fields that belong to its algorithm are GRPO's; others read some of them.
    fields = {name: getattr(settings, name) for name in Grpo.recipe_fields}
    defaults = {name: Rl.model_fields[name].default for name in Grpo.recipe_fields}
    return make_algorithm(settings.algorithm.use, settings.algorithm.arguments, fields, defaults)


async def held_out(recipe: Recipe, rollouts: Rollouts, place: Place) -> float:
    """The mean reward of one attempt at each of some held-out problems, with the present weights."""
    settings = recipe.rl
    problems = evaluation_problems(recipe.problems, settings.evaluate_problems)
    limits, decoding = settings.stages[place.stage_index].limits, Decoding(settings.temperature)
    jobs = make_jobs(problems, 1, recipe.seed, "held_out", place.step)
    tried: list[Trajectory] = []
    for wave in rollouts.context.waves(jobs):
        tried += await asyncio.gather(*(rollouts.start(job, limits.budget(), decoding) for job in wave))
    note_faults(f"rl step {place.step}, held-out problems", tried)
    return sum(trajectory.reward for trajectory in tried) / len(tried)


def drawable(settings: Rl, folder: RunFolder, problems: dict[str, Problem], place: Place) -> list[str]:
    """The problems a step's prompts are drawn from: without those solved in the stages before, where the stage asks for it."""
    if not settings.stages[place.stage_index].drop_solved:
        return list(problems)
    history: dict[str, list[float]] = defaultdict(list)
    for line in folder.metrics("rl"):
        if line["stage_index"] < place.stage_index:
            for problem_id, rewards in line["rewards"].items():
                history[problem_id] += rewards
    return drop_solved(list(problems), history)


def rewards_by_problem(batch: Batch) -> dict[str, list[float]]:
    """The rewards of every attempt of a batch, by the problem's id: what :func:`drawable` reads later."""
    rewards: dict[str, list[float]] = defaultdict(list)
    for trajectory in batch.trajectories:
        rewards[trajectory.problem_id].append(trajectory.reward)
    return rewards
