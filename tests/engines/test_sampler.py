"""The sampler against plain transformers, and what happens when sequences crowd, leave and fail."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from aster.engines import Completion, SamplingParams
from aster.engines.local import sampler as sampler_module
from aster.engines.local.engine import LocalEngine
from tests.engines.models import before_each_forward, oracle, oracle_logprobs, random_ids, recipe_for
from tests.refusals import refused

CAPACITY = 256
TURN = SamplingParams(max_tokens=9, temperature=1.2, top_p=0.95)


def make_policy(folder: Path, slots: int = 8, deterministic: bool = False) -> LocalEngine:
    return LocalEngine(recipe_for(folder, slots, deterministic), capacity=CAPACITY)


@contextmanager
def forwards(policy: LocalEngine) -> Iterator[list[int]]:
    """Records how many tokens each forward is fed."""
    fed: list[int] = []
    with before_each_forward(policy.sampler, lambda flat: fed.append(len(flat))):
        yield fed


@dataclass
class Dialogue:
    """Turns sampled with templated tool tokens between them."""

    name: str
    prompt: list[int]
    turns: int = 3
    delays: list[float] = field(default_factory=list)
    params: SamplingParams = TURN

    async def play(self, policy: LocalEngine) -> tuple[list[int], list[int], list[float]]:
        """Returns tokens, positions of the sampled ones, and their log-probabilities."""
        policy.open(self.name)
        ids = list(self.prompt)
        sampled: list[int] = []
        logprobs: list[float] = []
        for index in range(self.turns):
            seed = sum(map(ord, self.name))
            completion = await policy.sample(ids, replace(self.params, sequence=self.name, seed=seed))
            sampled += range(len(ids), len(ids) + len(completion.token_ids))
            logprobs += completion.logprobs
            ids = ids + completion.token_ids + random_ids(1000 + index, 4)
            if self.delays:
                await asyncio.sleep(self.delays[index % len(self.delays)])
        policy.release(self.name)
        return ids, sampled, logprobs


def dialogues(count: int, delays: list[float] | None = None) -> list[Dialogue]:
    return [
        Dialogue(f"{index:03d}", random_ids(index, 3 + 11 * index % 29), delays=[delays[index % len(delays)]] if delays else [])
        for index in range(count)
    ]


async def play_all(policy: LocalEngine, games: list[Dialogue]) -> list[tuple[list[int], list[int], list[float]]]:
    return await asyncio.gather(*(game.play(policy) for game in games))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_greedy_equals_generate_on_ragged_prompts(folder: Path, attention: str) -> None:
    policy, reference = make_policy(folder, slots=3), oracle(folder, attention)
    prompts = [random_ids(seed, length) for seed, length in enumerate([1, 40, 7, 2, 23, 90, 5, 12])]

    def generate(prompt: list[int], stop: int | None) -> list[int]:
        ids = torch.tensor([prompt])
        settings = {"do_sample": False, "max_new_tokens": 24, "eos_token_id": stop, "pad_token_id": 0}
        return reference.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, len(prompt) :].tolist()

    reference.generation_config.eos_token_id = None
    stop = generate(prompts[1], None)[5]  # a token that greedy decoding meets

    async def work() -> list[Completion]:
        params = SamplingParams(max_tokens=24, temperature=0.0, stop_token_ids=(stop,))
        return await asyncio.gather(
            *(policy.sample(prompt, replace(params, sequence=str(i))) for i, prompt in enumerate(prompts))
        )

    completions = asyncio.run(work())
    assert any(c.stopped for c in completions)
    assert not all(c.stopped for c in completions)
    for prompt, completion in zip(prompts, completions, strict=True):
        expected = generate(prompt, stop)
        assert completion.token_ids == expected
        assert completion.stopped == (expected[-1] == stop)


@pytest.mark.parametrize("fast", ["1", "0"])
@pytest.mark.parametrize("slots", [2, 8])
def test_logprobs_equal_a_fresh_forward_across_turns(
    folder: Path, slots: int, fast: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two slots for seven dialogues, those whose tool runs are evicted and fed again. With the fast path of a CPU and
    without, as on other devices."""
    monkeypatch.setenv("ASTER_FAST_CPU", fast)
    policy, reference = make_policy(folder, slots), oracle(folder)
    for ids, sampled, logprobs in asyncio.run(play_all(policy, dialogues(7, delays=[0.0, 0.02]))):
        assert len(sampled) == 27
        expected = oracle_logprobs(reference, ids)[[position - 1 for position in sampled]]
        torch.testing.assert_close(torch.tensor(logprobs), expected, atol=1e-4, rtol=0)


def test_a_second_turn_feeds_only_what_is_new(lab_folder: Path) -> None:
    policy = make_policy(lab_folder)
    with forwards(policy) as fed:
        asyncio.run(Dialogue("a", random_ids(0, 30)).play(policy))
    # The last token of a turn was sampled and not fed yet; four tool tokens follow it.
    assert fed == [30, *[1] * 8, 5, *[1] * 8, 5, *[1] * 8]


def test_a_changed_history_is_fed_again(lab_folder: Path) -> None:
    policy = make_policy(lab_folder)

    async def work() -> Completion:
        ids = random_ids(0, 30)
        params = SamplingParams(max_tokens=4, temperature=0.0, sequence="a")
        await policy.sample(ids, params)
        return await policy.sample([*ids[:20], *random_ids(1, 5)], params)

    with forwards(policy) as fed:
        completion = asyncio.run(work())
    assert fed == [30, 1, 1, 1, 5, 1, 1, 1]
    ids = [*random_ids(0, 30)[:20], *random_ids(1, 5)]
    expected = oracle_logprobs(oracle(lab_folder), ids + completion.token_ids)[len(ids) - 1 :]
    torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-4, rtol=0)


def test_eviction_takes_only_sequences_that_wait_for_a_tool(lab_folder: Path) -> None:
    """Every dialogue gives what it gives alone, whoever had to give up its slot."""
    alone = [asyncio.run(game.play(make_policy(lab_folder))) for game in dialogues(6)]
    policy = make_policy(lab_folder, slots=2)
    with forwards(policy) as fed:
        crowded = asyncio.run(play_all(policy, dialogues(6, delays=[0.03])))
    assert [ids for ids, _, _ in crowded] == [ids for ids, _, _ in alone]
    least = sum(len(ids) - 5 for ids, _, _ in alone)  # each token once, but for the last turn's last and its tool's
    assert sum(fed) > least


def test_long_prompts_are_fed_in_pieces(lab_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = asyncio.run(play_all(make_policy(lab_folder), dialogues(5)))
    monkeypatch.setattr(sampler_module, "MAX_BATCHED_TOKENS", 7)
    policy = make_policy(lab_folder)
    with forwards(policy) as fed:
        pieces = asyncio.run(play_all(policy, dialogues(5)))
    assert max(fed) == 7
    assert [ids for ids, _, _ in pieces] == [ids for ids, _, _ in whole]


def kindred() -> list[Dialogue]:
    """Four of one prompt, one whose prompt begins like theirs, one with nothing in common."""
    shared = random_ids(0, 40)
    games = [Dialogue(f"{index}", shared) for index in range(4)]
    return [*games, Dialogue("like", shared[:25] + random_ids(1, 10)), Dialogue("other", random_ids(2, 12))]


def test_a_prompt_of_many_is_read_once(lab_folder: Path) -> None:
    policy = make_policy(lab_folder)
    with forwards(policy) as fed:
        asyncio.run(play_all(policy, kindred()))
    # The first of them and the stranger; then the last token of each other one, the rest of the prompt that goes on
    # otherwise, and the first step of the two.
    assert fed[:2] == [40 + 12, 3 + 10 + 2]


@pytest.mark.parametrize(("slots", "piece"), [(2, 8192), (8, 8192), (8, 7)])
def test_copied_prompts_are_as_good_as_read_ones(folder: Path, slots: int, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler_module, "MAX_BATCHED_TOKENS", piece)
    policy, reference = make_policy(folder, slots), oracle(folder)
    for ids, sampled, logprobs in asyncio.run(play_all(policy, [replace(game, delays=[0.02]) for game in kindred()])):
        expected = oracle_logprobs(reference, ids)[[position - 1 for position in sampled]]
        torch.testing.assert_close(torch.tensor(logprobs), expected, atol=1e-4, rtol=0)


def test_one_policy_serves_one_event_loop_after_another(lab_folder: Path) -> None:
    policy = make_policy(lab_folder, slots=2, deterministic=True)
    games = dialogues(4, delays=[0.01, 0.0])
    assert asyncio.run(play_all(policy, games)) == asyncio.run(play_all(policy, games))


@pytest.mark.parametrize("slots", [5, 16])
def test_deterministic_means_the_same_steps_to_the_bit_whatever_the_tools_delays(lab_folder: Path, slots: int) -> None:
    policy = make_policy(lab_folder, slots, deterministic=True)
    rows: list[list[int]] = []
    runs = []
    for delays in ([0.0], [0.02, 0.0, 0.01], [0.03, 0.02, 0.0, 0.01]):
        rows.clear()
        # Several leave together, among others that stay.
        games = [replace(game, turns=1 + index % 3) for index, game in enumerate(dialogues(7, delays))]
        with before_each_forward(policy.sampler, rows.append):
            runs.append((asyncio.run(play_all(policy, games)), list(rows)))
    assert all(run == runs[0] for run in runs[1:])


def test_a_cancelled_turn_leaves_the_others_alone(lab_folder: Path) -> None:
    alone = asyncio.run(play_all(make_policy(lab_folder), dialogues(4)))
    policy = make_policy(lab_folder, slots=3)

    async def work() -> list[tuple[list[int], list[int], list[float]]]:
        games = dialogues(4)
        long = SamplingParams(max_tokens=200, sequence="long")
        cancelled = asyncio.create_task(policy.sample(random_ids(9, 20), long))
        waiting = asyncio.create_task(play_all(policy, games[1:]))
        await asyncio.sleep(0.02)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        # The same sequence can be sampled again at once.
        again = await policy.sample(games[0].prompt, replace(games[0].params, sequence="long", seed=3 * ord("0")))
        policy.release("long")
        others = await waiting
        assert again.token_ids == alone[0][0][len(games[0].prompt) :][:9]
        return others

    assert [ids for ids, _, _ in asyncio.run(work())] == [ids for ids, _, _ in alone[1:]]


def test_an_engine_error_reaches_all_that_wait_and_the_next_turn_works(lab_folder: Path) -> None:
    policy = make_policy(lab_folder, slots=2)
    good = asyncio.run(play_all(policy, dialogues(4)))
    broken = True

    def fail(*_: object) -> None:
        if broken:
            raise MemoryError("no room")

    async def work() -> list[tuple[list[int], list[int], list[float]]]:
        nonlocal broken
        failed = await asyncio.gather(*(game.play(policy) for game in dialogues(4)), return_exceptions=True)
        assert [str(error) for error in failed] == ["the sampler failed: MemoryError('no room')"] * 4
        broken = False
        return await play_all(policy, dialogues(4))

    with before_each_forward(policy.sampler, fail):
        assert [ids for ids, _, _ in asyncio.run(work())] == [ids for ids, _, _ in good]


def test_requests_that_cannot_be_served_are_refused(lab_folder: Path) -> None:
    policy = make_policy(lab_folder)

    async def work() -> None:
        with pytest.raises(ValueError, match=r"\b250\b.*\b7\b.*\b256\b"):
            await policy.sample([1] * 250, SamplingParams(max_tokens=7))
        with pytest.raises(ValueError, match="one token"):
            await policy.sample([], SamplingParams(max_tokens=7))
        with pytest.raises(ValueError, match="one token"):
            await policy.sample([1], SamplingParams(max_tokens=0))
        params = SamplingParams(max_tokens=5, sequence="only-one")
        first = asyncio.create_task(policy.sample([1], params))
        await asyncio.sleep(0)
        with pytest.raises(ValueError, match="only-one"):
            await policy.sample([2], params)
        assert len((await first).token_ids) == 5
        assert len((await policy.sample([1] * 250, SamplingParams(max_tokens=6))).token_ids) == 6

    asyncio.run(work())
    with refused("rollout.cache_tokens", "16384", "20000"):
        policy.prepare_sampler(20_000)


def test_new_weights_drop_the_cache(lab_folder: Path) -> None:
    policy = make_policy(lab_folder)

    async def work() -> Completion:
        params = SamplingParams(max_tokens=4, temperature=0.0, sequence="a")
        ids = random_ids(0, 30)
        await policy.sample(ids, params)
        with torch.no_grad():
            policy.model.base_model.layers[0].self_attn.v_proj.weight.mul_(-1)
        await policy.refresh_sampler()
        return await policy.sample(ids, params)

    completion = asyncio.run(work())
    reference = oracle(lab_folder)
    with torch.no_grad():
        reference.base_model.layers[0].self_attn.v_proj.weight.mul_(-1)
    expected = oracle_logprobs(reference, random_ids(0, 30) + completion.token_ids)[29:]
    torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-4, rtol=0)


def test_a_turn_under_way_waits_while_the_weights_change_and_goes_on_with_the_new_ones(lab_folder: Path) -> None:
    policy = make_policy(lab_folder)
    ids = {name: random_ids(number, 20 + number) for number, name in enumerate("abc")}

    async def work() -> tuple[dict[str, Completion], dict[str, int]]:
        turns = {
            name: asyncio.create_task(policy.sample(tokens, SamplingParams(max_tokens=30, seed=5, sequence=name)))
            for name, tokens in ids.items()
        }

        def drawn() -> dict[str, int]:
            return {n: len(s.request.token_ids) for n, s in policy.sampler.sequences.items() if s.request is not None}

        while min(drawn().values(), default=0) < 8:
            await asyncio.sleep(0.001)
        await policy.pause_sampler()
        before = drawn()
        await asyncio.sleep(0.05)
        assert drawn() == before, "a paused sampler drew tokens"
        with torch.no_grad():
            policy.model.base_model.layers[0].self_attn.v_proj.weight.mul_(-1)
        await policy.refresh_sampler()
        return {name: await turn for name, turn in turns.items()}, before

    completions, before = asyncio.run(work())
    old, new = oracle(lab_folder), oracle(lab_folder)
    with torch.no_grad():
        new.base_model.layers[0].self_attn.v_proj.weight.mul_(-1)
    for name, completion in completions.items():
        whole, start, change = ids[name] + completion.token_ids, len(ids[name]) - 1, before[name]
        assert 8 <= change < len(completion.token_ids) == 30
        expected = torch.cat([oracle_logprobs(old, whole)[start:][:change], oracle_logprobs(new, whole)[start:][change:]])
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-4, rtol=0)
