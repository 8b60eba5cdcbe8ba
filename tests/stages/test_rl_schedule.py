"""The order of sampling and training: what may run beside what, and how stale a batch can be."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aster.config import Rl, RlStage
from aster.rollout.schedule import Place, places, run_pipelined


@dataclass
class Engine:
    """Notes what a schedule does with it; sampling and training take seeded moments."""

    rng: random.Random
    trained: int
    version: int
    """Of the sampler's weights."""
    events: list[str] = field(default_factory=list)
    staleness: dict[int, int] = field(default_factory=dict)
    sampling: bool = False
    training: bool = False
    together: int = 0

    async def moment(self) -> None:
        for _ in range(self.rng.randrange(6)):
            self.together += self.sampling and self.training
            await asyncio.sleep(0)

    async def sample(self, place: Place, version: int) -> tuple[Place, int]:
        assert not self.sampling
        assert version == self.version, "the schedule believes in other weights than the sampler has"
        if place.stage_step == 0:
            assert self.trained == place.step - 1, "a stage began before the stages before it were trained"
        self.sampling = True
        self.events.append(f"sample {place.step}")
        await self.moment()
        self.sampling = False
        return place, version

    async def train(self, batch: tuple[Place, int]) -> None:
        assert not self.training
        place, version = batch
        assert place.step == self.trained + 1
        self.training = True
        self.events.append(f"train {place.step}")
        self.staleness[place.step] = self.trained - version
        await self.moment()
        self.trained += 1
        self.training = False

    async def refresh(self) -> None:
        assert not self.sampling
        assert not self.training
        self.version = self.trained


def play(stages: list[int], done: int, max_staleness: int, seed: int) -> Engine:
    plan = places(Rl(stages=[RlStage(steps=steps) for steps in stages]))
    engine = Engine(random.Random(seed), done, done)

    async def main() -> None:
        async for batch in run_pipelined(plan, done, max_staleness, sample=engine.sample, refresh=engine.refresh):
            await engine.train(batch)

    asyncio.run(asyncio.wait_for(main(), 20))
    assert engine.trained == len(plan)
    assert sorted(engine.events) == sorted(f"{verb} {place.step}" for place in plan[done:] for verb in ("sample", "train"))
    return engine


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=3), st.data(), st.integers(0, 4), st.integers(0, 1 << 30))
def test_every_step_is_sampled_and_trained_once_in_order_and_never_staler_than_allowed(
    stages: list[int], data: st.DataObject, max_staleness: int, seed: int
) -> None:
    engine = play(stages, data.draw(st.integers(0, sum(stages))), max_staleness, seed)
    assert all(0 <= stale <= max_staleness for stale in engine.staleness.values())
    if max_staleness == 0:
        steps = sorted(engine.staleness)
        assert engine.events == [event for step in steps for event in (f"sample {step}", f"train {step}")]
        assert engine.together == 0


def test_with_staleness_one_the_next_batch_is_sampled_during_training() -> None:
    engine = play([8], 0, 1, 3)
    assert engine.staleness == {1: 0, **dict.fromkeys(range(2, 9), 1)}
    assert engine.together > 0


async def no_refresh() -> None:
    """Nothing to refresh."""


def test_a_sampling_that_fails_during_training_ends_the_run_after_it() -> None:
    trained: list[int] = []

    async def sample(place: Place, _version: int) -> Place:
        if place.step > 1:
            raise ValueError("no second batch")
        return place

    async def main() -> None:
        async for place in run_pipelined(plan, 0, 1, sample=sample, refresh=no_refresh):
            await asyncio.sleep(0.01)
            trained.append(place.step)

    plan = places(Rl(stages=[RlStage(steps=4)]))
    with pytest.raises(ValueError, match="no second batch"):
        asyncio.run(asyncio.wait_for(main(), 20))
    assert trained == [1]


def test_a_training_that_fails_ends_the_sampling_beside_it() -> None:
    ended: list[str] = []

    async def sample(place: Place, _version: int) -> Place:
        if place.step > 1:
            try:
                await asyncio.sleep(60)
            finally:
                ended.append("sample")
        return place

    async def main() -> None:
        async with aclosing(run_pipelined(plan, 0, 1, sample=sample, refresh=no_refresh)) as batches:
            async for _ in batches:
                await asyncio.sleep(0.01)
                raise ValueError("train")

    plan = places(Rl(stages=[RlStage(steps=4)]))
    with pytest.raises(ValueError, match="train"):
        asyncio.run(asyncio.wait_for(main(), 20))
    assert ended == ["sample"]
