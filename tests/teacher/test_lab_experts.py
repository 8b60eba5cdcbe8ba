"""The scripted experts, through the real loop and the real sandbox."""

from __future__ import annotations

import random

import pytest

from aster.chat import Qwen3Dialect
from aster.config import ColdStart
from aster.environments.lab import draw, generate, to_problem
from aster.lab.tokenizer import build_tokenizer
from aster.rollout import Decoding, Job, RolloutContext, rollout_batch
from aster.seeds import derive
from aster.teacher import ScriptedTeacher
from aster.teacher.lab_experts import EXPERTS, text_only
from aster.types import Budget, CallStatus, Problem, StopReason, Trajectory
from tests.shop_fixture import Shop

BUDGET = Budget(context_tokens=4096, turn_tokens=1024, tool_calls=50, turns=64, wall_seconds=60)
DIALECT = Qwen3Dialect(build_tokenizer())


def teach(shop: Shop, cold_start: ColdStart, problems: list[Problem], budget: Budget = BUDGET) -> list[Trajectory]:
    """One attempt of the expert at each problem."""
    jobs = [Job(problem, 0, derive(7, problem.id)) for problem in problems]
    context = RolloutContext(
        lambda job: ScriptedTeacher(EXPERTS[cold_start], job.problem, job.seed, DIALECT),
        DIALECT,
        shop.environment,
        concurrency=16,
    )
    return shop.run(rollout_batch(jobs, context, budget, Decoding()))


def expected_calls(cold_start: ColdStart, problem: Problem) -> set[int]:
    steps = problem.metadata["steps"]
    if cold_start is ColdStart.ASTER:
        return {steps if problem.source == "lab/chain" else steps + 1}
    return {1} if cold_start is ColdStart.PROGRAM else {1, 2}


@pytest.mark.parametrize("family", ["chain", "hunt"])
@pytest.mark.parametrize("cold_start", list(EXPERTS))
def test_every_expert_solves_every_problem(shop: Shop, cold_start: ColdStart, family: str) -> None:
    problems = generate({family: 1.0}, (5, 10), "train", 28, seed=1)
    problems += generate({family: 1.0}, (1, 1), "train", 1, seed=2) + generate({family: 1.0}, (20, 20), "train", 1, seed=2)
    trajectories = teach(shop, cold_start, problems)
    for problem, trajectory in zip(problems, trajectories, strict=True):
        assert (trajectory.reward, trajectory.stop_reason, trajectory.error) == (1.0, StopReason.ANSWERED, ""), problem.prompt
        assert trajectory.tool_calls in expected_calls(cold_start, problem)
        assert all(call.status is CallStatus.OK for call in trajectory.calls)
        # A loader may tokenise the text again: it must find the same tokens.
        assert DIALECT._encode(DIALECT.decode(trajectory.token_ids)) == trajectory.token_ids
        assert max(turn.end - turn.start for turn in trajectory.turns if turn.role == "assistant") < 500
    if cold_start in (ColdStart.RETOOL, ColdStart.DEMYAGENT) and (cold_start, family) != (ColdStart.RETOOL, "hunt"):
        assert {trajectory.tool_calls for trajectory in trajectories} == {1, 2}


def test_dense_turns_are_short(shop: Shop) -> None:
    trajectories = teach(shop, ColdStart.ASTER, generate({"chain": 1.0, "hunt": 1.0}, (6, 10), "train", 20, seed=4))
    lengths = [turn.end - turn.start for t in trajectories for turn in t.turns if turn.role == "assistant"]
    assert sum(lengths) / len(lengths) < 40


def test_the_dense_expert_reads_what_the_sandbox_says(shop: Shop) -> None:
    """It follows the tool's output, not the hidden path: another oracle leads it elsewhere."""
    problem = next(p for p in generate({"hunt": 1.0}, (6, 6), "train", 5, seed=5))
    misled = Problem(problem.id, problem.prompt, "0", setup="def ask(value):\n    return 'end'", metadata=problem.metadata)
    [trajectory] = teach(shop, ColdStart.ASTER, [misled])
    assert trajectory.answer == str(problem.metadata["walk"].start)
    assert trajectory.tool_calls == 1


def test_output_that_an_expert_cannot_read_is_recorded(shop: Shop) -> None:
    problem = generate({"hunt": 1.0}, (6, 6), "train", 1, seed=5)[0]
    broken = Problem(problem.id, problem.prompt, "0", setup="", metadata=problem.metadata)
    [trajectory] = teach(shop, ColdStart.ASTER, [broken])
    assert trajectory.stop_reason is StopReason.ENGINE_ERROR
    assert trajectory.error.startswith("ValueError: ")
    assert trajectory.calls[0].status is CallStatus.ERROR
    assert trajectory.reward == 0.0


def test_a_turn_longer_than_the_limit_is_cut(shop: Shop) -> None:
    problems = generate({"chain": 1.0}, (8, 8), "train", 1, seed=6)
    limits = Budget(context_tokens=4096, turn_tokens=10, tool_calls=50, turns=64, wall_seconds=60)
    [trajectory] = teach(shop, ColdStart.PROGRAM, problems, limits)
    assert trajectory.stop_reason is StopReason.TOKEN_BUDGET
    assert trajectory.sampled_tokens == 10


@pytest.mark.parametrize("family", ["chain", "coded"])
def test_text_only_works_every_step_out_in_the_base_models_format(family: str) -> None:
    rng = random.Random(0)
    for steps in range(1, 11):
        walk = draw(rng, family, steps)
        thinking, answer = text_only(walk)
        lines = thinking.split("\n")
        assert len(lines) == steps
        for line in lines:
            left, right = line.partition(":")[2].split("=")
            assert eval(left) == int(right)
        assert answer == lines[-1].rpartition("=")[2] == to_problem(walk).answer
        ids = DIALECT.turn_ids(thinking, f"\\boxed{{{answer}}}", [])
        assert DIALECT._encode(DIALECT.decode(ids)) == ids


def play(cold_start: ColdStart, problem: Problem, seed: int, wrong: int | None = None) -> tuple[list[str], str]:
    """The codes of an expert that gets its cells' values, the ``wrong``-th one off by one; and its answer."""
    session: dict[str, object] = {}
    exec(problem.setup, session)
    script = EXPERTS[cold_start](problem.metadata["walk"], random.Random(seed))
    codes: list[str] = []
    try:
        _, code = next(script)
        while True:
            *lines, last = code.split("\n")
            exec("\n".join(lines), session)
            value = eval(last, session)
            if len(codes) == wrong:
                assert isinstance(value, int)
                session["v"] = value = value + 1
            codes.append(code)
            _, code = script.send(str(value))
    except StopIteration as ending:
        return codes, str(ending.value[1])


@pytest.mark.parametrize("cold_start", [ColdStart.RETOOL, ColdStart.DEMYAGENT])
def test_every_call_of_a_sparse_expert_is_needed_for_its_answer(cold_start: ColdStart) -> None:
    numbers = set()
    for seed, problem in enumerate(generate({"chain": 1.0}, (6, 10), "train", 12, seed=9)):
        codes, answer = play(cold_start, problem, seed)
        assert answer == problem.answer
        numbers.add(len(codes))
        changed = [play(cold_start, problem, seed, wrong)[1] != answer for wrong in range(len(codes))]
        assert all(changed), problem.prompt
    assert numbers == {1, 2}
