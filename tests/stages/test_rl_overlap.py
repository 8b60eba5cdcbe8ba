"""Batches with a budget of wall time, and batches sampled during training: nothing lost, nothing twice, staleness told."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from aster import rl
from aster.run import RunFolder, read_trajectories
from aster.types import StopReason
from tests.refusals import refused
from tests.stages.runs import LIMITS, Tiny, lines, reported

SAMPLES = 4
CHANGES: dict[str, Any] = {
    "cold_start": "zero",
    "rollout.deterministic": False,
    "rl.prompts": 4,
    "rl.samples": SAMPLES,
    "rl.learning_rate": 1e-4,
    "rl.stages": [{"steps": 4, "limits": LIMITS}, {"steps": 3, "limits": LIMITS}],
}


def train(tiny: Tiny, path: Path, changes: dict[str, Any]) -> Path:
    recipe = tiny.recipe({**CHANGES, **changes})
    with RunFolder.open(path, recipe, []) as folder:
        rl.run(recipe, folder)
    return path


def attempts(run: Path) -> Counter[tuple[str, int, int]]:
    """How often each (problem, sample, seed) was trained on; every one of them has ended."""
    made = [t for file in sorted((run / "rl" / "trajectories").glob("step_*")) for t in read_trajectories(file)]
    assert all(t.stop_reason in (StopReason.ANSWERED, StopReason.TOKEN_BUDGET, StopReason.CALL_BUDGET) for t in made)
    return Counter((t.problem_id, t.sample, t.seed) for t in made)


@pytest.fixture
def late(tmp_path: Path) -> dict[str, Any]:
    """Settings under which groups are carried over on any machine: half of the problems are scored half a second late."""
    code = """
        import asyncio
        from aster.environments import PythonMath

        async def reward(attempt):
            if int(attempt.problem.id.rpartition("-")[2]) % 2:
                await asyncio.sleep(0.5)
            return await PythonMath().score(attempt)
        """
    (tmp_path / "late.py").write_text(textwrap.dedent(code))
    return {"rl.batch_seconds": 0.001, "environment.reward": f"{tmp_path}/late.py:reward"}


def test_groups_that_are_not_finished_in_time_go_over_to_later_batches(
    tiny: Tiny, late: dict[str, Any], tmp_path: Path
) -> None:
    run = train(tiny, tmp_path / "run", {**late, "rl.carry_steps": 2})
    steps = lines(run, "rl")
    assert [line["step"] for line in steps] == list(range(1, 8))
    made = attempts(run)
    assert set(made.values()) == {1}, "an attempt was trained on twice"
    # Every attempt that the plain run makes, in batches of other sizes.
    assert made == attempts(train(tiny, tmp_path / "plain", {}))
    assert sum(line["groups"] for line in steps) == 7 * 4
    carried = [len(line["carried"]) for line in steps]
    assert sum(carried) > 0
    assert all(line["carried_trajectories"] >= len(line["carried"]) for line in steps)
    assert carried[3] == carried[6] == 0, "the last batch of a stage waits for all"
    assert max(line["staleness_max"] for line in steps) >= 1
    assert all(line["staleness_max"] <= 2 for line in steps)
    # Tokens of older weights are seen as such by the trainer, and corrected for.
    stale = [line for line in steps if line["staleness_max"] and line["optimizer_steps"]]
    assert all(line["importance"] == pytest.approx(1.0, abs=0.2) for line in stale)


def test_carried_groups_outlive_an_interrupt(
    tiny: Tiny, late: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(tiny, tmp_path / "whole", {**late, "rl.checkpoint_every": 1})
    # The run as an interrupt leaves it after its last step but one, of which the checkpoint is still there.
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    step = 6
    shutil.rmtree(run / "rl" / "checkpoints" / "step_000007")
    (run / "rl" / "summary.json").unlink()
    file = run / "metrics.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:step]))
    carried = lines(run, "rl")[-1]["carried"]
    assert carried, "nothing was carried over"
    capsys.readouterr()
    train(tiny, run, {**late, "rl.checkpoint_every": 1})
    said = capsys.readouterr().err
    assert reported(said, "rl", f"step {step}")
    assert re.search(rf"^rl: {len(carried)} groups\b", said, re.MULTILINE)
    assert attempts(run) == attempts(whole)


def test_overlapped_the_next_batch_is_sampled_with_the_weights_before(tiny: Tiny, tmp_path: Path) -> None:
    run = train(tiny, tmp_path / "run", {"rl.max_staleness": 1, "rl.learning_rate": 1e-3})
    steps = lines(run, "rl")
    assert [line["staleness"] for line in steps] == [0, 1, 1, 1, 0, 1, 1]
    assert attempts(run) == attempts(train(tiny, tmp_path / "plain", {}))
    on_policy = [line["importance"] for line in steps if line["staleness"] == 0 and line["optimizer_steps"]]
    stale = [line["importance"] for line in steps if line["staleness"] == 1 and line["optimizer_steps"]]
    # With minibatches, what the second one calls old are the present weights: the sampler's differ by the steps between.
    assert all(value == pytest.approx(1.0, abs=1e-4) for value in on_policy)
    assert stale
    assert max(abs(value - 1.0) for value in stale) > 1e-4


def test_a_fixed_schedule_has_no_overlap(tiny: Tiny) -> None:
    for field in ({"rl.max_staleness": 1}, {"rl.batch_seconds": 1.0}):
        with refused("rollout.deterministic", "rl.max_staleness", "rl.batch_seconds"):
            tiny.recipe({"rollout.deterministic": True, **field})
