"""Sampling: ASTER's continuous batching against ``transformers``, on ragged lab prompts.

    OMP_NUM_THREADS=1 python benchmarks/sampler.py [--json] [--rows 96] [--turns 6] [--repeats 5]

Contestants, all with the same weights, prompts and limits, in turns within one process:

- **aster**: ``aster.policy.sampler.LocalSampler``. Sequences join and leave between steps; caches live on between turns.
- **cache loop**: the usual hand-written loop: prompts padded on the left, one ``DynamicCache``, one token a row a step until
  the last row has stopped.
- **generate**: ``transformers``' own ``model.generate``.

Two workloads: *one turn*, and *dialogue*, in which every row gets a tool's response of its own length after each turn and
goes on, ``--turns`` turns in all. The peers have no cache between turns: they pad and read the whole dialogue again. Only
sampled tokens up to a row's stop token count; all contestants draw at temperature 1, aster and the loop keep log-probabilities.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from _common import finish, load_pair, print_table, side_by_side, summarize
from torch import Tensor
from transformers import DynamicCache

from aster.chat import Qwen3Dialect
from aster.core.seeds import derive
from aster.lab.families import generate
from aster.lab.tokenizer import build_tokenizer
from aster.policy import SamplingParams
from aster.policy.memory import keep_freed_memory
from aster.policy.sampler import LocalSampler

Turn = Callable[[list[list[int]]], list[list[int]]]
"""Samples one turn for every row: whole dialogues in, sampled tokens out."""


def pad_left(rows: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """(B, L) tokens and mask."""
    longest = max(map(len, rows))
    tokens = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return tokens, mask


def cut(row: list[int], stop: int) -> list[int]:
    """A row up to its stop token."""
    return row[: row.index(stop) + 1] if stop in row else row


@torch.inference_mode()
def cache_loop(model: Any, rows: list[list[int]], max_tokens: int, stop: int, pad: int) -> list[list[int]]:
    """The hand-written peer."""
    tokens, mask = pad_left(rows, pad)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    cache = DynamicCache(config=model.config)
    running = torch.ones(len(rows), dtype=torch.bool)
    sampled: list[Tensor] = []
    logprobs: list[Tensor] = []
    for _ in range(max_tokens):
        output = model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        scores = output.logits[:, -1].float().log_softmax(-1)
        tokens = torch.multinomial(scores.exp(), 1)
        logprobs.append(scores.gather(1, tokens))
        sampled.append(tokens)
        running &= tokens[:, 0] != stop
        if not running.any():
            break
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
        positions = positions[:, -1:] + 1
    return [cut(row, stop) for row in torch.cat(sampled, 1).tolist()]


@torch.inference_mode()
def library_generate(model: Any, rows: list[list[int]], max_tokens: int, stop: int, pad: int) -> list[list[int]]:
    """The library's peer."""
    tokens, mask = pad_left(rows, pad)
    whole = model.generate(
        input_ids=tokens,
        attention_mask=mask,
        max_new_tokens=max_tokens,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=stop,
        pad_token_id=pad,
    )
    return [cut(row, stop) for row in whole[:, tokens.shape[1] :].tolist()]


def dialogue(turn: Turn, prompts: list[list[int]], responses: list[list[list[int]]]) -> int:
    """Play all turns of all rows in step; returns the sampled tokens. ``responses[t]`` follow turn t."""
    rows = [list(prompt) for prompt in prompts]
    count = 0
    for number in range(len(responses) + 1):
        drawn = turn(rows)
        count += sum(map(len, drawn))
        if number < len(responses):
            rows = [row + new + said for row, new, said in zip(rows, drawn, responses[number], strict=True)]
    return count


async def ours(
    sampler: LocalSampler, prompts: list[list[int]], responses: list[list[list[int]]], max_tokens: int, stop: int, seed: int
) -> int:
    """The same through LocalSampler; every row goes at its own pace."""

    async def one(index: int) -> int:
        name = f"{seed}/{index}"
        sampler.open(name)
        tokens = list(prompts[index])
        count = 0
        for number in range(len(responses) + 1):
            params = SamplingParams(max_tokens, seed=derive(seed, index), stop_token_ids=(stop,), sequence=name)
            completion = await sampler.sample(tokens, params)
            count += len(completion.token_ids)
            tokens += completion.token_ids
            if number < len(responses):
                tokens += responses[number][index]
        sampler.release(name)
        return count

    return sum(await asyncio.gather(*(one(index) for index in range(len(prompts)))))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=96, help="trajectories at once (default 96)")
    parser.add_argument("--turns", type=int, default=6, help="turns of a dialogue (default 6)")
    parser.add_argument("--max-tokens", type=int, default=128, help="most tokens of a turn (default 128)")
    parser.add_argument("--repeats", type=int, default=5, help="measured repeats (default 5)")
    parser.add_argument("--json", action="store_true", help="the result as JSON in the last line")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    tokenizer = build_tokenizer()
    dialect = Qwen3Dialect(tokenizer)
    model, peer, origin = load_pair(len(tokenizer))
    stop, pad, longest = dialect.end_id, tokenizer.pad_token_id, options.max_tokens
    problems = generate({"chain": 1.0, "hunt": 1.0}, (3, 10), "test", options.rows, seed=1)
    prompts = [dialect.prompt_ids(problem.prompt) for problem in problems]
    rng = random.Random(1)
    told = [
        [dialect.tool_ids([str(rng.randrange(10 ** rng.randint(1, 12)))]) for _ in prompts] for _ in range(options.turns - 1)
    ]
    room = max(map(len, prompts)) + options.turns * longest + sum(max(map(len, turn)) for turn in told)
    result: dict[str, Any] = {"benchmark": "sampler", "model": origin, "rows": options.rows, "turns": options.turns}
    result["max_tokens"] = longest
    print(f"{origin}; {options.rows} rows, prompts of {min(map(len, prompts))} to {max(map(len, prompts))} tokens")
    with asyncio.Runner() as runner, ThreadPoolExecutor(1) as pool:
        pool.submit(torch.set_num_threads, 1).result()
        sampler = LocalSampler(model, options.rows, room, False, pool)
        workloads: list[tuple[str, list[list[list[int]]]]] = [("one turn", []), (f"dialogue of {options.turns} turns", told)]
        for title, responses in workloads:

            def peer_run(
                sample: Callable[..., list[list[int]]], responses: list[list[list[int]]] = responses
            ) -> Callable[[int], int]:
                def run(repeat: int) -> int:
                    torch.manual_seed(repeat)
                    return dialogue(lambda rows: sample(peer, rows, longest, stop, pad), prompts, responses)

                return run

            def our_run(repeat: int, responses: list[list[list[int]]] = responses) -> int:
                return runner.run(ours(sampler, prompts, responses, longest, stop, repeat))

            contestants = {"aster": our_run, "cache loop": peer_run(cache_loop), "generate": peer_run(library_generate)}
            summary = summarize(side_by_side(contestants, options.repeats))
            print_table(title, summary)
            result["dialogue" if responses else "one_turn"] = summary
    finish(result, options.json)


if __name__ == "__main__":
    main()
