"""The plan of SFT: which trajectories in which optimizer step, at which rate."""

from __future__ import annotations

import pytest

from aster.config import Sft, SftStage
from aster.config.recipe import Recipe
from aster.sft import make_plan, to_samples
from aster.types import CallStatus, ToolCall, Trajectory
from tests.refusals import refused


def attempt(name: str, calls: int, sampled: int) -> Trajectory:
    made = Trajectory(name, 0, 0, reward=1.0)
    made.append("prompt", [1])
    made.append("assistant", [2] * sampled, [0.0] * sampled).calls += [ToolCall("1", CallStatus.OK, "1", 0.0)] * calls
    return made


KEPT = [attempt(str(index), index % 4, 10 + index) for index in range(20)]


def recipe(*stages: SftStage, warmup: int = 0, seed: int = 1) -> Recipe:
    return Recipe(seed=seed, sft=Sft(stages=list(stages), warmup_steps=warmup))


def test_an_epoch_holds_everything_once_in_a_shuffled_order() -> None:
    plan, left_out = make_plan(recipe(SftStage(epochs=2, batch=8)), KEPT)
    assert left_out == 0
    assert [len(step.trajectories) for step in plan] == [8, 8, 4, 8, 8, 4]
    names = [made.problem_id for step in plan for made in step.trajectories]
    first, second = names[:20], names[20:]
    assert sorted(first) == sorted(second) == sorted(made.problem_id for made in KEPT)
    assert first != second


def test_the_plan_is_the_seeds() -> None:
    def names(seed: int) -> list[list[str]]:
        plan, _ = make_plan(recipe(SftStage(epochs=1, batch=8), seed=seed), KEPT)
        return [[made.problem_id for made in step.trajectories] for step in plan]

    assert names(1) == names(1)
    assert names(1) != names(2)


def test_arms_train_on_the_same_number_of_tokens() -> None:
    stage = SftStage(trained_tokens=1000, batch=4)
    for kept in (KEPT, KEPT[:3], [attempt(str(index), 1, 200) for index in range(40)]):
        plan, _ = make_plan(recipe(stage), kept)
        tokens = [sum(made.sampled_tokens for made in step.trajectories) for step in plan]
        assert sum(tokens) >= 1000 > sum(tokens[:-1])


def test_stages_choose_by_density_and_length() -> None:
    plan, left_out = make_plan(
        recipe(SftStage(epochs=1, batch=50, context_tokens=20), SftStage(epochs=1, batch=50, min_calls=2)), KEPT
    )
    assert [step.stage for step in plan] == [0, 1]
    assert {len(made.token_ids) for made in plan[0].trajectories} == set(range(11, 21))
    assert left_out == 10
    assert {made.tool_calls for made in plan[1].trajectories} == {2, 3}


def test_a_stage_without_trajectories_is_refused() -> None:
    with refused("sft.stages.1", " 20 ", " 9 ", " 32768 "):
        make_plan(recipe(SftStage(), SftStage(min_calls=9)), KEPT)


def test_every_stage_warms_up() -> None:
    stage = SftStage(epochs=1, batch=5, learning_rate=0.3)
    plan, _ = make_plan(recipe(stage, stage, warmup=2), KEPT)
    assert [step.learning_rate for step in plan] == pytest.approx([0.1, 0.2, 0.3, 0.3] * 2)


def test_the_loss_of_a_batch_is_the_mean_over_its_trained_tokens() -> None:
    samples = to_samples(KEPT[:3])
    assert sum(sum(sample.trained_weights) for sample in samples) == pytest.approx(1.0)
    assert {sample.weights for sample in samples} == {1 / 33}
