"""The parts of the policy through the real server: sums, log-probabilities, checkpoints, and what it refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from aster.algorithms.grpo import Grpo
from aster.config.file import load_recipe
from aster.config.recipe import Recipe
from aster.engines import AdamStep, Loss, SamplingParams, TrainingSample
from aster.engines.opening import open_engine
from aster.errors import UserError

LENGTHS = (24, 11)
"""Tokens of the samples: within one shape that JAX compiles."""


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run to the end, in minutes: the server compiles."""
    asyncio.run(asyncio.wait_for(work(), 900))


def sample(length: int, scale: float, old: float | None = None) -> TrainingSample:
    """Ordinary tokens; the latter half is trained."""
    mask = [int(2 * i >= length) for i in range(length)]
    return TrainingSample(
        [3 + 7 * i % 200 for i in range(length)], mask, scale, None, None if old is None else [old] * sum(mask)
    )


def remote(recipe_file: Path, *overrides: str) -> Recipe:
    """The recipe of the server."""
    return load_recipe(recipe_file, overrides)


def test_log_probabilities_are_the_local_engines(recipe_file: Path) -> None:
    samples = [sample(length, 1.0) for length in LENGTHS]
    found = {}

    async def work() -> None:
        local = load_recipe(recipe_file, ("policy.kind=local", "policy.base_url=''", "policy.lora_rank=0"))
        for name, recipe in (("local", local), ("remote", remote(recipe_file))):
            async with open_engine(recipe.engine) as policy:
                found[name] = await policy.forward(samples)

    run(work)
    for here, there in zip(found["local"], found["remote"], strict=True):
        assert there == pytest.approx(here, abs=1e-3)


@pytest.mark.parametrize("loss", [Loss("cross_entropy"), Grpo().loss], ids=["cross_entropy", "ppo"])
def test_losses_are_sums_on_the_server(loss: Loss, recipe_file: Path) -> None:
    """Adapters begin at zero, so steps at rate 0 leave the gradients comparable."""

    async def work() -> None:
        async with open_engine(remote(recipe_file).engine) as policy:

            async def norm(*samples: TrainingSample) -> float:
                await policy.forward_backward(list(samples), loss)
                return (await policy.optim_step(AdamStep(0.0)))["grad_norm"]

            long, short = LENGTHS
            once = await norm(sample(long, 0.5))
            assert once > 0
            assert await norm(sample(long, 1.0)) == pytest.approx(2 * once, rel=1e-3)
            assert await norm(sample(long, 0.5), sample(long, 0.5)) == pytest.approx(2 * once, rel=1e-3)
            # A sample's share does not depend on its length: what one adds, its negative takes away.
            assert await norm(sample(long, 0.5), sample(short, 0.3), sample(short, -0.3)) == pytest.approx(once, rel=1e-3)

    run(work)


def test_a_checkpoint_goes_on_where_it_stopped(recipe_file: Path, tmp_path: Path) -> None:
    batch = [sample(length, 0.1) for length in LENGTHS]
    adam = AdamStep(1e-2)
    recipe = remote(recipe_file)
    checkpoint = tmp_path / "step_000002"
    after: list[list[list[float]]] = []

    async def work() -> None:
        async with open_engine(recipe.engine) as policy:
            for step in range(4):
                await policy.forward_backward(batch, Loss("cross_entropy"))
                await policy.optim_step(adam)
                if step == 1:
                    await policy.save(checkpoint)
                    after.append(await policy.forward(batch))
            after.append(await policy.forward(batch))
        async with open_engine(recipe.engine, checkpoint, optimizer=True) as policy:
            after.append(await policy.forward(batch))
            for _ in range(2):
                await policy.forward_backward(batch, Loss("cross_entropy"))
                await policy.optim_step(adam)
            after.append(await policy.forward(batch))

    run(work)
    saved, straight, loaded, resumed = [[value for part in parts for value in part] for parts in after]
    assert loaded == pytest.approx(saved, abs=1e-4)
    # Without the optimizer's moments the two steps would differ by far more.
    assert resumed == pytest.approx(straight, abs=1e-3)
    assert sum(straight) > sum(saved)


def test_sampled_log_probabilities_are_the_trainers(recipe_file: Path) -> None:
    async def work() -> None:
        async with open_engine(remote(recipe_file).engine, capacity=32) as policy:
            prompt = sample(16, 1.0).token_ids
            completion = await policy.sample(prompt, SamplingParams(max_tokens=16, temperature=0.7, seed=3))
            ids = prompt + completion.token_ids
            mask = [0] * len(prompt) + [1] * len(completion.token_ids)
            (again,) = await policy.forward([TrainingSample(ids, mask, 1.0)])
            assert completion.logprobs == pytest.approx(again, abs=1e-3)
            repeated = await policy.sample(prompt, SamplingParams(max_tokens=16, temperature=0.7, seed=3))
            assert repeated.token_ids == completion.token_ids

    run(work)


def test_sampling_does_not_undo_what_was_trained_meanwhile(recipe_file: Path) -> None:
    batch = [sample(length, 0.1) for length in LENGTHS]

    async def work() -> None:
        async with open_engine(remote(recipe_file).engine, capacity=32) as policy:
            before = await policy.forward(batch)
            await policy.forward_backward(batch, Loss("cross_entropy"))
            await policy.optim_step(AdamStep(1e-2))
            trained = await policy.forward(batch)
            assert trained[0] != pytest.approx(before[0], abs=1e-2)
            await policy.sample(batch[0].token_ids[:16], SamplingParams(max_tokens=16, seed=3))
            assert (await policy.forward(batch))[0] == pytest.approx(trained[0], abs=1e-5)

    run(work)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("policy.lora_rank=64", "policy.lora_rank: 64: "),
        ("policy.lora_rank=0", "0 trains all parameters"),
        ("policy.base_model=Qwen/Qwen3-4B", "not Qwen/Qwen3-4B"),
    ],
)
def test_what_the_server_cannot_do_is_one_line(override: str, words: str, recipe_file: Path) -> None:
    async def work() -> None:
        async with open_engine(remote(recipe_file, override).engine):
            pass

    with pytest.raises(UserError) as error:
        run(work)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
