"""The sampler under random schedules: lengths, delays of tools, failures, cancellations, pauses. What comes out is exact.

``ASTER_TEST_SCHEDULES=10000`` runs so many; by default a few hundred.
"""

from __future__ import annotations

import asyncio
import os
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from aster.engines import SamplingParams
from aster.engines.local import sampler as sampler_module
from aster.engines.local.attention import IMPLEMENTATION
from aster.engines.local.cpu import linear
from aster.engines.local.decoder import Decoder
from aster.engines.local.drawing import uniform
from aster.engines.local.sampler import LocalSampler
from tests.engines.models import before_each_forward

SCHEDULES = int(os.environ.get("ASTER_TEST_SCHEDULES", "300"))
PARTS = 4
VOCABULARY = 20
STOP = 3
CAPACITY = 96


class Broken(Exception):
    """What the engine is made to raise."""


def tiny_model(attention: str) -> Any:
    torch.manual_seed(7)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        initializer_range=0.7,
        tie_word_embeddings=False,
        attn_implementation=attention,
    )
    return Qwen3ForCausalLM(config).eval()


@dataclass
class Story:
    """One trajectory of a schedule, and what came of it."""

    name: str
    rng: random.Random
    common: list[int]
    """What many prompts begin with."""
    ids: list[int] = field(default_factory=list)
    drawn: list[tuple[int, float]] = field(default_factory=list)
    """(position, log-probability) of each sampled token."""
    seed: int = 0
    temperature: float = 1.0
    outcome: str = ""
    failures: int = 0

    async def live(self, sampler: LocalSampler) -> None:
        rng = self.rng
        self.seed = rng.randrange(1 << 40)
        self.temperature = rng.choice([0.0, 0.7, 1.0])
        self.ids = self.common[: rng.choice([0, 10, 20, 35, 40])]
        self.ids = self.ids + [rng.randrange(VOCABULARY) for _ in range(rng.choice([0, 1, 3, 30]) if self.ids else 7)]
        await self.rest()
        sampler.open(self.name)
        try:
            for _ in range(rng.randint(1, 4)):
                room = CAPACITY - len(self.ids)
                if room < 1:
                    break
                await self.turn(sampler, rng.randint(1, min(room, 12)))
                await self.rest()
                self.ids += [rng.randrange(VOCABULARY) for _ in range(rng.randint(0, 6))]
                if rng.random() < 0.05:  # a history that is not what is cached
                    cut = rng.randrange(1, len(self.ids) + 1)
                    self.ids = self.ids[:cut]
                    self.drawn = [(position, logprob) for position, logprob in self.drawn if position < cut]
            self.outcome = "ended"
        except asyncio.CancelledError:
            self.outcome = "cancelled"
            raise
        finally:
            sampler.release(self.name)

    async def turn(self, sampler: LocalSampler, tokens: int) -> None:
        params = SamplingParams(tokens, self.temperature, 1.0, self.seed, (STOP,), self.name)
        while True:
            try:
                completion = await sampler.sample(list(self.ids), params)
                break
            except RuntimeError as error:
                if "Broken" not in str(error):
                    raise
                self.failures += 1
        assert 1 <= len(completion.token_ids) <= tokens
        assert completion.stopped == (completion.token_ids[-1] == STOP)
        assert STOP not in completion.token_ids[:-1]
        assert completion.stopped or len(completion.token_ids) == tokens
        self.drawn += zip(range(len(self.ids), len(self.ids) + tokens), completion.logprobs, strict=False)
        self.ids += completion.token_ids

    async def rest(self) -> None:
        """A tool that takes a while, or no time at all."""
        for _ in range(self.rng.choice([0, 0, 1, 5, 20])):
            await asyncio.sleep(0)

    def check(self, reference: Any) -> None:
        """Every token is the one that a fresh forward over the whole history and the token's own random number give."""
        if not self.drawn:
            return
        with torch.inference_mode():
            logits = reference(torch.tensor([self.ids])).logits[0].double()
        for position, logprob in self.drawn:
            row, token = logits[position - 1], self.ids[position]
            assert abs(float(row.log_softmax(-1)[token]) - logprob) < 1e-4
            if self.temperature == 0:
                assert float(row.max() - row[token]) < 1e-4
                continue
            cumulative = (row / self.temperature).softmax(-1).cumsum(-1).numpy()
            draw = float(uniform([self.seed], [position])[0])
            # The two forwards differ in their last bits: a draw on the edge between two tokens may be either.
            assert np.searchsorted(cumulative, draw - 1e-4) <= token <= np.searchsorted(cumulative, draw + 1e-4)


async def play(sampler: LocalSampler, seed: int) -> list[Story]:
    rng = random.Random(seed)
    common = [rng.randrange(VOCABULARY) for _ in range(40)]
    stories = [Story(f"{seed}/{number}", random.Random(rng.random()), common) for number in range(rng.randint(1, 7))]
    breaks = iter([rng.randrange(30)] if rng.random() < 0.3 else [])
    countdown = next(breaks, None)

    def forward(*_: Any) -> None:
        nonlocal countdown
        if countdown is not None:
            countdown -= 1
            if countdown < 0:
                countdown = next(breaks, None)
                raise Broken

    tasks = [asyncio.create_task(story.live(sampler)) for story in stories]

    async def disturb() -> None:
        for _ in range(rng.randrange(4)):
            for _ in range(rng.randrange(40)):
                await asyncio.sleep(0)
            if rng.random() < 0.5:
                rng.choice(tasks).cancel()
            else:
                await sampler.pause()
                await asyncio.sleep(0)
                sampler.resume(changed=rng.random() < 0.5)

    with before_each_forward(sampler, forward):
        await asyncio.gather(disturb(), *tasks, return_exceptions=True)
    for task in tasks:
        if not task.cancelled() and task.exception() is not None:
            raise task.exception() or AssertionError
    return stories


@pytest.mark.parametrize("part", range(PARTS))
def test_random_schedules_end_exact_and_leak_no_slot(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, reference = tiny_model(IMPLEMENTATION), tiny_model("eager")
    outcomes: dict[str, int] = {"ended": 0, "cancelled": 0, "failed once": 0}
    with ThreadPoolExecutor(1) as pool:
        for seed in range(part, SCHEDULES, PARTS):
            rng = random.Random(-seed - 1)
            monkeypatch.setattr(sampler_module, "MAX_BATCHED_TOKENS", rng.choice([8192, 8]))
            sampler = LocalSampler(model, rng.randint(1, 5), CAPACITY, False, pool)
            monkeypatch.setattr(linear, "MIN_PACKED_ELEMENTS", rng.choice([1, 1 << 18]))
            if rng.random() < 0.5:  # as on other devices
                sampler.decoder = Decoder(model, sampler.cache)

            async def work(sampler: LocalSampler = sampler, seed: int = seed) -> list[Story]:
                stories = await asyncio.wait_for(play(sampler, seed), 60)
                # Another turn lets the sampler settle; it is then the only one that is known.
                await sampler.sample([1, 2], SamplingParams(1, sequence="last"))
                return stories

            stories = asyncio.run(work())
            assert list(sampler.sequences) == ["last"]
            assert [holder.name for holder in sampler.holders] == ["last"]
            assert len(sampler.free_slots) == sampler.cache.slots - 1
            assert [*sampler.waiting, *sampler.incoming, *sampler.leaving] == []
            for story in stories:
                story.check(reference)
                outcomes["failed once"] += story.failures > 0
                if story.outcome:
                    outcomes[story.outcome] += 1
    assert all(outcomes.values()), outcomes
