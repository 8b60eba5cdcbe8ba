"""What several stages need: the problems of a recipe, seeded jobs, checkpoints."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from aster.config import Problems
from aster.config.recipe import Recipe
from aster.data.problems import choose_problems, load_problems
from aster.engines import EngineLost
from aster.environments.lab import generate
from aster.errors import UserError, one_line
from aster.rollout import Job
from aster.run import RunFolder
from aster.seeds import derive
from aster.terminal import say
from aster.types import FAULTS, Problem, Trajectory

LAB = "lab"
ENGINE_LOSSES = 3
"""Times the engine may be lost at one step before the stage gives up."""


def training_problems(recipe: Recipe, count: int) -> list[Problem]:
    """``count`` training problems; of a file, a seeded choice, or all if it has fewer."""
    return _problems(recipe.problems, recipe.problems.train, "train", count, recipe.seed)


def teaching_problems(recipe: Recipe, count: int, first: int | None = None) -> list[Problem]:
    """Problems for the teacher: the training problems, unless the recipe names others. The choice of ``first`` is in them."""
    source = recipe.problems.teach or recipe.problems.train
    return _problems(recipe.problems, source, "train", count, derive(recipe.seed, "teach"), first)


def evaluation_problems(recipe: Recipe, count: int) -> list[Problem]:
    """Held-out problems. The lab's are the same for every seed of a recipe, so that runs can be compared."""
    return _problems(recipe.problems, recipe.problems.evaluate, "test", count, 0)


def _problems(settings: Problems, source: str, split: str, count: int, seed: int, first: int | None = None) -> list[Problem]:
    if source == LAB:
        try:
            fewest, most = settings.levels
            # Those of a lower count come first.
            return generate(settings.families, (fewest, most), "test" if split == "test" else "train", count, seed)
        except ValueError as error:
            raise UserError(f"problems: {error}") from None
    columns = {str(name): column for name, column in settings.columns.items()}
    return choose_problems(load_problems(source, settings.prompt_suffix, columns), count, seed, first)


def make_jobs(problems: list[Problem], samples: int, *seed_parts: int | str) -> list[Job]:
    """``samples`` attempts at each problem; a seed belongs to (parts, problem, sample), never to an order."""
    return [Job(p, k, derive(*seed_parts, p.id, k)) for p in problems for k in range(samples)]


def note_faults(stage: str, trajectories: list[Trajectory]) -> None:
    """Say how many attempts failed through no doing of the policy. UserError where all did: results would mean nothing."""
    faulty = [t for t in trajectories if t.stop_reason in FAULTS]
    if not faulty:
        return
    first = one_line(faulty[0].error, None)
    if len(faulty) == len(trajectories):
        raise UserError(f"{stage}: every one of {len(faulty)} attempts failed, the first with {faulty[0].stop_reason}: {first}")
    say(f"{stage}: {len(faulty)} of {len(trajectories)} attempts failed, the first with {faulty[0].stop_reason}: {first}")


async def until_finished(folder: RunFolder, stage: str, attempt: Callable[[], Awaitable[None]]) -> None:
    """Run a stage; where the engine loses the policy, run it again: it resumes at its newest checkpoint or file of attempts.

    UserError where the engine is lost time and again without progress between: neither a new checkpoint nor a new file of
    attempts, which is all that synthesis and evaluation have."""
    losses: list[tuple[Path | None, int]] = []
    while True:
        try:
            return await attempt()
        except EngineLost as error:
            lost = error
        say(f"{stage}: {lost}")
        newest = folder.checkpoints(stage)
        # A file of attempts appears when it is whole, so the number of files is that of the attempts made, in files.
        files = sum(1 for _ in folder.trajectory_file(stage, "any").parent.glob("*.jsonl.gz"))
        losses.append((newest[-1][1] if newest else None, files))
        if losses.count(losses[-1]) == ENGINE_LOSSES:
            raise UserError(
                f"{stage}: the engine was lost {ENGINE_LOSSES} times at the same step, the last time: {lost}"
            ) from lost


def final_checkpoint(folder: RunFolder, stage: str) -> Path | None:
    """The newest checkpoint of a finished stage, or None where the stage was skipped or has not finished."""
    if folder.summary(stage) is None:
        return None
    checkpoints = folder.checkpoints(stage)
    return checkpoints[-1][1] if checkpoints else None


def starting_point(folder: RunFolder) -> Path | None:
    """Where RL starts: the SFT checkpoint, or None for the base model (a cold start without SFT)."""
    return final_checkpoint(folder, "sft")


def resume_point(folder: RunFolder, stage: str) -> tuple[int, Path | None]:
    """How many steps of a stage are done and the checkpoint to go on from; says so, and drops what is past it."""
    logged = {line["step"] for line in folder.metrics(stage)}
    done: int = 0
    path: Path | None = None
    for step, checkpoint in folder.checkpoints(stage):
        # A line is written before its checkpoint. Where one is missing all the same, the steps are done again: what comes later
        # (which problems are solved) reads the lines.
        if logged.issuperset(range(1, step + 1)):
            done, path = step, checkpoint
    folder.forget_checkpoints(stage, done)
    folder.forget_metrics(stage, done)
    if done:
        say(f"{stage}: resuming after step {done}")
    return done, path
