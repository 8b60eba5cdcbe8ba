"""Sampling through a server, against a fake engine behind real HTTP: what is asked, what comes back, what goes wrong."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aster.algorithms.grpo import Grpo
from aster.config import EngineConfig, Model, Policy, Rollout
from aster.config.engine import BASE_MODEL
from aster.engines import AdamStep, Completion, SamplingParams
from aster.engines.endpoint import EndpointEngine
from aster.engines.opening import open_engine
from aster.http import ServerError
from aster.lab.tokenizer import build_tokenizer
from aster.rollout import Decoding, Job, RolloutContext, rollout_batch
from aster.types import Problem, StopReason, Trajectory
from tests.engines.fake_engine import TOKENIZER, FakeEngine, serving
from tests.refusals import refused
from tests.rollout.scripted import DIALECT, WIDE, turn
from tests.shop_fixture import Shop

END = DIALECT.end_id
ANSWER = turn("so", "It is \\boxed{4}.")
CALL = turn("let me see", "", "v = 3\nv + 1")


def by_turn(prompt: list[int], _: dict[str, Any]) -> tuple[list[int], str]:
    """Calls the tool, then answers."""
    called = TOKENIZER.decode(prompt).count("<tool_response>")
    return (ANSWER if called else CALL), "stop"


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    """One that behaves."""
    with serving(FakeEngine(by_turn)) as found:
        yield found


def recipe_for(engine: FakeEngine, slots: int = 8, **settings: Any) -> EngineConfig:
    policy = Policy(sampler="endpoint", base_url=engine.address, **({"request_seconds": 60.0} | settings))
    return EngineConfig(model=Model(path=str(BASE_MODEL)), policy=policy, rollout=Rollout(slots=slots))


async def sampled(recipe: EngineConfig, prompts: list[list[int]], params: SamplingParams) -> list[Completion | BaseException]:
    async with open_engine(recipe, capacity=1024) as policy:
        return await asyncio.gather(*(policy.sample(prompt, params) for prompt in prompts), return_exceptions=True)


def one(engine: FakeEngine, params: SamplingParams, prompt: list[int] | None = None, **settings: Any) -> Completion:
    """One turn; raises what sampling raised."""
    (found,) = asyncio.run(sampled(recipe_for(engine, **settings), [prompt or [1, 2, 3]], params))
    if isinstance(found, BaseException):
        raise found
    return found


PARAMS = SamplingParams(max_tokens=200, temperature=0.7, top_p=0.9, seed=5, stop_token_ids=(END,))


# -- turns


def test_a_turn_comes_back_as_the_tokens_and_log_probabilities_of_the_server(engine: FakeEngine) -> None:
    found = one(engine, PARAMS)
    assert (found.token_ids, found.logprobs, found.stopped) == (CALL, [-0.5] * len(CALL), True)
    asked = engine.asked[-1]
    assert asked["prompt"] == [1, 2, 3]
    assert (asked["max_tokens"], asked["temperature"], asked["top_p"], asked["stop_token_ids"]) == (200, 0.7, 0.9, [END])
    # What a model's generation_config.json may set on the server.
    assert (asked["top_k"], asked["min_p"], asked["repetition_penalty"]) == (-1, 0.0, 1.0)


def test_a_cut_turn_is_not_stopped(engine: FakeEngine) -> None:
    found = one(engine, SamplingParams(max_tokens=3, stop_token_ids=(END,)))
    assert (found.token_ids, found.stopped) == (CALL[:3], False)


def test_the_seed_belongs_to_trajectory_and_position(engine: FakeEngine) -> None:
    seeds = []
    for seed, prompt in ((5, [1, 2, 3]), (5, [1, 2, 3]), (5, [1, 2, 3, 4]), (6, [1, 2, 3])):
        one(engine, SamplingParams(max_tokens=3, seed=seed), prompt)
        seeds.append(engine.asked[-1]["seed"])
    assert seeds[0] == seeds[1]
    assert len(set(seeds)) == 3


@pytest.mark.parametrize("reason", ["stop", "abort"])
def test_a_turn_that_the_server_ended_goes_on(reason: str) -> None:
    """At an end token that is not ours, or because its weights were changed."""

    def halves(prompt: list[int], _: dict[str, Any]) -> tuple[list[int], str]:
        return ([7, 8], reason) if prompt[-2:] != [7, 8] else (ANSWER, "stop")

    with serving(FakeEngine(halves)) as engine:
        found = one(engine, PARAMS)
        assert (found.token_ids, found.stopped) == ([7, 8, *ANSWER], True)
        assert len(found.logprobs) == len(found.token_ids)
        assert (engine.asked[-1]["prompt"], engine.asked[-1]["max_tokens"]) == ([1, 2, 3, 7, 8], 198)


@pytest.mark.parametrize("reason", ["stop", "abort"])
def test_a_server_that_samples_nothing_is_an_error(reason: str) -> None:
    answers: list[tuple[list[int], str]] = [([], reason)]

    def nothing(prompt: list[int], _: dict[str, Any]) -> tuple[list[int], str]:
        return answers.pop() if prompt == [1, 2, 3] and answers else (ANSWER, "stop")

    with (
        serving(FakeEngine(nothing)) as engine,
        pytest.raises(ServerError, match=rf"\({reason}\)"),
    ):
        one(engine, PARAMS)


def test_a_turn_that_is_cut_before_its_first_token_waits_for_the_new_weights() -> None:
    """As one that reaches a server of ours as that goes to sleep."""
    asleep = threading.Event()

    def cut(prompt: list[int], _: dict[str, Any]) -> tuple[list[int], str]:
        if prompt != [1, 2, 3] or asleep.is_set():
            return ANSWER, "stop"
        asleep.wait(10)
        return [], "abort"

    async def work(engine: FakeEngine) -> Completion:
        async with open_engine(recipe_for(engine), capacity=1024) as policy:
            assert isinstance(policy, EndpointEngine)
            turn = asyncio.create_task(policy.sample([1, 2, 3], PARAMS))
            while engine.gauge.now == 0:
                await asyncio.sleep(0.01)
            policy.sampler.hold()
            asleep.set()
            while engine.gauge.now:
                await asyncio.sleep(0.01)
            assert not (await asyncio.wait([turn], timeout=0.1))[0]
            policy.sampler.resume()
            return await turn

    with serving(FakeEngine(cut)) as engine:
        assert asyncio.run(work(engine)).token_ids == ANSWER


def test_no_more_turns_are_under_way_than_slots(engine: FakeEngine) -> None:
    recipe = recipe_for(engine, slots=3)
    engine.seconds = 0.05
    found = asyncio.run(sampled(recipe, [[1, i] for i in range(12)], PARAMS))
    assert [c.token_ids for c in found if isinstance(c, Completion)] == [CALL] * 12
    assert engine.gauge.most == 3


# -- a server in trouble


@pytest.mark.parametrize("failures", [[429, 429], [500, 502], [503], [0, 0]], ids=str)
def test_a_request_is_sent_again(failures: list[int], engine: FakeEngine) -> None:
    async def main() -> Completion:
        async with open_engine(recipe_for(engine)) as policy:
            engine.failures = list(failures)
            return await policy.sample([1, 2, 3], PARAMS)

    assert asyncio.run(main()).token_ids == CALL
    assert len(engine.asked) == 2 + len(failures) + 1  # two of the probe


def test_a_request_that_is_wrong_is_not_sent_again(engine: FakeEngine) -> None:
    async def main() -> None:
        async with open_engine(recipe_for(engine)) as policy:
            engine.failures = [400]
            with pytest.raises(ServerError) as caught:
                await policy.sample([1, 2, 3], PARAMS)
            assert (caught.value.status, caught.value.kind) == (400, "refused")

    asyncio.run(main())
    assert len(engine.asked) == 3


@pytest.mark.parametrize("trouble", ["slow", "busy"])
def test_a_turn_has_a_time_limit(trouble: str, engine: FakeEngine) -> None:
    async def main() -> None:
        async with open_engine(recipe_for(engine, request_seconds=0.5)) as policy:
            engine.seconds = 60.0 if trouble == "slow" else 0.0
            engine.failures = [429] * 1000 if trouble == "busy" else []
            with pytest.raises(ServerError, match=r"\b0\.5 s\b") as caught:
                await policy.sample([1, 2, 3], PARAMS)
            assert caught.value.kind == {"slow": "timeout", "busy": "rate_limited"}[trouble]

    asyncio.run(main())


def batch(shop: Shop, recipe: EngineConfig, engine: FakeEngine, dies_after: int | None = None) -> list[Trajectory]:
    """Six trajectories in the real sandbox; the fake may die after so many turns."""

    async def main() -> list[Trajectory]:
        async with open_engine(recipe, capacity=WIDE.context_tokens) as policy:
            turns = 0

            def reply(prompt: list[int], body: dict[str, Any]) -> tuple[list[int], str]:
                nonlocal turns
                turns += 1
                engine.dead = turns == dies_after
                return by_turn(prompt, body)

            engine.reply = reply
            context = RolloutContext(lambda _: policy, policy.dialect, shop.environment, 2)
            jobs = [Job(Problem(f"p{i}", "What is 2+2?", "4"), 0, i) for i in range(6)]
            return await rollout_batch(jobs, context, WIDE, Decoding())

    return shop.run(main())


def test_whole_rollouts_with_the_sandbox(shop: Shop, engine: FakeEngine) -> None:
    for trajectory in batch(shop, recipe_for(engine), engine):
        assert (trajectory.stop_reason, trajectory.reward, trajectory.tool_calls) == (StopReason.ANSWERED, 1.0, 1)
        assert trajectory.calls[0].output == "4"
        assert trajectory.sampled_tokens == len(CALL) + len(ANSWER)


def test_a_server_that_dies_costs_the_trajectories_that_need_it_and_no_more(
    shop: Shop, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aster.http.PAUSES", (0.01, 0.02))
    found = batch(shop, recipe_for(engine), engine, dies_after=4)
    ends = [t.stop_reason for t in found]
    assert ends.count(StopReason.ANSWERED) >= 1
    assert ends.count(StopReason.ENGINE_ERROR) >= 4
    assert all("ServerError" in t.error for t in found if t.stop_reason is StopReason.ENGINE_ERROR)


# -- what opening refuses, each in one line


def not_opened(recipe: EngineConfig, field: str, *named: str) -> None:
    async def main() -> None:
        async with open_engine(recipe, capacity=1024):
            raise AssertionError("it was opened")

    with refused(field, *named):
        asyncio.run(main())


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aster.http.PAUSES", (0.01,))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    not_opened(recipe_for(FakeEngine(by_turn, address=address)), "policy.base_url", f"{address}/v1/models")


def test_another_model(engine: FakeEngine) -> None:
    engine.models = {"one": 4096, "two": 4096}
    not_opened(recipe_for(engine, model_name="three"), "policy.model_name", "three", engine.address, "one, two")
    not_opened(recipe_for(engine), "policy.model_name", engine.address, "one, two")
    assert one(engine, PARAMS, model_name="two").token_ids == CALL
    assert engine.asked[-1]["model"] == "two"


def test_a_context_longer_than_the_server_s(engine: FakeEngine) -> None:
    engine.models = {"tiny": 1000}
    not_opened(recipe_for(engine), "policy.base_url", "1000", "limits.context_tokens", "1024")


def test_no_token_ids(engine: FakeEngine) -> None:
    engine.token_ids = False
    not_opened(recipe_for(engine), "policy.base_url", "return_token_ids")


def test_another_tokenizer(engine: FakeEngine) -> None:
    engine.tokenizer = build_tokenizer()
    engine.tokenizer.add_tokens(["result of"])
    not_opened(recipe_for(engine), "policy.base_url", "tokenizer", "model.path")


def test_tempered_log_probabilities(engine: FakeEngine) -> None:
    engine.tempered = True
    not_opened(recipe_for(engine), "policy.base_url", "--logprobs-mode raw_logprobs")


def test_the_key_comes_from_the_environment(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.key = "sesame"
    monkeypatch.delenv("ASTER_POLICY_KEY", raising=False)
    not_opened(recipe_for(engine), "policy.base_url", "ASTER_POLICY_KEY")
    monkeypatch.setenv("ASTER_POLICY_KEY", "sesame")
    assert one(engine, PARAMS).token_ids == CALL


def test_the_address_may_end_in_v1(engine: FakeEngine) -> None:
    engine.address += "/v1/"
    assert one(engine, PARAMS).token_ids == CALL


def test_an_endpoint_is_not_trained(engine: FakeEngine, tmp_path: Path) -> None:
    async def main() -> None:
        async with open_engine(recipe_for(engine)) as policy:
            for work in (
                policy.forward([]),
                policy.forward_backward([], Grpo().loss),
                policy.optim_step(AdamStep(1e-3)),
                policy.save(tmp_path),
            ):
                with refused("policy.sampler", "sft", "rl"):
                    await work
            await policy.pause_sampler()
            await policy.refresh_sampler()

        with refused("policy.sampler", "sft", "rl"):
            async with open_engine(recipe_for(engine), tmp_path):
                pass

    asyncio.run(main())
