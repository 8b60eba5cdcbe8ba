"""The verifier beside Math-Verify alone, string match and sympy: agreement with a labelled corpus, speed, hostile answers.

    python benchmarks/verifier.py [--json] [--hostile 2000] [--random 10000] [--parts speed robustness agreement]

The corpus is tests/grading/corpus.tsv: pairs of a prediction and an answer, labelled equal or different before any verifier
saw them. The contestants: ``ours`` is ``aster.grading.verify``; ``math-verify`` is its ``parse`` and ``verify`` on ``$...$``,
with its own time limits; ``string`` compares the texts without white space; ``sympy`` reads both with ``parse_latex``
(``sympify`` where there is no backslash) and calls ``equals``. The two that may hang run in a process that is killed after 15
seconds; late is "not equal". sympy's LaTeX needs lark, which the extra ``bench`` brings.

Speed: the median time of a pair of integers; and all pairs of the corpus in random order from 8 threads, as a rollout asks,
with nothing read before. Hostile answers and random strings are the seeded ones of tests/grading/hostile.py.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from _machine import facts, print_json

from aster.grading import extract_boxed, verify
from aster.grading.reading import read

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 15.0
"""Seconds for a pair, for the contestants that may hang."""
THREADS = 8


def math_verify_alone(prediction: str, answer: str) -> bool:
    """As its README shows."""
    import math_verify

    return bool(math_verify.verify(math_verify.parse(f"${answer}$"), math_verify.parse(f"${prediction}$")))


def sympy_equality(prediction: str, answer: str) -> bool:
    """What sympy makes of both."""
    import sympy
    from sympy.parsing.latex import parse_latex

    def read_one(text: str) -> Any:
        return parse_latex(text, backend="lark") if "\\" in text else sympy.sympify(text.replace("^", "**"))

    first, second = read_one(prediction), read_one(answer)
    return bool(first == second or first.equals(second))


GUARDED = {"math-verify": math_verify_alone, "sympy": sympy_equality}


def serve(name: str, connection: Connection) -> None:
    """Answer questions in a process that can be killed."""
    import logging

    logging.disable(logging.CRITICAL)
    compare = GUARDED[name]
    while True:
        prediction, answer = connection.recv()
        try:
            connection.send(compare(prediction, answer))
        except Exception:  # noqa: BLE001 - whatever a contestant raises, it has not found the two equal
            connection.send(False)


class Guarded:
    """A contestant in a process of its own, replaced when it is late."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.late = 0
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(self.name, other), daemon=True)
        self.process.start()
        self.connection.send(("1/2", r"\frac{1}{2}"))
        self.connection.recv()

    def __call__(self, prediction: str, answer: str) -> bool:
        self.connection.send((prediction, answer))
        if self.connection.poll(LIMIT):
            return bool(self.connection.recv())
        self.late += 1
        self.close()
        self._start()
        return False

    def close(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.process.join()


def string_match(prediction: str, answer: str) -> bool:
    """The texts without white space."""
    return "".join(prediction.split()) == "".join(answer.split())


def agreement(pairs: list[list[str]]) -> dict[str, Any]:
    """Accuracy, false positives and false negatives of each contestant, by class and overall."""
    guarded = {name: Guarded(name) for name in GUARDED}
    contestants: dict[str, Callable[[str, str], bool]] = {
        "ours": lambda prediction, answer: verify(prediction, answer).correct,
        "math-verify": guarded["math-verify"],
        "string": string_match,
        "sympy": guarded["sympy"],
    }
    table: dict[str, dict[str, list[int]]] = {}
    result: dict[str, Any] = {"seconds": {}, "wrong": {}}
    for name, contestant in contestants.items():
        began = time.perf_counter()
        wrong = []
        for kind, label, prediction, answer in pairs:
            equal = contestant(prediction, answer)
            for row in (kind, "all"):
                counts = table.setdefault(row, {}).setdefault(name, [0, 0, 0])
                counts[0] += 1
                counts[1] += equal and label == "different"
                counts[2] += not equal and label == "equal"
            if equal != (label == "equal"):
                wrong.append([prediction, answer, label])
        result["seconds"][name] = round(time.perf_counter() - began, 2)
        result["wrong"][name] = len(wrong)
        if name == "ours":
            result["ours_wrong"] = wrong
    result["late"] = {name: contestant.late for name, contestant in guarded.items()}
    for contestant in guarded.values():
        contestant.close()
    result["classes"] = {
        row: {"pairs": counts["ours"][0]} | {name: counts[name][1:] for name in contestants} for row, counts in table.items()
    }
    return result


def print_agreement(result: dict[str, Any]) -> None:
    """The table: accuracy in percent (false positives, false negatives)."""
    names = list(result["seconds"])
    print(f"{'class':30s}{'pairs':>6s}" + "".join(f"{name:>22s}" for name in names))
    for row, counts in sorted(result["classes"].items(), key=lambda item: item[0] == "all"):
        cells = []
        for name in names:
            positive, negative = counts[name]
            cells.append(f"{100 - 100 * (positive + negative) / counts['pairs']:.1f} ({positive}, {negative})")
        print(f"{row:30s}{counts['pairs']:6d}" + "".join(f"{cell:>22s}" for cell in cells))


def speed(pairs: list[list[str]]) -> dict[str, Any]:
    """Integers one by one; the corpus from several threads."""
    source = random.Random(0)
    times = []
    for _ in range(5000):
        first = source.randint(-999, 9999)
        prediction, answer = str(first), str(source.choice([first, source.randint(0, 999)]))
        began = time.perf_counter()
        verify(prediction, answer)
        times.append(time.perf_counter() - began)
    verify(r"\int_0^1 x\,dx", "1")  # the worker is warm, as after the first answer of a run
    mixed = [pair[2:] for pair in pairs]
    rates = []
    for _ in range(5):
        source.shuffle(mixed)
        read.cache_clear()
        with ThreadPoolExecutor(THREADS) as threads:
            began = time.perf_counter()
            list(threads.map(lambda pair: verify(pair[0], pair[1]), mixed))
            rates.append(len(mixed) / (time.perf_counter() - began))
    return {
        "integer_median_ms": round(statistics.median(times) * 1000, 4),
        "mixed_answers_per_second": {
            "median": round(statistics.median(rates)),
            "low": round(min(rates)),
            "high": round(max(rates)),
        },
    }


def robustness(hostile: int, noise: int) -> dict[str, Any]:
    """Hostile answers with the default time limit, each against two answers; random strings, extracted and verified."""
    # The generators stand with the tests.
    sys.path.insert(0, str(ROOT))
    from tests.grading.hostile import hostile_answers, random_strings

    longest, asked, late, times = 0.0, 0, 0, []
    for _, text in hostile_answers(hostile):
        for answer in ("5", r"\frac{\sqrt{2}}{2}"):
            began = time.perf_counter()
            verdict = verify(text, answer)
            times.append(time.perf_counter() - began)
            asked += verdict.reason.startswith("math-verify")
            late += "timed out" in verdict.reason
    result: dict[str, Any] = {
        "hostile": {
            "answers": hostile, "verdicts": len(times), "asked_math_verify": asked, "late": late,
            "median_ms": round(statistics.median(times) * 1000, 3), "longest_s": round(max(times), 2),
        }
    }  # fmt: skip
    asked = 0
    began = time.perf_counter()
    for text in random_strings(noise):
        before = time.perf_counter()
        verdict = verify(extract_boxed(text), r"\frac{1}{2}")
        other = verify(text, "5")
        asked += sum(one.reason.startswith("math-verify") for one in (verdict, other))
        longest = max(longest, time.perf_counter() - before)
    seconds = time.perf_counter() - began
    result["random"] = {
        "strings": noise,
        "seconds": round(seconds, 2),
        "asked_math_verify": asked,
        "longest_s": round(longest, 3),
    }
    return result


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON at the end")
    parser.add_argument("--hostile", type=int, default=2000, help="hostile answers")
    parser.add_argument("--random", type=int, default=10_000, help="random strings")
    parts = ["speed", "robustness", "agreement"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts, help="what to measure")
    arguments = parser.parse_args()
    lines = (ROOT / "tests" / "grading" / "corpus.tsv").read_text(encoding="utf-8").splitlines()[1:]
    pairs = [line.split("\t") for line in lines]
    result: dict[str, Any] = {}
    if "speed" in arguments.parts:
        result["speed"] = speed(pairs)
        print(result["speed"], flush=True)
    if "robustness" in arguments.parts:
        result["robustness"] = robustness(arguments.hostile, arguments.random)
        print(result["robustness"], flush=True)
    if "agreement" in arguments.parts:
        result["agreement"] = agreement(pairs)
        print_agreement(result["agreement"])
        print({key: value for key, value in result["agreement"].items() if key != "classes"})
    if arguments.json:
        print_json(result | {"machine": facts("math-verify", "sympy", "mpmath")})


if __name__ == "__main__":
    main()
