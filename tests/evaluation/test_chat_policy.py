"""Evaluations through a chat endpoint, against the FAKE teacher behind real HTTP: it answers with what its calls gave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aster.config import Rollout, Sandbox
from aster.evaluation.folder import EvaluationFolder
from aster.evaluation.run import Request, evaluate
from aster.evaluation.settings import Settings
from aster.money import Prices
from aster.report.show import show
from aster.transcript import Transcript
from aster.types import Problem
from tests.refusals import refused
from tests.teacher.fake_teacher import FakeTeacher, serving

PROBLEMS = [Problem("right", "What is 6*7? [good]", "42"), Problem("wrong", "What is 5*5? [good]", "26")]


def settings(teacher: FakeTeacher, **more: Any) -> Settings:
    given: dict[str, Any] = {"context_tokens": 4096, "k": 2, "sandbox": Sandbox(preload=[])}
    policy = f"chat:{teacher.address}"
    return Settings(policy=policy, benchmark="products", problems=2, checksum="x", **(given | more))


def test_a_chat_endpoint_with_the_tool(tmp_path: Path) -> None:
    with serving(FakeTeacher()) as teacher:
        found = evaluate(settings(teacher), PROBLEMS, Request(tmp_path / "out", Rollout(slots=4)))
        offered = [body.get("tools") for body in teacher.asked]
    assert (found["accuracy"], found["tool_calls"], found["attempts"], found["faults"]) == (0.5, 2.0, 4, 0)
    assert all(offered)
    assert found["notes"]["served"] == "teacher"
    assert found["curves"]["tokens"] == []
    assert [point["accuracy"] for point in found["curves"]["calls"]][:3] == [0.0, 0.0, 0.5]
    assert found["totals"]["read_tokens"] > 0
    shown = show(EvaluationFolder.load(tmp_path / "out"), "attempts")
    assert "print(product)" in shown
    assert "What is" in shown


def test_without_the_tool_none_is_offered(tmp_path: Path) -> None:
    with serving(FakeTeacher()) as teacher:
        alone = [Problem("plain", "What is 6*7? [wrong]", "42")]
        given = settings(teacher, tools=False, tool_calls=0, k=1)
        found = evaluate(given, alone, Request(tmp_path / "out", Rollout(slots=4)))
        assert not any("tools" in body for body in teacher.asked)
    assert (found["attempts"], found["tool_calls"], found["accuracy"]) == (1, 0.0, 0.0)


def test_the_cost_is_counted_as_a_teacher_s_is(tmp_path: Path) -> None:
    with serving(FakeTeacher()) as teacher:
        request = Request(tmp_path / "out", Rollout(slots=4), prices=Prices(read=2.0, written=50.0))
        found = evaluate(settings(teacher), PROBLEMS, request)
    used = [attempt.usage for attempt in EvaluationFolder.load(tmp_path / "out").attempts() if isinstance(attempt, Transcript)]
    bills = [(usage.cost, usage.prompt_tokens, usage.completion_tokens) for usage in used if usage is not None]
    assert len(bills) == 4
    assert all(cost == pytest.approx((2 * read + 50 * written) / 1e6) for cost, read, written in bills)
    assert found["totals"]["cost"] == pytest.approx(sum(cost for cost, _, _ in bills))


def test_nobody_there_is_one_line(tmp_path: Path) -> None:
    with (
        serving(FakeTeacher(key="secret")) as teacher,
        refused("--policy chat:http", "ASTER_TEACHER_KEY"),
    ):
        evaluate(settings(teacher), PROBLEMS, Request(tmp_path / "out", Rollout(slots=4)))
