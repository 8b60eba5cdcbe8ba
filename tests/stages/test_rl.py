"""RL's own logic: groups, minibatches, the curriculum, limits by stage, and what has no gradient."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aster import rl
from aster.algorithms import Grpo, is_equal, to_samples
from aster.checkpoints import note_faults
from aster.config import Rl, RlStage
from aster.rollout.schedule import places
from aster.run import RunFolder, read_trajectories
from aster.types import StopReason, Trajectory
from tests.refusals import refused
from tests.stages.runs import LIMITS, Tiny, lines

Run = Callable[[dict[str, Any]], Path]


@pytest.fixture
def train(tiny: Tiny, tmp_path: Path) -> Run:
    """Runs RL alone, from the base model."""

    def run(changes: dict[str, Any]) -> Path:
        recipe = tiny.recipe({"cold_start": "zero", **changes})
        with RunFolder.open(tmp_path / "run", recipe, []) as folder:
            rl.run(recipe, folder)
        return tmp_path / "run"

    return run


def problems(path: Path, fair: int, impossible: int) -> str:
    """A file of tosses; those of the second kind have an answer that never comes."""
    rows = [{"id": f"fair-{i}", "prompt": f"Toss {i % 10}", "answer": "1"} for i in range(fair)]
    rows += [{"id": f"never-{i}", "prompt": f"Toss {i % 10}", "answer": "777"} for i in range(impossible)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def attempts(run: Path, step: int) -> list[Trajectory]:
    return read_trajectories(run / "rl" / "trajectories" / f"step_{step:06d}.jsonl.gz")


def trajectory(reward: float, sampled: int = 3, reason: StopReason = StopReason.ANSWERED) -> Trajectory:
    made = Trajectory("p", 0, 0, reward=reward, stop_reason=reason)
    made.append("prompt", [1, 2])
    made.append("assistant", [3] * sampled, [-1.0] * sampled)
    return made


def test_places_count_over_the_stages() -> None:
    settings = Rl(steps=2, stages=[RlStage(), RlStage(steps=1), RlStage()])
    assert [(p.step, p.stage_index, p.stage_step) for p in places(settings)] == [
        (1, 0, 0),
        (2, 0, 1),
        (3, 1, 0),
        (4, 2, 0),
        (5, 2, 1),
    ]


def test_samples_of_a_group_are_scaled_to_the_batch() -> None:
    group = [trajectory(1.0), trajectory(0.0, 5), trajectory(0.0, 1), trajectory(0.0, 0)]
    samples = to_samples([group], Grpo(normalize_std=False), 100)
    assert [sample.weights for sample in samples] == pytest.approx([0.0075, -0.0025, -0.0025])
    assert [sum(sample.loss_mask) for sample in samples] == [3, 5, 1]
    assert all(len(sample.token_ids) == len(sample.loss_mask) == len(sample.sampler_logprobs or []) for sample in samples)


def test_equal_rewards_train_nothing() -> None:
    for reward in (0.0, 1.0):
        group = [trajectory(reward), trajectory(reward)]
        assert is_equal(group)
        assert to_samples([group], Grpo(), 10) == []


def test_the_policy_is_not_trained_on_faults_of_engine_or_sandbox() -> None:
    fault = trajectory(0.0, reason=StopReason.SANDBOX_ERROR)
    assert is_equal([trajectory(1.0), trajectory(1.0), fault])
    assert is_equal([fault, fault])
    samples = to_samples([[trajectory(1.0), fault, trajectory(0.0)]], Grpo(normalize_std=False), 6)
    assert [sample.weights for sample in samples] == pytest.approx([0.5 / 6, -0.5 / 6])


def test_faults_are_said_and_a_batch_of_faults_ends_the_stage(capsys: pytest.CaptureFixture[str]) -> None:
    fault = trajectory(0.0, reason=StopReason.ENGINE_ERROR)
    fault.error = "RuntimeError: out of\nmemory"
    note_faults("rl step 3", [trajectory(1.0)])
    assert capsys.readouterr().err == ""
    note_faults("rl step 3", [trajectory(1.0), fault])
    said = capsys.readouterr().err
    assert re.fullmatch(r"rl step 3: .*\b1\b.*\b2\b.*\bengine_error: RuntimeError: out of memory\n", said)
    with refused("rl step 3", " 2 ", "engine_error: RuntimeError"):
        note_faults("rl step 3", [fault, fault])


def test_minibatches_without_a_gradient_are_skipped(train: Run, tmp_path: Path) -> None:
    run = train(
        {
            "problems.train": problems(tmp_path / "p.jsonl", 4, 4),
            "rl.prompts": 6,
            "rl.minibatches": 3,
            "rl.stages": [{"steps": 3, "limits": LIMITS}],
        }
    )
    skipped = 0
    for line in lines(run, "rl"):
        made = attempts(run, line["step"])
        groups = [made[start : start + 4] for start in range(0, 24, 4)]
        equal = [len({t.reward for t in group}) == 1 for group in groups]
        assert line["groups"] == 6
        assert line["equal_groups"] == sum(equal)
        halves = [all(equal[start : start + 2]) for start in range(0, 6, 2)]
        assert line["optimizer_steps"] == halves.count(False)
        skipped += halves.count(True)
        assert line["rewards"] == {group[0].problem_id: [t.reward for t in group] for group in groups}
        assert line["reward"] == pytest.approx(sum(t.reward for t in made) / 24)
        assert line["sampled_tokens"] == sum(t.sampled_tokens for t in made)
        if line["optimizer_steps"]:
            assert line["grad_norm"] > 0
            # The sampler's log-probabilities are those of the trainer.
            assert line["importance"] == pytest.approx(1.0, abs=0.2)
    assert skipped


def test_a_step_without_any_gradient_goes_on(train: Run, coin_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    changes = {"problems.train": problems(tmp_path / "p.jsonl", 0, 5), "rl.stages": [{"steps": 2, "limits": LIMITS}]}
    run = train(changes)
    for line in lines(run, "rl"):
        assert (line["optimizer_steps"], line["equal_groups"], line["loss"]) == (0, 3, 0.0)
    before = load_file(coin_model / "model.safetensors")
    after = load_file(RunFolder.load(run).checkpoints("rl")[-1][1] / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(bool((before[name] == after[name]).all()) for name in before)


def test_the_second_stage_leaves_out_what_was_always_solved(train: Run, tmp_path: Path) -> None:
    run = train(
        {
            "problems.train": problems(tmp_path / "p.jsonl", 24, 0),
            "rl.prompts": 24,
            "rl.samples": 2,
            "rl.stages": [{"steps": 1, "limits": LIMITS}, {"steps": 2, "drop_solved": True, "limits": LIMITS}],
        }
    )
    rewards: dict[str, list[float]] = defaultdict(list)
    for made in attempts(run, 1):
        rewards[made.problem_id].append(made.reward)
    left = {name for name, found in rewards.items() if found != [1.0, 1.0]}
    assert 0 < len(left) < 24
    first, *later = lines(run, "rl")
    assert first["problems_left"] == 24
    for line in later:
        # By what the first stage left, at every step: the second stage's own results do not count.
        assert line["problems_left"] == len(left)
        assert {made.problem_id for made in attempts(run, line["step"])} <= left


def test_equal_groups_are_resampled(train: Run, tmp_path: Path) -> None:
    run = train(
        {
            "problems.train": problems(tmp_path / "p.jsonl", 12, 4),
            "rl.prompts": 4,
            "rl.resample_equal": 3,
            "rl.stages": [{"steps": 3, "limits": LIMITS}],
        }
    )
    discarded = 0
    for line in lines(run, "rl"):
        made = attempts(run, line["step"])
        groups = [made[start : start + 4] for start in range(0, len(made), 4)]
        assert line["groups"] == 4
        assert line["resampled_groups"] == len(groups) - 4
        assert all(is_equal(group) for group in groups[4:])
        assert line["equal_groups"] == sum(map(is_equal, groups[:4]))
        names = [group[0].problem_id for group in groups]
        assert len(set(names)) == len(names)
        assert set(line["rewards"]) == set(names)
        discarded += len(groups) - 4
    assert discarded


def test_resampling_ends_where_problems_do(train: Run, tmp_path: Path) -> None:
    run = train(
        {
            "problems.train": problems(tmp_path / "p.jsonl", 0, 5),
            "rl.resample_equal": 9,
            "rl.stages": [{"steps": 1, "limits": LIMITS}],
        }
    )
    (line,) = lines(run, "rl")
    assert (line["groups"], line["equal_groups"], line["resampled_groups"], line["optimizer_steps"]) == (3, 3, 2, 0)


def test_every_stage_has_its_own_limits(train: Run) -> None:
    run = train(
        {
            "rl.prompts": 4,
            "rl.stages": [
                {"steps": 1, "limits": {**LIMITS, "tool_calls": 0}},
                {"steps": 1, "limits": {**LIMITS, "turn_tokens": 3}},
                {"steps": 1, "limits": LIMITS},
            ],
        }
    )
    calls, tokens, free = (attempts(run, step) for step in (1, 2, 3))
    assert all(not made.calls for made in calls)
    assert StopReason.CALL_BUDGET in {made.stop_reason for made in calls}
    assert {made.stop_reason for made in tokens} == {StopReason.TOKEN_BUDGET}
    assert max(made.sampled_tokens for made in tokens) == 3
    assert any(made.calls for made in free)
    assert all(len(made.token_ids) <= LIMITS["context_tokens"] for made in free)


def test_a_stage_that_dropped_every_problem_says_so(train: Run, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"id": "toss", "prompt": "Toss 1", "answer": "1"}\n')
    changes = {
        "problems.train": str(tmp_path / "p.jsonl"),
        "rl.samples": 2,
        "rl.stages": [{"steps": 1, "limits": LIMITS}, {"steps": 1, "drop_solved": True, "limits": LIMITS}],
    }
    run = train(changes)
    # The one problem, solved at every attempt in the first stage.
    metrics = run / "metrics.jsonl"
    first = json.loads(metrics.read_text().splitlines()[0]) | {"rewards": {"toss": [1.0, 1.0]}}
    metrics.write_text(json.dumps(first) + "\n")
    (run / "rl" / "summary.json").unlink()
    with refused("rl", "drop_solved"):
        train(changes)


def test_the_learning_rate_warms_up_and_decays() -> None:
    rate = rl.learning_rate
    flat = Rl(learning_rate=1e-3)
    assert [rate(flat, step, 5) for step in range(1, 6)] == [1e-3] * 5
    shaped = Rl(learning_rate=1e-3, warmup_steps=1, final_rate=0.5)
    rates = [rate(shaped, step, 5) for step in range(1, 6)]
    assert rates == pytest.approx([0.5e-3, 0.875e-3, 0.75e-3, 0.625e-3, 0.5e-3])
    assert rate(shaped, 1, 1) == pytest.approx(0.5e-3)


def test_held_out_problems_are_tried_while_it_trains(train: Run, tiny: Tiny) -> None:
    run = train({"rl.evaluate_every": 2, "rl.evaluate_problems": 8, "rl.stages": [{"steps": 4, "limits": LIMITS}]})
    logged = lines(run, "rl")
    assert ["held_out" in line for line in logged] == [False, True, False, True]
    assert all(0 <= line["held_out"] <= 1 for line in logged if "held_out" in line)
    with refused("rl.evaluate_every", "max_staleness"):
        tiny.recipe({"rl.evaluate_every": 2, "rl.max_staleness": 1, "rollout.deterministic": False})
