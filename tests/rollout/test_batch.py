"""Many rollouts at once: order, bounds, waves, and repeatability with a real policy."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from aster.config import EngineConfig, Model, Rollout
from aster.engines import Completion, EngineLost, SamplingParams
from aster.engines.local.engine import LocalEngine
from aster.environments.lab import generate
from aster.rollout import Decoding, Job, RolloutContext, Rollouts, rollout_batch
from aster.types import Budget, Problem, StopReason, Trajectory
from tests.rollout.scripted import DIALECT, WIDE, ScriptedFakeSampler, turn
from tests.shop_fixture import Shop


def jobs(count: int) -> list[Job]:
    return [Job(Problem(f"p{index}", "?", str(index)), index % 3, index) for index in range(count)]


def answering(job: Job) -> ScriptedFakeSampler:
    """Calls once, then answers the job's number; later jobs are quicker."""
    number = job.seed
    return ScriptedFakeSampler([turn("x", "", f"{number}"), turn("y", f"\\boxed{{{number}}}")], seconds=0.01 * (8 - number))


@dataclass
class Gauge:
    """Counts how many fake samplers are open."""

    now: int = 0
    most: int = 0


class GaugedFakeSampler(ScriptedFakeSampler):
    gauge: Gauge

    def open(self, sequence: str) -> None:
        super().open(sequence)
        self.gauge.now += 1
        self.gauge.most = max(self.gauge.most, self.gauge.now)

    def release(self, sequence: str) -> None:
        super().release(sequence)
        self.gauge.now -= 1


@pytest.mark.parametrize("deterministic", [False, True])
def test_trajectories_come_in_the_jobs_order_and_done_sees_each_as_it_finishes(shop: Shop, deterministic: bool) -> None:
    finished: list[Trajectory] = []
    context = RolloutContext(answering, DIALECT, shop.environment, concurrency=8, deterministic=deterministic)
    made = shop.run(rollout_batch(jobs(8), context, WIDE, Decoding(), finished.append))
    assert [(t.problem_id, t.sample, t.seed) for t in made] == [(j.problem.id, j.sample, j.seed) for j in jobs(8)]
    assert all(t.reward == 1.0 for t in made)
    assert finished != made
    assert sorted(finished, key=lambda t: t.seed) == made
    assert finished[0].seed > finished[-1].seed


@pytest.mark.parametrize("deterministic", [False, True])
def test_no_more_than_concurrency_are_under_way(shop: Shop, deterministic: bool) -> None:
    gauge = Gauge()

    def sampler_for(job: Job) -> ScriptedFakeSampler:
        sampler = GaugedFakeSampler([turn("y", f"\\boxed{{{job.seed}}}")], seconds=0.002)
        sampler.gauge = gauge
        return sampler

    context = RolloutContext(sampler_for, DIALECT, shop.environment, concurrency=3, deterministic=deterministic)
    assert len(shop.run(rollout_batch(jobs(10), context, WIDE, Decoding()))) == 10
    assert (gauge.now, gauge.most) == (0, 3)


def test_waves_do_not_overlap(shop: Shop) -> None:
    order: list[str] = []

    class NotingFakeSampler(ScriptedFakeSampler):
        def open(self, sequence: str) -> None:
            order.append(sequence)

        def release(self, sequence: str) -> None:
            order.append(f"end {sequence}")

    def sampler_for(job: Job) -> ScriptedFakeSampler:
        return NotingFakeSampler([turn("y", "\\boxed{1}")], seconds=0.01 * (job.seed % 3))

    context = RolloutContext(sampler_for, DIALECT, shop.environment, concurrency=3, deterministic=True)
    shop.run(rollout_batch(jobs(7), context, WIDE, Decoding()))
    begins = [name for name in order if not name.startswith("end")]
    assert begins == sorted(begins)
    assert len(set(begins)) == 7
    for wave in (order[0:6], order[6:12], order[12:14]):
        half = len(wave) // 2
        assert sorted(f"end {name}" for name in wave[:half]) == sorted(wave[half:])


def test_what_ends_all_attempts_is_raised_once_and_nothing_is_left_to_complain(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    def sampler_for(_: Job) -> ScriptedFakeSampler:
        return ScriptedFakeSampler([EngineLost("gone")])

    async def work() -> None:
        async with Rollouts(RolloutContext(sampler_for, DIALECT, shop.environment, 8)) as rollouts:
            tasks = [rollouts.start(job, WIDE, Decoding()) for job in jobs(6)]
            await asyncio.wait(tasks)
            with pytest.raises(EngineLost, match="gone"):
                tasks[0].result()

    shop.run(work())
    gc.collect()
    assert not [record for record in caplog.records if "never retrieved" in record.getMessage()]


def test_one_bad_attempt_leaves_the_others_alone(shop: Shop) -> None:
    def sampler_for(job: Job) -> ScriptedFakeSampler:
        return ScriptedFakeSampler([ValueError("bad")]) if job.seed == 2 else answering(job)

    made = shop.run(rollout_batch(jobs(5), RolloutContext(sampler_for, DIALECT, shop.environment, 8), WIDE, Decoding()))
    assert [t.stop_reason for t in made] == [StopReason.ENGINE_ERROR if i == 2 else StopReason.ANSWERED for i in range(5)]


class CallingPolicy:
    """A real policy whose every sampled turn is followed by a scripted call, so that a random model has a dialogue.

    The turn's tokens and log-probabilities are the policy's; the call is appended to them.
    """

    def __init__(self, policy: LocalEngine) -> None:
        self.policy = policy
        self.open, self.release = policy.open, policy.release

    async def sample(self, token_ids: list[int], params: SamplingParams) -> Completion:
        """A few sampled tokens, then a call that takes a while."""
        call = DIALECT.turn_ids("", "", ["import time, random\ntime.sleep(0.03 * random.random())\nv = 1\nv"])
        made = await self.policy.sample(token_ids, replace(params, max_tokens=6))
        return Completion(made.token_ids + call, made.logprobs + [0.0] * len(call), stopped=True)


def test_a_deterministic_batch_repeats_to_the_bit(shop: Shop, lab_folder: Path) -> None:
    """Whatever the tools' timing; there are fewer slots than trajectories."""

    def make() -> LocalEngine:
        settings = EngineConfig(
            model=Model(path=str(lab_folder), device="cpu", threads=1),
            rollout=Rollout(slots=4, cache_tokens=1 << 13, deterministic=True),
        )
        return LocalEngine(settings, capacity=512)

    problems = generate({"chain": 1.0, "hunt": 1.0}, (2, 6), "train", 5, seed=0)
    todo = [Job(problem, sample, 10 * index + sample) for index, problem in enumerate(problems) for sample in range(2)]
    budget = Budget(context_tokens=500, turn_tokens=100, tool_calls=3, turns=4, wall_seconds=60)

    async def once(policy: LocalEngine) -> list[tuple[list[int], list[float]]]:
        calling = CallingPolicy(policy)
        context = RolloutContext(lambda _: calling, policy.dialect, shop.environment, concurrency=6, deterministic=True)
        made = await asyncio.wait_for(rollout_batch(todo, context, budget, Decoding()), 60)
        assert sum(t.tool_calls for t in made) >= 2 * len(todo)
        return [(t.token_ids, t.logprobs) for t in made]

    assert shop.run(once(make())) == shop.run(once(make()))
