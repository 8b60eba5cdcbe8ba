"""A stage whose engine is lost goes on while it gets anywhere, and ends with one line where it does not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from aster.checkpoints import ENGINE_LOSSES, until_finished
from aster.config.recipe import Recipe
from aster.engines import EngineLost
from aster.run import RunFolder, write_trajectories
from tests.refusals import refused

STAGES = ["synthesize", "evaluate/base", "rl"]


class Unsteady:
    """A stage that loses its engine ``losses`` times, each time after a new file of attempts, a checkpoint or nothing."""

    def __init__(self, folder: RunFolder, stage: str, losses: int, gets: str) -> None:
        self._folder, self._stage, self._gets = folder, stage, gets
        self._left, self.calls = losses, 0

    async def __call__(self) -> None:
        """One attempt at the stage."""
        self.calls += 1
        if self._gets == "files":
            write_trajectories(self._folder.trajectory_file(self._stage, f"chunk_{self.calls:05d}"), [])
        elif self._gets == "checkpoints":
            self._folder.checkpoint_path(self._stage, self.calls).mkdir(parents=True)
        if self._left:
            self._left -= 1
            raise EngineLost("started again")


@pytest.mark.parametrize("gets", ["files", "checkpoints"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_gets_on_outlives_any_number_of_losses(stage: str, gets: str, tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "run", Recipe()) as folder:
        attempt = Unsteady(folder, stage, 3 * ENGINE_LOSSES, gets)
        asyncio.run(until_finished(folder, stage, attempt))
    assert attempt.calls == 3 * ENGINE_LOSSES + 1


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_does_not_get_on_ends(stage: str, tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "run", Recipe()) as folder:
        attempt = Unsteady(folder, stage, 3 * ENGINE_LOSSES, "nothing")
        with refused(stage, f" {ENGINE_LOSSES} ", "started again"):
            asyncio.run(until_finished(folder, stage, attempt))
    assert attempt.calls == ENGINE_LOSSES
