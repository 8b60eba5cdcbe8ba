"""vLLM for real: its tokens and log-probabilities are the model's, weights are refreshed in place, whole stages run on it."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from aster.config import Model, Policy, Rollout
from aster.config.engine import BASE_MODEL
from aster.config.recipe import Recipe
from aster.engines import Completion, SamplingParams, TrainingSample
from aster.engines.base import Engine as AnyPolicy
from aster.engines.opening import open_engine
from aster.environments import PythonMath, PythonTool
from aster.evaluation.folder import EvaluationFolder
from aster.rollout import Decoding, Job, RolloutContext, rollout_batch
from aster.run import RunFolder, read_json
from aster.types import Budget, Problem, StopReason, Trajectory
from tests.engines.models import oracle, oracle_logprobs
from tests.stages.runs import LIMITS, Commands, Tiny
from tests.vllm.conftest import Engine

PROMPTS = ["What is 3*4?", "Toss 7", "a:5*6"]
EXACT = 1e-3
"""Greatest difference of two log-probabilities in float32, in nats."""


async def turns(policy: AnyPolicy, prompts: list[list[int]], **params: Any) -> list[Completion]:
    stop = tuple(policy.dialect.stop_token_ids)
    asked = [SamplingParams(stop_token_ids=stop, sequence=str(i), **params) for i in range(len(prompts))]
    return await asyncio.gather(*(policy.sample(prompt, a) for prompt, a in zip(prompts, asked, strict=True)))


def check_logprobs(model: Any, prompts: list[list[int]], found: list[Completion]) -> None:
    """Each is that of a fresh forward."""
    for prompt, completion in zip(prompts, found, strict=True):
        fresh = oracle_logprobs(model, prompt + completion.token_ids)[len(prompt) - 1 :]
        torch.testing.assert_close(torch.tensor(completion.logprobs), fresh, atol=EXACT, rtol=0)


# -- a server that the user started


def endpoint(address: str) -> Recipe:
    return Recipe(
        model=Model(path=str(BASE_MODEL), device="cpu", threads=1),
        policy=Policy(sampler="endpoint", base_url=address),
        rollout=Rollout(slots=8, cache_tokens=1 << 14),
    )


@pytest.fixture(scope="module")
def greedy(lab_server: str) -> tuple[list[list[int]], list[Completion], list[Completion]]:
    """Prompts, and the turns of vLLM and of the local sampler, on the lab's base model."""

    async def main() -> tuple[list[list[int]], list[Completion], list[Completion]]:
        async with open_engine(endpoint(lab_server).engine, capacity=512) as policy:
            prompts = [policy.dialect.prompt_ids(text) for text in PROMPTS]
            theirs = await turns(policy, prompts, max_tokens=64, temperature=0.0)
        local = endpoint(lab_server).model_copy(update={"policy": Policy()})
        async with open_engine(local.engine, capacity=512) as policy:
            return prompts, theirs, await turns(policy, prompts, max_tokens=64, temperature=0.0)

    return asyncio.run(main())


def test_greedy_turns_are_the_local_sampler_s(greedy: tuple[list[list[int]], list[Completion], list[Completion]]) -> None:
    _, theirs, ours = greedy
    assert [(c.token_ids, c.stopped) for c in theirs] == [(c.token_ids, c.stopped) for c in ours]
    for a, b in zip(theirs, ours, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=EXACT)


def test_greedy_turns_are_those_of_transformers(greedy: tuple[list[list[int]], list[Completion], list[Completion]]) -> None:
    prompts, theirs, _ = greedy
    model = oracle(BASE_MODEL)
    for prompt, completion in zip(prompts, theirs, strict=True):
        made = model.generate(torch.tensor([prompt]), max_new_tokens=64, do_sample=False)[0, len(prompt) :]
        assert completion.token_ids == made.tolist()


@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_log_probabilities_are_the_model_s_at_any_temperature(lab_server: str, temperature: float) -> None:
    async def main() -> None:
        async with open_engine(endpoint(lab_server).engine, capacity=512) as policy:
            prompts = [policy.dialect.prompt_ids(text) for text in PROMPTS]
            found = await turns(policy, prompts, max_tokens=64, temperature=temperature, top_p=0.95, seed=3)
            check_logprobs(oracle(BASE_MODEL), prompts, found)

    asyncio.run(main())


def test_evaluation_through_an_endpoint(lab_server: str, commands: Commands, tmp_path: Path) -> None:
    settings = ["policy.sampler=endpoint", f"policy.base_url={lab_server}", "evaluate.policies=[base]"]
    settings += ["evaluate.problems=4", "evaluate.k=2", "problems.levels=[1, 2]", "evaluate.limits.context_tokens=1024"]
    ended = commands.run("evaluate", "lab", *settings, "beside=[]", "--run", tmp_path / "run")
    assert ended.code == 0, ended.err
    assert read_json(tmp_path / "run" / "summary.json")["base"]["problems"] == 4
    latest = EvaluationFolder.load(tmp_path / "run" / "evaluate" / "base").latest()
    found = [attempt for attempt in latest if isinstance(attempt, Trajectory)]
    assert [t.error for t in found] == [""] * 8
    assert all(t.sampled_tokens and len(t.logprobs) == len(t.token_ids) for t in found)


# -- a server that ASTER starts


def prompts_of(engine: Engine) -> list[list[int]]:
    return [engine.policy.dialect.prompt_ids(f"Toss {i}") for i in range(4)]


def redraw(model: Any, seed: int) -> None:
    """Random weights, wide enough that a greedy choice does not hang on a rounding error."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)


def restore(engine: Engine, folder: Path) -> None:
    """Give the model the weights of a checkpoint, for the tests that come after."""
    engine.policy.local.model.load_state_dict(oracle(folder).state_dict())
    engine.run(engine.policy.refresh_sampler)


def test_a_seed_repeats_a_turn_and_another_does_not(engine: Engine) -> None:
    prompts = prompts_of(engine)
    first, again, other = (
        [c.token_ids for c in engine.run(functools.partial(turns, engine.policy, prompts, max_tokens=48, seed=seed))]
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize("sleeps", [True, False])
def test_refreshed_weights_are_those_that_sample(engine: Engine, sleeps: bool, tmp_path: Path) -> None:
    prompts, policy = prompts_of(engine), engine.policy
    policy.sleeps = sleeps
    engine.run(lambda: policy.save(tmp_path / "before", optimizer=False))
    before = engine.run(lambda: turns(policy, prompts, max_tokens=32, temperature=0.0))
    redraw(policy.local.model, seed=1 + sleeps)
    engine.run(policy.refresh_sampler)
    engine.run(lambda: policy.save(tmp_path / "random", optimizer=False))
    model = oracle(tmp_path / "random")
    found = engine.run(lambda: turns(policy, prompts, max_tokens=32, temperature=0.0))
    for prompt, completion in zip(prompts, found, strict=True):
        made = model.generate(torch.tensor([prompt]), max_new_tokens=32, do_sample=False)[0, len(prompt) :]
        assert completion.token_ids == made.tolist()
    check_logprobs(model, prompts, engine.run(lambda: turns(policy, prompts, max_tokens=32, seed=4)))
    restore(engine, tmp_path / "before")
    assert engine.run(lambda: turns(policy, prompts, max_tokens=32, temperature=0.0)) != found
    back = engine.run(lambda: turns(policy, prompts, max_tokens=32, temperature=0.0))
    assert [c.token_ids for c in back] == [c.token_ids for c in before]


def test_a_turn_under_way_goes_on_with_the_new_weights(engine: Engine, tmp_path: Path) -> None:
    prompt, policy = prompts_of(engine)[0], engine.policy
    engine.run(lambda: policy.save(tmp_path / "before", optimizer=False))

    async def main() -> Completion:
        # No stop token: the turn is as long as it may be.
        turn = asyncio.create_task(policy.sample(prompt, SamplingParams(max_tokens=400, seed=2)))
        await asyncio.sleep(0.5)
        await policy.pause_sampler()
        await asyncio.sleep(0.2)
        assert not turn.done()
        redraw(policy.local.model, seed=5)
        await policy.refresh_sampler()
        return await turn

    completion = engine.run(main)
    engine.run(lambda: policy.save(tmp_path / "after", optimizer=False))
    assert len(completion.token_ids) == len(completion.logprobs) == 400
    ids = prompt + completion.token_ids
    old, new = (oracle_logprobs(oracle(tmp_path / name), ids)[len(prompt) - 1 :] for name in ("before", "after"))
    given = torch.tensor(completion.logprobs)
    from_old, from_new = (given - old).abs() < EXACT, (given - new).abs() < EXACT
    # First the old weights' tokens, then the new ones', and nothing else.
    switch = int((~from_old).nonzero()[0, 0])
    assert 0 < switch < 400
    assert bool(from_new[switch:].all())
    restore(engine, tmp_path / "before")


def test_whole_rollouts_with_the_sandbox(engine: Engine) -> None:
    async def main() -> None:
        async with PythonMath([PythonTool(engine.recipe.sandbox)]) as environment:
            context = RolloutContext(lambda _: engine.policy, engine.policy.dialect, environment, 8)
            jobs = [Job(Problem(f"coin-{i}", f"Toss {i}", "1"), 0, i) for i in range(16)]
            found = await rollout_batch(jobs, context, Budget(400, 64, 2, 4, 60), Decoding())
        assert [t.error for t in found] == [""] * 16
        assert StopReason.ANSWERED in {t.stop_reason for t in found}
        called = [t for t in found if t.tool_calls]
        assert 0 < len(called) < 16
        assert called[0].calls[0].output == "1"
        model = oracle(Path(engine.recipe.model.path))
        for trajectory in found[:4]:
            fresh = oracle_logprobs(model, trajectory.token_ids)
            mask = torch.tensor(trajectory.loss_mask[1:], dtype=torch.bool)
            torch.testing.assert_close(torch.tensor(trajectory.logprobs)[1:][mask], fresh[mask], atol=EXACT, rtol=0)

    engine.run(main)


def test_a_server_that_dies_is_started_again(engine: Engine) -> None:
    prompts, policy = prompts_of(engine), engine.policy
    before = engine.run(lambda: turns(policy, prompts, max_tokens=32, temperature=0.0))
    process = policy.server._process
    assert process is not None
    os.killpg(process.pid, signal.SIGKILL)
    after = engine.run(lambda: turns(policy, prompts, max_tokens=32, temperature=0.0))
    assert policy.server.starts == 2
    assert [c.token_ids for c in after] == [c.token_ids for c in before]


def test_adapters_are_sampled_from_as_they_are_trained(vllm_python: str, coin_model: Path) -> None:
    recipe = Recipe(
        model=Model(path=str(coin_model), device="cpu", threads=1),
        policy=Policy(sampler="vllm", vllm_python=vllm_python, lora_rank=4, lora_alpha=8.0),
        rollout=Rollout(slots=16, cache_tokens=1 << 14),
    )
    engine = Engine(recipe, 512)
    try:
        generator = torch.Generator().manual_seed(5)
        for name, parameter in engine.policy.local.model.named_parameters():
            if "lora_" in name:
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        engine.run(engine.policy.refresh_sampler)
        prompts = prompts_of(engine)
        found = engine.run(lambda: turns(engine.policy, prompts, max_tokens=32, seed=1))
        pairs = list(zip(prompts, found, strict=True))
        samples = [TrainingSample(p + c.token_ids, [0] * len(p) + [1] * len(c.token_ids), 1.0) for p, c in pairs]
        trained = engine.run(lambda: engine.policy.forward(samples))
        base = oracle(coin_model)
        apart = 0.0
        for (prompt, completion), logprobs in zip(pairs, trained, strict=True):
            assert completion.logprobs == pytest.approx(logprobs, abs=EXACT)
            fresh = oracle_logprobs(base, prompt + completion.token_ids)[len(prompt) - 1 :]
            apart = max(apart, float((torch.tensor(logprobs) - fresh).abs().max()))
        assert apart > 100 * EXACT, "the adapters change what is sampled"
    finally:
        engine.close()


def test_rl_steps_with_weights_refreshed(vllm_python: str, tiny: Tiny, commands: Commands, tmp_path: Path) -> None:
    changes = {
        "cold_start": "zero",
        "policy": {"sampler": "vllm", "vllm_python": vllm_python},
        "rl.stages": [{"steps": 4, "limits": {**LIMITS, "context_tokens": 400}}],
        "rl.prompts": 4,
        "rl.samples": 8,
        "rl.minibatches": 1,
        "rollout.deterministic": False,
    }
    process, _, err = commands.start("rl", tiny.file(tmp_path / "tiny.yaml", changes), "--run", tmp_path / "run")
    process.join(900)
    assert process.exitcode == 0, err.read_text()
    metrics = RunFolder.load(tmp_path / "run").metrics("rl")
    assert len(metrics) == 4
    trained = [line for line in metrics if line["optimizer_steps"]]
    assert len(trained) >= 2
    # The trainer's probability over the sampler's, on tokens sampled since the last refresh: 1, unless weights are stale.
    assert [line["importance"] for line in trained] == pytest.approx([1.0] * len(trained), abs=1e-3)
    assert sum(line["grad_norm"] for line in trained) > 0
