"""Finds the checkpoint from which a stage resumes, after an interrupt or a lost engine, and reports failed attempts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from aster.engines import EngineLost
from aster.errors import UserError, one_line
from aster.run import RunFolder
from aster.terminal import say
from aster.types import FAULTS, Trajectory

ENGINE_LOSSES = 3
"""How often the engine may be lost at the same step before the stage ends with an error."""


def note_faults(stage: str, trajectories: list[Trajectory]) -> None:
    """Report how many attempts failed because of an engine, a sandbox or an environment. Raises UserError where all of them
    failed, because the results would mean nothing."""
    faulty = [t for t in trajectories if t.stop_reason in FAULTS]
    if not faulty:
        return
    first = one_line(faulty[0].error, None)
    if len(faulty) == len(trajectories):
        raise UserError(f"{stage}: every one of {len(faulty)} attempts failed, the first with {faulty[0].stop_reason}: {first}")
    say(f"{stage}: {len(faulty)} of {len(trajectories)} attempts failed, the first with {faulty[0].stop_reason}: {first}")


async def until_finished(folder: RunFolder, stage: str, attempt: Callable[[], Awaitable[None]]) -> None:
    """Run a stage. Where the engine loses the policy, run the stage again; it resumes at its newest checkpoint or file of
    attempts.

    Raises UserError where the engine is lost :data:`ENGINE_LOSSES` times without progress between: no new checkpoint, and no
    new file of attempts (synthesis and evaluation have only those)."""
    losses: list[tuple[Path | None, int]] = []
    while True:
        try:
            return await attempt()
        except EngineLost as error:
            lost = error
        say(f"{stage}: {lost}")
        newest = folder.checkpoints(stage)
        # A file of attempts appears only when it is complete, so the number of files measures progress.
        files = sum(1 for _ in (folder.path / stage).glob("*/*.jsonl.gz"))
        losses.append((newest[-1][1] if newest else None, files))
        if losses.count(losses[-1]) == ENGINE_LOSSES:
            raise UserError(
                f"{stage}: the engine was lost {ENGINE_LOSSES} times at the same step, the last time: {lost}"
            ) from lost


def final_checkpoint(folder: RunFolder, stage: str) -> Path | None:
    """The newest checkpoint of a finished stage. None where the stage was skipped or has not finished."""
    if folder.summary(stage) is None:
        return None
    checkpoints = folder.checkpoints(stage)
    return checkpoints[-1][1] if checkpoints else None


def starting_point(folder: RunFolder) -> Path | None:
    """The checkpoint from which RL starts: that of SFT. None for the base model (a cold start without SFT)."""
    return final_checkpoint(folder, "sft")


def resume_point(folder: RunFolder, stage: str) -> tuple[int, Path | None]:
    """The number of finished steps of a stage, and the checkpoint to resume from. Reports it, and deletes metrics and
    checkpoints of later steps."""
    logged = {line["step"] for line in folder.metrics(stage)}
    done: int = 0
    path: Path | None = None
    for step, checkpoint in folder.checkpoints(stage):
        # A step's metrics are written before its checkpoint. If a line is missing nevertheless, repeat the steps, because later
        # code reads the lines (to know which problems are solved).
        if logged.issuperset(range(1, step + 1)):
            done, path = step, checkpoint
    folder.forget_checkpoints(stage, done)
    folder.forget_metrics(stage, done)
    if done:
        say(f"{stage}: resuming after step {done}")
    return done, path
