"""Who answers, what an attempt may spend, what decides the numbers, and what a checkpoint was trained with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from aster.config import Evaluate, EvaluateLimits, Model, Rollout, Sandbox
from aster.config.recipe import Recipe
from aster.data.benchmarks import checksum
from aster.evaluate import settings_of
from aster.evaluation.run import jobs_of, training_of
from aster.evaluation.settings import Settings, parse_shard, parse_tokens, policy_kind
from aster.rollout import Decoding
from aster.seeds import derive
from aster.types import Problem
from tests.refusals import refused


def settings(policy: str = "lab", **more: Any) -> Settings:
    return Settings(policy=policy, benchmark="b", problems=2, checksum="c", **more)


def test_the_defaults_are_the_papers_preset() -> None:
    found = settings()
    assert (found.k, found.temperature, found.top_p, found.tool_calls, found.context_tokens) == (16, 0.6, 0.95, 256, 30720)
    budget = found.budget()
    assert (budget.turn_tokens, budget.turns) == (30720, 257)
    assert settings(turn_tokens=512).budget().turn_tokens == 512


@pytest.mark.parametrize(
    ("policy", "kind", "fields"),
    [
        ("package:some", "local", ("local", "local", "")),
        ("http://h:1/v1", "endpoint", ("local", "endpoint", "http://h:1/v1")),
        ("tinker:http://h:1", "tinker", ("tinker", "local", "http://h:1")),
    ],
)
def test_a_policy_says_who_answers(policy: str, kind: str, fields: tuple[str, str, str]) -> None:
    found = settings(policy, tokenizer="" if kind == "local" else "/t", model_name="m", model=Model(path=policy))
    assert found.kind == kind
    recipe = found.engine_config(Rollout())
    assert (recipe.policy.kind, recipe.policy.sampler, recipe.policy.base_url) == fields
    assert recipe.model.path == (policy if kind == "local" else "/t")
    assert recipe.policy.base_model == ("m" if kind == "tinker" else "")
    assert recipe.policy.model_name == ("m" if kind == "endpoint" else "")


def test_a_chat_endpoint_needs_no_tokenizer_and_others_say_so() -> None:
    assert policy_kind("chat:https://h") == ("chat", "https://h")
    with refused("--policy http://h:1", "--tokenizer"):
        settings("http://h:1").engine_config(Rollout())
    with refused("--policy chat:h", "chat:http://"):
        policy_kind("chat:h")


def test_numbers_of_tokens_and_shards() -> None:
    assert [parse_tokens(text) for text in ("512", "30k", "90K")] == [512, 30720, 92160]
    assert parse_shard("2/3") == (2, 3)
    for text in ("0", "-1", "k", "1.5k", ""):
        with refused(text, "30k"):
            parse_tokens(text)
    for text in ("0/2", "3/2", "1", "a/b"):
        with refused(f"--shard {text}"):
            parse_shard(text)


def test_where_sessions_run_does_not_decide_the_numbers() -> None:
    here, there = settings(), settings(sandbox=Sandbox(addresses=["http://10.0.0.5:8080"]))
    assert here.identity() == there.identity() != settings(seed=2).identity()


def test_seeds_belong_to_problem_and_sample() -> None:
    problems = [Problem(name, "?", "1") for name in "abc"]
    whole = {(job.problem.id, job.sample): job.seed for job in jobs_of(settings(k=2), problems)}
    parts = [jobs_of(settings(k=2, shard=f"{part}/2", context_tokens=99), problems[::-1]) for part in (1, 2)]
    assert {(job.problem.id, job.sample): job.seed for jobs in parts for job in jobs} == whole
    assert len(set(whole.values())) == 6


def test_a_runs_evaluation_spends_what_its_recipe_says() -> None:
    limits = EvaluateLimits(context_tokens=900, turn_tokens=100, tool_calls=7, turns=3, wall_seconds=5.0)
    recipe = Recipe(seed=4, evaluate=Evaluate(limits=limits, k=5, temperature=0.3, top_p=0.8))
    problems = [Problem("p", "?", "1")]
    found = settings_of(recipe, problems, "rl/checkpoints/step_000002")
    assert found.budget() == limits.budget()
    assert (found.decoding, found.k, found.checksum) == (Decoding(0.3, 0.8), 5, checksum(problems))
    assert [(job.sample, job.seed) for job in jobs_of(found, problems)] == [
        (sample, derive(4, "evaluate", "p", sample)) for sample in range(5)
    ]


def test_a_checkpoint_in_a_run_folder_knows_its_training_budget(tmp_path: Path) -> None:
    recipe = {"name": "r", "rl": {"stages": [{"steps": 1}, {"steps": 1, "limits": {"context_tokens": 900, "tool_calls": 7}}]}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for stage in ("sft", "rl"):
        (tmp_path / stage / "checkpoints" / "step_000002").mkdir(parents=True)
    found = training_of(settings(str(tmp_path / "rl" / "checkpoints" / "step_000002")))
    assert found == {"run": "r", "stage": "rl", "checkpoint": "step_000002", "context_tokens": 900, "tool_calls": 7}
    sft = {"run": "r", "stage": "sft", "checkpoint": "step_000002"}
    assert training_of(settings(checkpoint=str(tmp_path / "sft" / "checkpoints" / "step_000002"))) == sft
    assert training_of(settings(checkpoint="sft/checkpoints/step_000002"), tmp_path) == sft
    assert training_of(settings()) is None
