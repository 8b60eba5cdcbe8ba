"""What the benchmarks share: the lab's model under two attentions, timing side by side, the printed table and JSON."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from _machine import facts, print_json
from transformers import AutoModelForCausalLM, Qwen3ForCausalLM
from transformers.utils import logging as transformers_logging

from aster.lab.base import BASE_MODEL, base_config
from aster.policy.attention import IMPLEMENTATION

# Its bar for loading would tear the table.
transformers_logging.disable_progress_bar()


def load_pair(vocabulary: int) -> tuple[Any, Any, str]:
    """The lab's model twice with the same weights: attending through ``aster`` and through ``sdpa``; and where it is from.

    Where the package holds no trained model, random weights of the same shape serve.
    """
    if (BASE_MODEL / "config.json").exists():
        ours = AutoModelForCausalLM.from_pretrained(BASE_MODEL, local_files_only=True, attn_implementation=IMPLEMENTATION)
        origin = "the lab's base model"
    else:
        config = base_config(vocabulary)
        config._attn_implementation = IMPLEMENTATION
        torch.manual_seed(0)
        ours = Qwen3ForCausalLM(config)
        origin = "random weights of the lab's shape"
    config = type(ours.config).from_dict(ours.config.to_dict())
    config._attn_implementation = "sdpa"
    peer = type(ours)(config)
    peer.load_state_dict(ours.state_dict())
    return ours.eval(), peer.eval(), origin


def side_by_side(contestants: dict[str, Callable[[int], int]], repeats: int) -> dict[str, list[float]]:
    """Tokens per second of each contestant in each repeat.

    A contestant takes the number of the repeat and returns the tokens that count. They take turns, so that a machine that
    slows down slows all of them. Repeat 0 warms up and is not kept.
    """
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for repeat in range(repeats + 1):
        for name, run in contestants.items():
            began = time.perf_counter()
            tokens = run(repeat)
            rate = tokens / (time.perf_counter() - began)
            if repeat:
                rates[name].append(rate)
    return rates


def summarize(rates: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, and the first contestant's rate over each other's: the median and the range of the repeats' ratios."""
    first, *others = rates
    ratios = {name: [a / b for a, b in zip(rates[first], rates[name], strict=True)] for name in others}
    return {
        "tokens_per_second": {name: [round(value, 1) for value in values] for name, values in rates.items()},
        "median": {name: round(statistics.median(values), 1) for name, values in rates.items()},
        "ratio": {
            name: {"median": round(statistics.median(r), 3), "low": round(min(r), 3), "high": round(max(r), 3)}
            for name, r in ratios.items()
        },
    }


def print_table(title: str, summary: dict[str, Any]) -> None:
    """A summary for people."""
    first = next(iter(summary["median"]))
    print(f"\n{title}")
    for name, median in summary["median"].items():
        ratio = summary["ratio"].get(name)
        note = f"   {first} is {ratio['median']:.2f} times as fast ({ratio['low']:.2f} to {ratio['high']:.2f})" if ratio else ""
        print(f"  {name:28s} {median:10,.0f} tokens/s{note}")


def finish(result: dict[str, Any], as_json: bool) -> None:
    """The result with its machine: as one line of JSON at the end if asked."""
    if as_json:
        print_json(result | {"machine": facts("torch", "transformers") | {"torch_threads": torch.get_num_threads()}})
