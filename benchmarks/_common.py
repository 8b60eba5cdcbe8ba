"""What the benchmarks share: timing side by side, the printed table and JSON."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from _machine import facts, print_json

# Nothing is fetched or reported. Read when transformers is imported, so this module comes before it.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def side_by_side(contestants: dict[str, Callable[[int], int]], repeats: int, warm_up: bool = True) -> dict[str, list[float]]:
    """Tokens per second of each contestant in each repeat.

    A contestant takes the number of the repeat and returns the tokens that count. They take turns, so that a machine that
    slows down slows all of them. Repeat 0 warms up and is not kept; without ``warm_up`` there is none.
    """
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for repeat in range(0 if warm_up else 1, repeats + 1):
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
        machine = facts("torch", "transformers", "trl") | {"torch_threads": torch.get_num_threads()}
        if torch.cuda.is_available():
            machine["gpu"] = torch.cuda.get_device_name()
        print_json(result | {"machine": machine})
