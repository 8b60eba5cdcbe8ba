"""Evaluations of what servers serve, against FAKE servers behind real HTTP."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aster.cli.compare import compare_folders
from aster.config import Environment, Policy, Rollout, Sandbox
from aster.config.engine import BASE_MODEL
from aster.evaluation.folder import EvaluationFolder
from aster.evaluation.run import Request, evaluate
from aster.evaluation.settings import Settings
from aster.report.evaluation import render_result
from aster.report.evaluation_page import write_evaluation_page
from aster.run import read_json
from aster.types import Problem
from tests.engines.fake_engine import TOKENIZER, FakeEngine, serving
from tests.engines.fake_tinker_server import FakeTinkerServer
from tests.refusals import refused
from tests.rollout.scripted import turn

PROBLEMS = [Problem("four", "What is 2+2?", "4"), Problem("five", "What is 2+3?", "5")]
ANSWER = turn("so", "It is \\boxed{4}.")
CALL = turn("let me see", "", "v = 3\nv + 1")


def by_turn(prompt: list[int], _: dict[str, Any]) -> tuple[list[int], str]:
    """Calls the tool where it is offered, then answers."""
    text = TOKENIZER.decode(prompt)
    return (CALL if "<tools>" in text and "<tool_response>" not in text else ANSWER), "stop"


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    """One that behaves."""
    with serving(FakeEngine(by_turn)) as found:
        yield found


def settings(policy: str, **more: Any) -> Settings:
    engine = Policy(request_seconds=5.0, lora_rank=8 if policy.startswith("tinker") else 0)
    given: dict[str, Any] = {
        "context_tokens": 1024,
        "k": 2,
        "tokenizer": str(BASE_MODEL),
        "engine": engine,
        "sandbox": Sandbox(preload=[]),
    }
    return Settings(policy=policy, benchmark="sums", problems=2, checksum="x", **(given | more))


def requested(path: Path) -> Request:
    return Request(path, Rollout(slots=4))


def test_a_token_endpoint_with_and_without_the_tool(engine: FakeEngine, tmp_path: Path) -> None:
    found = evaluate(settings(engine.address), PROBLEMS, requested(tmp_path / "tool"))
    assert (found["accuracy"], found["tool_calls"], found["attempts"]) == (0.5, 1.0, 4)
    assert found["by_problem"]["four"]["accuracy"] == 1.0
    assert found["notes"]["served"] == "tiny"
    seeds = {body["seed"] for body in engine.asked if isinstance(body["prompt"], list)}
    assert len(seeds - {1}) == 8  # the probe asks with 1; no two turns share a seed
    bare = evaluate(settings(engine.address, tools=False, tool_calls=0), PROBLEMS, requested(tmp_path / "text"))
    assert (bare["accuracy"], bare["tool_calls"], "isolation" in bare["notes"]) == (0.5, 0.0, False)


def test_an_endpoint_that_fails_now_and_then_leaves_faults_that_can_be_repeated(
    engine: FakeEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = {"broken": True}

    def reply(prompt: list[int], body: dict[str, Any]) -> tuple[list[int], str]:
        broken = answers["broken"] and "2+3" in TOKENIZER.decode(prompt)
        return ([], "stop") if broken else by_turn(prompt, body)

    engine.reply = reply
    asked = requested(tmp_path / "out")
    first = evaluate(settings(engine.address), PROBLEMS, asked)
    assert (first["faults"], first["stop_reasons"]["engine_error"]) == (2, 2)
    again = evaluate(settings(engine.address), PROBLEMS, asked)
    assert again == first
    page = write_evaluation_page(EvaluationFolder.load(asked.folder)).read_text()
    assert re.search(r"WARNING: .*\b2\b", page)
    assert re.search(r"--retry-faults .*\b2\b", capsys.readouterr().err)
    answers["broken"] = False
    repeated = evaluate(settings(engine.address), PROBLEMS, Request(asked.folder, asked.rollout, retry_faults=True))
    assert (repeated["faults"], repeated["attempts"], repeated["stop_reasons"]) == (0, 4, {"answered": 4})
    assert "WARNING" not in write_evaluation_page(EvaluationFolder.load(asked.folder)).read_text()


def test_rewards_below_0_and_above_1_are_clipped_and_reported(
    engine: FakeEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = tmp_path / "mine.py"
    code.write_text("def reward(attempt):\n    return 5.0 if attempt.problem.id == 'four' else -1.0\n")
    given = settings(engine.address, environment=Environment(reward=f"{code}:reward"))
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        found = evaluate(given, PROBLEMS, requested(folder))
        assert len(re.findall(r"^evaluate: 4 of 4 rewards ", capsys.readouterr().err, re.MULTILINE)) == 1
    assert (found["accuracy"], found["clipped"], found["attempts"]) == (0.5, 4, 4)
    assert 0 <= found["low"] <= 0.5 <= found["high"] <= 1
    assert re.search(r"WARNING: 4 rewards ", render_result(found))
    assert re.search(r"WARNING: 4 rewards ", write_evaluation_page(EvaluationFolder.load(folders[0])).read_text())
    assert "first" in compare_folders(*folders)
    # The attempts have what the environment gave.
    assert {each.reward for each in EvaluationFolder.load(folders[0]).attempts()} == {5.0, -1.0}


def test_a_tinker_server(lab_folder: Path, tmp_path: Path) -> None:
    """It samples tokens that are no answer. The test is that it was asked, and that its address is in the record."""
    fake = FakeTinkerServer(served=f"org/{lab_folder.name}")
    try:
        given = settings(f"tinker:{fake.url}", tokenizer=str(lab_folder), tools=False, tool_calls=0, context_tokens=64, k=1)
        found = evaluate(given, PROBLEMS, requested(tmp_path / "out"))
    finally:
        fake.stop()
    assert (found["attempts"], found["faults"]) == (2, 0)
    assert len(fake.prompts) >= 2
    assert read_json(tmp_path / "out" / "evaluation.json")["settings"]["policy"].startswith("tinker:http://127.0.0.1:")


def test_a_context_that_the_server_does_not_have_is_refused(engine: FakeEngine, tmp_path: Path) -> None:
    with refused("policy.base_url", engine.address, "4096", "limits.context_tokens", "30720"):
        evaluate(settings(engine.address, context_tokens=30720), PROBLEMS, requested(tmp_path / "out"))
    # Nothing was made, so other settings may have the folder.
    found = evaluate(settings(engine.address, context_tokens=512), PROBLEMS, requested(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["settings"]["context_tokens"] == 512
    assert found["attempts"] == 4
