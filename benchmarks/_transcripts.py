"""Transcripts for benchmarks: dialogues of 10 to 20 calls of real Python, generated."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

from aster.transcript import Step, Transcript
from aster.types import CallStatus, StopReason, ToolCall

WORDS = (
    "sum over all divisors so what we need is if let prime then number solutions modulo must agree with count that code shows "
    "which means restrict search residues before try next case however this bound not tight yet compute table small values"
)
CELLS = (
    "from sympy import divisors, factorint\nn{i} = {a} * {b}\ntotal{i} = sum(d for d in divisors(n{i}) if d % {c} == 1)\n"
    "print(total{i}, factorint(n{i}))",
    "def count{i}(limit):\n    found = 0\n    for x in range(1, limit):\n        for y in range(x, limit):\n"
    "            if (x * x + y * y) % {c} == 0 and x % 2 == 1:\n                found += 1\n    return found\n"
    "values{i} = [count{i}(m) for m in range(2, {b})]\nprint(values{i}[-5:])",
    "import itertools, math\ntable{i} = {{}}\nfor key in itertools.product(range({c}), repeat=2):\n"
    "    table{i}[key] = math.comb({b}, key[0]) * {a} ** key[1] % 1009\n"
    "best{i} = max(table{i}, key=table{i}.get)\n(best{i}, table{i}[best{i}])",
    "state = {{'step': {i}, 'value': {a}}}\nhistory = []\nwhile state['value'] > {c} and len(history) < 40:\n"
    "    history.append(state['value'])\n    state['value'] = state['value'] // 2 if state['value'] % 2 == 0 else"
    " 3 * state['value'] + 1\nlen(history), history[-3:]",
)
LATER = (
    "check{i} = [v for v in {name} if v % {c} != 0] if isinstance({name}, list) else {name}\nprint(check{i})",
    "reduced{i} = sum(int(x) for x in str({name}) if x.isdigit()) % {b}\nfor k in range(3):\n"
    "    reduced{i} = (reduced{i} * {a} + k) % 9973\nprint('reduced', reduced{i})",
)
TOPICS = ("algebra", "geometry", "number theory", "counting")
NAMES = ("total{i}", "values{i}", "table{i}", "history")


def transcripts(count: int, seed: int, distinct: int = 3000) -> Iterator[bytes]:
    """``count`` lines of a set. ``distinct`` of them differ in everything; the others repeat these under other problems."""
    rng = random.Random(seed)
    made: list[tuple[bytes, bytes]] = []
    for number in range(count):
        if len(made) < distinct:
            line = json.dumps(_transcript(rng).to_json(), separators=(",", ":")).encode()
            head, tail = line.split(b'"PROBLEM"')
            made.append((head, tail))
        head, tail = made[number % len(made)]
        yield head + f'"problem-{number // 3}"'.encode() + tail + b"\n"


def _transcript(rng: random.Random) -> Transcript:
    steps = []
    answer = str(rng.randrange(10**5))
    total = rng.randrange(10, 21)
    names: list[str] = []
    for index in range(total):
        numbers = {"i": index, "a": rng.randrange(10, 999), "b": rng.randrange(5, 40), "c": rng.randrange(3, 12)}
        if names and rng.random() < 0.5:
            code = rng.choice(LATER).format(name=rng.choice(names), **numbers)
        else:
            kind = rng.randrange(len(CELLS))
            code = CELLS[kind].format(**numbers)
            names.append(NAMES[kind].format(i=index))
        output = " ".join(str(rng.randrange(10**4)) for _ in range(rng.randrange(2, 12)))
        status = CallStatus.OK if rng.random() < 0.995 else CallStatus.ERROR
        steps.append(Step(_prose(rng, 30, 150), "", [ToolCall(code, status, output, 0.01)], rng.randrange(120, 400)))
    ending = f"The answer is {answer}" if rng.random() < 0.9 else ""
    steps.append(Step(_prose(rng, 40, 90), f"{ending} \\boxed{{{answer}}}", [], 120))
    return Transcript(
        "PROBLEM",
        0,
        _prose(rng, 30, 60),
        answer,
        steps,
        StopReason.ANSWERED,
        answer,
        float(rng.random() < 0.95),
        author="generated",
        metadata={
            "difficulty": rng.randrange(9) / 8,
            "topic": rng.choice(["algebra", "geometry", "number theory", "counting"]),
        },
    )


def _prose(rng: random.Random, fewest: int, most: int) -> str:
    return " ".join(rng.choices(WORDS.split(), k=rng.randrange(fewest, most)))
