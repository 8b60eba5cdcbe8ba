"""Where a stage begins again: its newest checkpoint, after an interrupt or where the engine was lost; and what failed is
said."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from aster.engines import EngineLost
from aster.errors import UserError, one_line
from aster.run import RunFolder
from aster.terminal import say
from aster.types import FAULTS, Trajectory

ENGINE_LOSSES = 3
"""Times the engine may be lost at one step before the stage gives up."""


def note_faults(stage: str, trajectories: list[Trajectory]) -> None:
    """Report how many attempts failed because of an engine, a sandbox or an environment. UserError where all did: results would
    mean nothing."""
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
        files = sum(1 for _ in (folder.path / stage).glob("*/*.jsonl.gz"))
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
