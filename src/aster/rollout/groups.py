"""RL's batches: the groups of a step, sampled within a wall-time budget, and those that are carried over to the next step.

A group is trained on when all its trajectories have ended. Where ``rl.batch_seconds`` are over before that, it is carried
over: its trajectories go on where they are, session and tokens kept, and it joins the first later batch it is finished for.
Partial rollouts, as in Kimi k1.5 (arXiv 2501.12599). Nothing is dropped: the last batch of a stage waits for all.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from typing import Any

from aster.algorithms.base import Group, is_equal
from aster.algorithms.prompts import choose_prompts
from aster.config import Rl, RlStage
from aster.rollout import Decoding, Rollouts, make_jobs
from aster.rollout.schedule import Place
from aster.seeds import derive
from aster.terminal import say
from aster.types import Problem, Trajectory


@dataclass(frozen=True, slots=True)
class Batch:
    """What a step trains on."""

    place: Place
    groups: list[Group]
    discarded: list[Trajectory]
    """Of groups that were resampled away."""
    staleness: list[int]
    """For each group, the steps between the weights it was begun with and those it is trained on."""
    carried: list[dict[str, Any]]
    """Groups that go over to the next batch, by what is needed to sample them again."""
    unfinished: int
    """Trajectories of those groups that have not ended."""
    problems_left: int
    """Problems the prompts were drawn from."""
    seconds: float

    @property
    def trajectories(self) -> list[Trajectory]:
        """All of them, the discarded ones last."""
        return [trajectory for group in self.groups for trajectory in group] + self.discarded

    def describe(self, samples: int) -> dict[str, Any]:
        """How the batch was made, for the log. ``samples``: trajectories of a group."""
        return {
            "stage_index": self.place.stage_index,
            "problems_left": self.problems_left,
            "resampled_groups": len(self.discarded) // samples,
            "staleness": sum(self.staleness) / len(self.staleness),
            "staleness_max": max(self.staleness),
            "carried": self.carried,
            "carried_trajectories": self.unfinished,
            "sample_seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, slots=True)
class Pending:
    """A group under way."""

    problem: Problem
    begun: int
    """The step it was drawn for."""
    attempt: int
    """Which of the step's draws."""
    version: int
    """Steps the weights had been trained for when it was begun."""
    tasks: list[asyncio.Task[Trajectory]]

    @property
    def finished(self) -> bool:
        """Whether every trajectory has ended."""
        return all(task.done() for task in self.tasks)

    def group(self) -> Group:
        """Its trajectories; raises what ended a task."""
        return [task.result() for task in self.tasks]

    def record(self) -> dict[str, Any]:
        """What a resumed run needs to sample it again."""
        return {"problem_id": self.problem.id, "begun": self.begun, "attempt": self.attempt}


class GroupSampler:
    """Samples the batches of a run, one after the other."""

    def __init__(self, settings: Rl, seed: int, problems: dict[str, Problem], rollouts: Rollouts) -> None:
        """``seed`` is the run's; ``problems`` are all that prompts may be drawn from, by id."""
        self.settings, self.seed = settings, seed
        self.problems, self.rollouts = problems, rollouts
        self.carried: list[Pending] = []
        self.lost: list[dict[str, Any]] = []
        """Groups that an interrupt cut off, as :meth:`Pending.record` has them."""

    def recall(self, lost: list[dict[str, Any]]) -> None:
        """Sample these groups again with the next batch."""
        self.lost = [record for record in lost if record["problem_id"] in self.problems]
        if self.lost:
            say(f"rl: {len(self.lost)} groups that were carried over are sampled again")

    async def sample(self, place: Place, ids: list[str], version: int, *, wait: bool) -> Batch:
        """The batch of a step, its prompts drawn from ``ids``, with weights trained for ``version`` steps. ``wait``: for every
        trajectory, however long it takes."""
        settings, stage = self.settings, self.settings.stages[place.stage_index]
        began = time.monotonic()
        deadline = None if wait or settings.batch_seconds is None else began + settings.batch_seconds
        under_way, self.carried = self.carried, []
        for record in self.lost:
            under_way += await self._start(
                [self.problems[record["problem_id"]]], record["begun"], record["attempt"], version, stage
            )
        self.lost = []
        drawn = choose_prompts(ids, place.stage_step, settings.prompts, derive(self.seed, "rl", place.stage_index))
        wanted = list(dict.fromkeys(drawn))
        kept: list[Pending] = []
        discarded: list[Trajectory] = []
        for attempt in range(settings.resample_equal + 1):
            fresh = await self._start([self.problems[i] for i in wanted], place.step, attempt, version, stage)
            await self._wait(under_way + kept + fresh, place.step, deadline)
            if attempt == settings.resample_equal or not all(pending.finished for pending in fresh):
                kept += fresh
                break
            equal = [pending for pending in fresh if is_equal(pending.group())]
            kept += [pending for pending in fresh if pending not in equal]
            used = set(drawn)
            others = [i for i in ids if i not in used]
            random.Random(derive(self.seed, "resample", place.step, attempt)).shuffle(others)
            wanted = others[: len(equal)]
            drawn += wanted
            # Where problems run out, the equal groups that cannot be replaced stay.
            kept += equal[len(wanted) :]
            discarded += [t for pending in equal[: len(wanted)] for t in pending.group()]
            if not wanted:
                break
        whole = under_way + kept
        finished = [pending for pending in whole if pending.finished]
        self.carried = [pending for pending in whole if not pending.finished]
        return Batch(
            place,
            [pending.group() for pending in finished],
            discarded,
            [place.step - 1 - pending.version for pending in finished],
            [pending.record() for pending in self.carried],
            sum(not task.done() for pending in self.carried for task in pending.tasks),
            len(ids),
            time.monotonic() - began,
        )

    async def _start(self, problems: list[Problem], begun: int, attempt: int, version: int, stage: RlStage) -> list[Pending]:
        """Begin a group for each problem. Seeds belong to the step and attempt they are drawn for."""
        size = self.settings.samples
        jobs = make_jobs(problems, size, self.seed, "rl", begun, attempt)
        tasks: list[asyncio.Task[Trajectory]] = []
        for wave in self.rollouts.context.waves(jobs):
            started = [self.rollouts.start(job, stage.limits.budget(), Decoding(self.settings.temperature)) for job in wave]
            if self.rollouts.context.deterministic:
                await asyncio.gather(*started)
            tasks += started
        return [
            Pending(problem, begun, attempt, version, tasks[index * size : (index + 1) * size])
            for index, problem in enumerate(problems)
        ]

    async def _wait(self, groups: list[Pending], step: int, deadline: float | None) -> None:
        """Until all have ended, or the deadline; past it for groups that were carried as often as they may be, and for at least
        one group."""
        tasks = [task for pending in groups for task in pending.tasks]
        if deadline is None:
            await asyncio.gather(*tasks)
            return
        await _within(tasks, max(0.0, deadline - time.monotonic()))
        overdue = [pending for pending in groups if step - pending.begun >= self.settings.carry_steps]
        await asyncio.gather(*(task for pending in overdue for task in pending.tasks))
        while not any(pending.finished for pending in groups):
            await _within([task for task in tasks if not task.done()], None, asyncio.FIRST_COMPLETED)


async def _within(tasks: list[asyncio.Task[Trajectory]], seconds: float | None, until: str = asyncio.FIRST_EXCEPTION) -> None:
    """Wait for tasks; raises what ended one."""
    done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=until)
    for task in done:
        task.result()
