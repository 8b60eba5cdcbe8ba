"""A teacher behind a chat server: its requests, its transcripts, and the name of everything that can fail."""

from __future__ import annotations

import asyncio
import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aster.chat.qwen3 import TOOL_SCHEMA
from aster.environments import PythonMath
from aster.money import Prices
from aster.rollout import Decoding
from aster.teacher.chat import ChatAuthor
from aster.teacher.failures import FAILURES, TeacherGone, failure_of
from aster.teacher.spending import LimitReached, Spending
from aster.transcript import Transcript
from aster.types import Budget, CallStatus, Problem, StopReason
from tests.refusals import refused
from tests.shop_fixture import Shop
from tests.teacher.fake_teacher import FakeTeacher, Reply, serving

WIDE = Budget(context_tokens=8192, turn_tokens=2048, tool_calls=8, turns=20, wall_seconds=60)


def problem(part: str = "", number: int = 0) -> Problem:
    asked = f"What is {6 + number}*7?" + (f" [{part}]" if part else "")
    return Problem(f"p-{part}-{number}", asked, str((6 + number) * 7), "tests", metadata={"topic": "products"})


def attempts(
    shop: Shop,
    teacher: FakeTeacher,
    problems: list[Problem],
    budget: Budget = WIDE,
    tools: bool = True,
    decoding: Decoding = Decoding(0.5, 0.9),  # noqa: B008 - frozen
    **settings: Any,
) -> list[Transcript]:
    """One attempt at each, side by side."""

    environment = shop.environment if tools else PythonMath()

    async def main() -> list[Transcript]:
        async with ChatAuthor(teacher.address, **settings) as author:
            asked = [
                author.attempt(p, 1, 11 + n, environment=environment, budget=budget, decoding=decoding)
                for n, p in enumerate(problems)
            ]
            return await asyncio.gather(*asked)

    return shop.run(main())


def one(shop: Shop, teacher: FakeTeacher, part: str = "", **settings: Any) -> Transcript:
    return attempts(shop, teacher, [problem(part)], **settings)[0]


# -- a teacher that does well


def test_a_dialogue_with_the_sandbox(shop: Shop, teacher: FakeTeacher) -> None:
    found = one(shop, teacher)
    assert [(s.thinking, s.text) for s in found.steps] == [
        ("First the product.", ""),
        ("Now I look at it.", ""),
        ("That is it.", "I get \\boxed{42}."),
    ]
    assert [(c.code, c.status) for c in found.calls] == [("product = 6 * 7", CallStatus.OK), ("print(product)", CallStatus.OK)]
    assert found.calls[1].output == "42"
    assert (found.stop_reason, found.answer, found.reward, found.error) == (StopReason.ANSWERED, "42", 1.0, "")
    assert (found.problem_id, found.sample, found.seed, found.author) == ("p--0", 1, 11, "teacher")
    assert (found.prompt, found.expected, found.source) == ("What is 6*7?", "42", "tests")
    assert found.metadata == {"topic": "products"}
    assert found.usage is not None
    assert found.usage.completion_tokens == sum(step.tokens or 0 for step in found.steps) > 0
    assert failure_of(found) == ""


def test_what_the_server_is_asked(shop: Shop, teacher: FakeTeacher) -> None:
    one(shop, teacher, system="Small steps.", request={"reasoning_effort": "high", "top_p": None})
    first, second, third = teacher.asked
    assert first["messages"] == [{"role": "system", "content": "Small steps."}, {"role": "user", "content": "What is 6*7?"}]
    assert (first["model"], first["temperature"], first["reasoning_effort"]) == ("teacher", 0.5, "high")
    assert "top_p" not in first
    assert (first["tools"], first["tool_choice"]) == ([TOOL_SCHEMA], "auto")
    assert 0 < third["max_tokens"] <= WIDE.turn_tokens
    assert len({first["seed"], second["seed"], third["seed"]}) == 3
    turn, result = second["messages"][-2:]
    assert json.loads(turn["tool_calls"][0]["function"]["arguments"]) == {"code": "product = 6 * 7"}
    assert turn["reasoning_content"] == "First the product."
    assert (result["role"], result["tool_call_id"]) == ("tool", turn["tool_calls"][0]["id"])
    assert third["messages"][-1]["content"] == "42"


@pytest.mark.parametrize(
    ("named", "send", "sent"),
    [("reasoning", "auto", "reasoning"), ("reasoning", "reasoning_content", "reasoning_content"), ("reasoning", "no", None)],
)
def test_reasoning_goes_back_as_asked(named: str, send: Any, sent: str | None, shop: Shop, teacher: FakeTeacher) -> None:
    teacher.reasoning_field = named
    found = one(shop, teacher, send_reasoning=send)
    assert found.steps[0].thinking == "First the product."
    turn = teacher.asked[1]["messages"][1]
    assert [key for key in ("reasoning", "reasoning_content") if key in turn] == ([sent] if sent else [])


def test_without_tools_none_is_offered_and_none_is_run(shop: Shop, teacher: FakeTeacher) -> None:
    found = one(shop, teacher, tools=False)
    assert "tools" not in teacher.asked[0]
    assert {call.status for call in found.calls} == {CallStatus.MALFORMED}
    assert found.reward == 0.0


def test_calls_in_text(shop: Shop, teacher: FakeTeacher) -> None:
    found = one(shop, teacher, "in text", calls="code")
    assert [(s.thinking, s.text) for s in found.steps] == [("I compute.", ""), ("Fine.", "So \\boxed{42}.")]
    assert [(c.code, c.output) for c in found.calls] == [("print(6 * 7)", "42")]
    assert found.reward == 1.0
    first, second = teacher.asked
    assert first["stop"] == ["</code>"]
    assert "tools" not in first
    assert "<interpreter>" in first["messages"][0]["content"]
    assert second["messages"][-2:] == [
        {"role": "assistant", "content": "I compute.\n<code>\nprint(6 * 7)\n</code>"},
        {"role": "user", "content": "<interpreter>\n42\n</interpreter>"},
    ]


def test_no_more_attempts_are_under_way_than_asked_for(shop: Shop, teacher: FakeTeacher) -> None:
    teacher.gauge.gather, teacher.seconds = 3, 0.02
    found = attempts(shop, teacher, [problem(number=n) for n in range(8)], concurrency=3)
    assert [t.reward for t in found] == [1.0] * 8
    assert teacher.gauge.most == 3


# -- failures: each has its name, and the others in the batch go on

ENDS = {
    "slow": "timeout",
    "busy": "rate_limited",
    "cut": "connection_lost",
    "broken": "server_error",
    "garbled": "malformed_body",
    "no completion": "malformed_body",
    "silent": "empty_answer",
    "stripped": "stripped_marks",
    "withheld": "content_filter",
    "refused": "refused",
    "too long": "context_length",
}


def test_every_failure_is_recorded_by_its_name_and_the_batch_goes_on(shop: Shop, teacher: FakeTeacher) -> None:
    assert set(ENDS.values()) == set(FAILURES)
    # These use up their time, in a batch of their own: with so little time a good attempt may fail too, on a slow machine.
    late = ["slow", "busy"]
    parts = [part for name in ENDS if name not in late for part in (name, "")]
    found = attempts(shop, teacher, [problem(part, n) for n, part in enumerate(parts)], concurrency=len(parts))
    found += attempts(shop, teacher, [problem(part) for part in late], request_seconds=5)
    parts += late
    for part, transcript in zip(parts, found, strict=True):
        if not part:
            assert (transcript.stop_reason, transcript.reward) == (StopReason.ANSWERED, 1.0)
            continue
        assert failure_of(transcript) == ENDS[part], transcript.error
        assert transcript.error.startswith(f"{ENDS[part]}: ")
        expected = StopReason.TOKEN_BUDGET if part == "too long" else StopReason.ENGINE_ERROR
        assert (transcript.stop_reason, transcript.reward) == (expected, 0.0)
    kept = found[parts.index("too long")]
    assert [call.status for call in kept.calls] == [CallStatus.OK]  # what came before is there


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("torn arguments", "the arguments are not valid JSON"),
        ("wrong tool", "there is no tool named browser_search__channel__"),
    ],
)
def test_a_call_that_cannot_be_read_gets_an_error_as_its_result(
    part: str, message: str, shop: Shop, teacher: FakeTeacher
) -> None:
    found = one(shop, teacher, part)
    assert found.calls[0].status is CallStatus.MALFORMED
    assert message in found.calls[0].output
    assert (found.tool_calls, found.reward) == (2, 1.0)
    told = teacher.asked[1]["messages"][-2]["tool_calls"][0]["function"]
    assert json.loads(told["arguments"])["code"] == found.calls[0].code  # whole, and JSON: templates parse it


def test_an_endless_loop_ends_with_the_call_budget(shop: Shop, teacher: FakeTeacher) -> None:
    found = one(shop, teacher, "endless")
    assert (found.stop_reason, found.tool_calls) == (StopReason.CALL_BUDGET, WIDE.tool_calls)
    assert (found.calls[-1].code, found.calls[-1].status) == ("print(8)", CallStatus.MALFORMED)  # asked for, and not run


@pytest.mark.parametrize(
    ("left", "reason", "turns"),
    [
        ({"turns": 2}, StopReason.TURN_BUDGET, 2),
        ({"turns": 3}, StopReason.ANSWERED, 3),
        ({"wall_seconds": 1e-9}, StopReason.TIME_BUDGET, 0),
        ({"wall_seconds": 1e-9, "context_tokens": 1}, StopReason.TOKEN_BUDGET, 0),
        ({"tool_calls": 1}, StopReason.CALL_BUDGET, 2),
    ],
)
def test_each_budget_ends_the_dialogue_as_it_ends_a_rollout(
    left: dict[str, Any], reason: StopReason, turns: int, shop: Shop, teacher: FakeTeacher
) -> None:
    found = one(shop, teacher, budget=replace(WIDE, **left))
    assert (found.stop_reason, len(found.steps), len(teacher.asked)) == (reason, turns, turns)


def test_a_turn_that_was_cut_ends_with_the_token_budget(shop: Shop, teacher: FakeTeacher) -> None:
    found = one(shop, teacher, "cut short")
    assert (found.stop_reason, found.steps[0].thinking, found.answer) == (StopReason.TOKEN_BUDGET, "I think and", None)
    found = one(shop, teacher, "cut in a call", calls="code")
    assert (found.stop_reason, found.calls[0].code, found.tool_calls) == (StopReason.TOKEN_BUDGET, "print(1", 0)


def test_the_context_bounds_a_dialogue(shop: Shop, teacher: FakeTeacher) -> None:
    teacher.models = {"teacher": 600}
    budget = Budget(context_tokens=8192, turn_tokens=2048, tool_calls=50, turns=50, wall_seconds=60)
    found = one(shop, teacher, "endless", budget=budget)
    assert found.stop_reason is StopReason.TOKEN_BUDGET
    assert all(0 < asked["max_tokens"] <= 600 for asked in teacher.asked)


def test_an_output_takes_room_before_the_server_has_counted_it(shop: Shop, teacher: FakeTeacher) -> None:
    teacher.models = {"teacher": 600}
    found = one(shop, teacher, "long output")
    counted = len(json.dumps(teacher.asked[0]["messages"])) // 4 + (found.steps[0].tokens or 0)
    assert len(found.calls[0].output) == 390
    assert 0 < teacher.asked[1]["max_tokens"] <= 600 - counted - 390 // 3


@pytest.mark.parametrize("part", ["cut once", "busy at first"])
def test_what_passes_is_tried_again(part: str, shop: Shop, teacher: FakeTeacher) -> None:
    found = one(shop, teacher, part)
    assert (found.reward, len(teacher.asked)) == (1.0, 4)
    if part == "busy at first":
        assert teacher.times[1] - teacher.times[0] >= 1.0  # never before its Retry-After


# -- no server


def test_a_server_that_is_gone_ends_the_work(shop: Shop, teacher: FakeTeacher) -> None:
    async def main() -> None:
        async with ChatAuthor(teacher.address) as author:
            teacher.dead = True
            await author.attempt(problem(), 0, 1, environment=shop.environment, budget=WIDE, decoding=Decoding())

    with pytest.raises(TeacherGone) as caught:
        shop.run(main())
    assert caught.value.field == "base_url"


@pytest.mark.parametrize(
    "settings",
    [{"model": "other"}, {}],
)
def test_a_model_that_is_not_there_is_refused_with_those_that_are(
    settings: dict[str, Any], shop: Shop, teacher: FakeTeacher
) -> None:
    teacher.models = {"one": None, "two": None}
    with refused("base_url") as caught:
        one(shop, teacher, **settings)
    assert "one, two" in str(caught.value)


def test_nobody_there(shop: Shop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with refused("base_url"):
        one(shop, FakeTeacher(address=f"http://127.0.0.1:{port}"))


def test_the_key_comes_from_the_environment(shop: Shop, teacher: FakeTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher.key = "sesame"
    monkeypatch.delenv("ASTER_TEACHER_KEY", raising=False)
    with refused("base_url") as caught:
        one(shop, teacher)
    assert "ASTER_TEACHER_KEY" in str(caught.value)
    monkeypatch.setenv("ASTER_TEACHER_KEY", "sesame")
    assert one(shop, teacher).reward == 1.0


# -- tokens and money


def test_every_answered_request_is_counted_once_over_all_starts(shop: Shop, teacher: FakeTeacher, tmp_path: Path) -> None:
    ledger = tmp_path / "requests.jsonl"
    prices = Prices(read=2.0, written=10.0)
    found = one(shop, teacher, spending=Spending(prices, ledger=ledger))
    assert found.usage is not None
    tokens = (found.usage.prompt_tokens, found.usage.completion_tokens)
    assert found.usage.cost == pytest.approx((2 * tokens[0] + 10 * tokens[1]) / 1e6)
    with open(ledger, "a") as stream:
        stream.write('{"problem_id": "p", "sam')  # a kill in the middle of a line
    again = Spending(prices, ledger=ledger)
    assert (again.total.prompt_tokens, again.total.completion_tokens) == tokens
    assert again.spent == pytest.approx(found.usage.cost)
    assert len(ledger.read_text().splitlines()) == 3


def test_the_limit_is_never_exceeded_by_requests_side_by_side(shop: Shop, teacher: FakeTeacher) -> None:
    """Each request may cost up to 2,048 tokens at 1,000 a million. They wait for one another, and stop before the limit."""
    spending = Spending(Prices(written=1000.0), limit=3.0)

    async def main() -> list[Transcript | BaseException]:
        async with ChatAuthor(teacher.address, spending=spending) as author:
            asked = [
                author.attempt(problem(number=n), 0, n, environment=shop.environment, budget=WIDE, decoding=Decoding())
                for n in range(40)
            ]
            return await asyncio.gather(*asked, return_exceptions=True)

    found = shop.run(main())
    stopped = [t for t in found if isinstance(t, LimitReached)]
    assert stopped
    assert {error.field for error in stopped} == {"max_cost"}
    assert len(stopped) + sum(isinstance(t, Transcript) and t.reward == 1.0 for t in found) == 40
    assert 3.0 - 2.048 < spending.spent <= 3.0
    assert teacher.gauge.most <= 2


@pytest.mark.parametrize("counts", [(), ("prompt_tokens",), ("completion_tokens",)])
def test_a_limit_without_counted_tokens_is_refused(counts: tuple[str, ...], shop: Shop, teacher: FakeTeacher) -> None:
    teacher.counts = counts
    assert one(shop, teacher).reward == 1.0
    with refused("max_cost"):
        one(shop, teacher, spending=Spending(Prices(1.0, 1.0), limit=1.0))


def test_a_server_that_tells_its_room_is_asked_again(shop: Shop) -> None:
    class Strict(FakeTeacher):
        """Refuses what does not fit, as vLLM does."""

        def reply(self, body: dict[str, Any]) -> Reply:
            if body["max_tokens"] > 300:
                text = (
                    f"'max_tokens' or 'max_completion_tokens' is too large: {body['max_tokens']}. This model's maximum context "
                    f"length is 500 tokens and your request has 200 input tokens ({body['max_tokens']} > 500 - 200)."
                )
                return Reply(400, json.dumps({"error": {"message": text}}).encode())
            return super().reply(body)

    with serving(Strict()) as teacher:
        found = one(shop, teacher)
    assert found.reward == 1.0
    assert [asked["max_tokens"] for asked in teacher.asked][:2] == [WIDE.turn_tokens, 300]
