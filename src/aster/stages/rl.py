"""RL: GRPO with outcome reward, in stages.

One step: draw prompts, sample a group of trajectories for each, turn rewards into group-relative advantages, and take one
optimizer step a minibatch on the token-mean of the clipped loss over the whole batch. On the first minibatch the old
log-probabilities are the present ones; for the later ones they are computed before the first step.

``entropy`` in the metrics is the policy's entropy in nats per sampled token, estimated over all tokens of the batch as the mean
of minus their log-probability (unbiased at temperature 1). ``trained_entropy`` is exact, over the tokens that were trained.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aster.core.progress import Progress
from aster.core.recipe import Recipe, Rl, RlStage
from aster.core.run import RunFolder, write_trajectories
from aster.core.seeds import derive
from aster.core.types import CallStatus, Problem, Trajectory
from aster.policy import AdamStep, Loss, Policy, TrainingSample
from aster.policy.opening import open_policy
from aster.rollout import Decoding, Workshop, rollout_batch
from aster.sandbox import make_sandbox
from aster.stages.common import (
    FAULTS,
    make_jobs,
    note_faults,
    resume_point,
    starting_point,
    training_problems,
    until_finished,
)
from aster.training.advantages import group_advantages
from aster.training.curriculum import choose_prompts, drop_solved
from aster.training.losses import merge_metrics

Group = list[Trajectory]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a step stands."""

    step: int
    """Counted from 1 over all stages."""
    stage_index: int
    stage_step: int
    """Counted from 0 within the stage."""


def run(recipe: Recipe, folder: RunFolder) -> None:
    """Train; resumes at the newest checkpoint."""
    asyncio.run(until_finished(folder, "rl", lambda: _run(recipe, folder)))


def places(settings: Rl) -> list[Place]:
    """All steps of all stages."""
    found: list[Place] = []
    for index, stage in enumerate(settings.stages):
        found += [Place(len(found) + 1 + i, index, i) for i in range(stage.steps or settings.steps)]
    return found


async def _run(recipe: Recipe, folder: RunFolder) -> None:
    settings = recipe.rl
    problems = {problem.id: problem for problem in training_problems(recipe, settings.train_problems)}
    folder.remember_problems(problems.values())
    done, checkpoint = resume_point(folder, "rl")
    capacity = max(stage.limits.context_tokens for stage in settings.stages)
    async with open_policy(recipe, checkpoint or starting_point(folder), optimizer=done > 0, capacity=capacity) as policy:
        plan = places(settings)
        with Progress("rl", len(plan), "step", done=done) as progress:
            async with make_sandbox(recipe.sandbox) as sandbox:
                workshop = Workshop(
                    lambda _: policy, policy.dialect, sandbox, recipe.rollout.slots, recipe.rollout.deterministic
                )
                for place in plan[done:]:
                    stage = settings.stages[place.stage_index]
                    ids = list(problems)
                    if stage.drop_solved:
                        ids = drop_solved(ids, _history(folder, place))
                    began = time.monotonic()
                    groups, discarded = await _sample(recipe, stage, place, ids, problems, workshop)
                    sampled = time.monotonic()
                    trajectories = [t for group in groups for t in group]
                    note_faults(f"rl step {place.step}", [*trajectories, *discarded])
                    write_trajectories(folder.trajectory_file("rl", f"step_{place.step:06d}"), [*trajectories, *discarded])
                    trained = await _train(policy, settings, groups, learning_rate(settings, place.step, len(plan)))
                    seconds = {"sample_seconds": sampled - began, "train_seconds": time.monotonic() - sampled}
                    metrics = describe(groups) | trained | {name: round(value, 3) for name, value in seconds.items()}
                    rewards = defaultdict(list)
                    for trajectory in [*trajectories, *discarded]:
                        rewards[trajectory.problem_id].append(trajectory.reward)
                    folder.log(
                        "rl",
                        place.step,
                        stage_index=place.stage_index,
                        problems_left=len(ids),
                        resampled_groups=len(discarded) // settings.samples,
                        **metrics,
                        rewards=rewards,
                    )
                    if place.step % settings.checkpoint_every == 0 or place is plan[-1]:
                        await policy.save(folder.checkpoint_path("rl", place.step))
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


def _history(folder: RunFolder, place: Place) -> dict[str, list[float]]:
    """Rewards of every problem in the stages before this one, by problem id."""
    history: dict[str, list[float]] = defaultdict(list)
    for line in folder.metrics("rl"):
        if line["stage_index"] < place.stage_index:
            for problem_id, rewards in line["rewards"].items():
                history[problem_id] += rewards
    return history


async def _sample(
    recipe: Recipe, stage: RlStage, place: Place, ids: list[str], problems: dict[str, Problem], workshop: Workshop
) -> tuple[list[Group], list[Trajectory]]:
    """The groups of a step, and the trajectories of groups that were resampled away."""
    settings = recipe.rl
    drawn = choose_prompts(ids, place.stage_step, settings.prompts, derive(recipe.seed, "rl", place.stage_index))
    groups: list[Group] = []
    discarded: list[Trajectory] = []
    wanted = list(dict.fromkeys(drawn))
    for attempt in range(settings.resample_equal + 1):
        jobs = make_jobs([problems[i] for i in wanted], settings.samples, recipe.seed, "rl", place.step, attempt)
        made = await rollout_batch(jobs, workshop, stage.limits.budget(), Decoding(settings.temperature))
        fresh = [made[start : start + settings.samples] for start in range(0, len(made), settings.samples)]
        if attempt == settings.resample_equal:
            return groups + fresh, discarded
        groups += [group for group in fresh if not is_equal(group)]
        equal = [group for group in fresh if is_equal(group)]
        used = set(drawn)
        others = [i for i in ids if i not in used]
        random.Random(derive(recipe.seed, "resample", place.step, attempt)).shuffle(others)
        wanted = others[: len(equal)]
        drawn += wanted
        # Where problems run out, the equal groups that cannot be replaced stay.
        groups += equal[len(wanted) :]
        discarded += [t for group in equal[: len(wanted)] for t in group]
        if not wanted:
            return groups, discarded
    raise AssertionError("the last attempt returns")


def learning_rate(settings: Rl, step: int, steps: int) -> float:
    """The rate of a step (from 1): linear warm-up, and linear decay to ``final_rate`` of it at the last step."""
    warm = min(1.0, step / (settings.warmup_steps + 1))
    decay = 1.0 - (1.0 - settings.final_rate) * (step - 1) / max(1, steps - 1)
    return settings.learning_rate * warm * decay


def is_equal(group: Group) -> bool:
    """True where all rewards are equal: no gradient."""
    return len({trajectory.reward for trajectory in _healthy(group)}) <= 1


def _healthy(group: Group) -> Group:
    """Without attempts that failed through no doing of the policy: it is not trained on them."""
    return [trajectory for trajectory in group if trajectory.stop_reason not in FAULTS]


async def _train(policy: Policy, settings: Rl, groups: list[Group], rate: float) -> dict[str, float]:
    """One optimizer step a minibatch; minibatches without any advantage are skipped, and counted."""
    batch_tokens = sum(t.sampled_tokens for group in groups for t in group)
    size = -(-len(groups) // settings.minibatches)
    minibatches = [
        [s for group in groups[start : start + size] for s in to_samples(group, batch_tokens, settings.normalize_std)]
        for start in range(0, len(groups), size)
    ]
    minibatches = [samples for samples in minibatches if samples]
    # Log-probabilities before the first step; on the first minibatch the present ones are those.
    for index in range(1, len(minibatches)):
        old = await policy.forward(minibatches[index])
        minibatches[index] = [
            TrainingSample(s.token_ids, s.loss_mask, s.scale, s.sampler_logprobs, logprobs)
            for s, logprobs in zip(minibatches[index], old, strict=True)
        ]
    loss = Loss("ppo", settings.clip_low, settings.clip_high, settings.dual_clip, settings.importance_cap)
    adam = AdamStep(rate, **settings.adam.model_dump())
    parts: list[dict[str, float]] = []
    norms: list[float] = []
    for samples in minibatches:
        parts.append(await policy.forward_backward(samples, loss))
        norms.append((await policy.optim_step(adam))["grad_norm"])
    await policy.refresh_sampler()
    if not parts:
        return {"optimizer_steps": 0, "loss": 0.0}
    total = merge_metrics(parts)
    tokens = total["tokens"]
    return {
        "optimizer_steps": len(parts),
        "loss": total["loss"],
        "trained_tokens": tokens,
        "trained_entropy": total["entropy_sum"] / tokens,
        "clipped": (total["clipped_high"] + total["clipped_low"]) / tokens,
        "clipped_high": total["clipped_high"] / tokens,
        "clipped_low": total["clipped_low"] / tokens,
        "dual_clipped": total["dual_clipped"] / tokens,
        "kl": total["kl_sum"] / tokens,
        "importance": total["importance_sum"] / tokens,
        "importance_capped": total["importance_capped"] / tokens,
        "grad_norm": sum(norms) / len(norms),
    }


def to_samples(group: Group, batch_tokens: int, normalize_std: bool) -> list[TrainingSample]:
    """A group as training samples, scaled for the token-mean over the batch; none where all rewards are equal."""
    if is_equal(group):
        return []
    healthy = _healthy(group)
    advantages = group_advantages([t.reward for t in healthy], normalize_std)
    return [
        TrainingSample(t.token_ids, t.loss_mask, float(advantage) / batch_tokens, t.logprobs)
        for t, advantage in zip(healthy, advantages, strict=True)
        if t.sampled_tokens
    ]


def describe(groups: list[Group]) -> dict[str, Any]:
    """What a step's trajectories looked like."""
    trajectories = [t for group in groups for t in group]
    tokens = sum(t.sampled_tokens for t in trajectories)
    calls = [call for t in trajectories for call in t.calls]

    def mean(value: Callable[[Trajectory], float]) -> float:
        return sum(value(t) for t in trajectories) / len(trajectories)

    return {
        "reward": mean(lambda t: t.reward),
        "tool_calls": mean(lambda t: t.tool_calls),
        "no_call": mean(lambda t: t.tool_calls == 0),
        "call_success": sum(c.status is CallStatus.OK for c in calls) / max(1, len(calls)),
        "entropy": -sum(sum(t.logprobs) for t in trajectories) / max(1, tokens),
        "sampled_tokens": tokens,
        "tokens_per_trajectory": tokens / len(trajectories),
        "groups": len(groups),
        "equal_groups": sum(map(is_equal, groups)),
        "stop_reasons": dict(Counter(str(t.stop_reason) for t in trajectories)),
    }
