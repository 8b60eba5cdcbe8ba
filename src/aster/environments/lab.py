"""The lab's problem families, generated.

*chain*: every step is printed. ``Start with 5. Do a:*3 b:+14 c:even -4 odd *2. ...``: one program can solve it, and so can a
dialogue of small cells.

*hunt*: the rules are printed, their order is not: ``ask(value)``, a function in the sandbox, names the next rule for the
value reached so far. Nobody can solve it without running code. A program can: it has to copy the rules and loop.

*coded* is for the base model's pretraining alone: a hunt whose order is printed.

Values stay between 1 and 999. A problem's split follows from a hash of its text, so the splits cannot overlap whatever the
seeds.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Literal

from aster.seeds import derive
from aster.types import Problem

Split = Literal["train", "validation", "test"]
FAMILIES = ("chain", "hunt")
ENDING = ". Give the last value in \\boxed{}."
LABELS = "abcdefghijklmnopqrst"
"""Names of steps and rules. Letters: a digit is also part of some value, and a tiny model then looks up the wrong step."""
MOST_RULES = 6
MOST = 999
MOST_IDLE = 2000
"""Draws in a row without a new problem, after which there are taken to be no more."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One simple step: ``+``, ``-`` or ``*`` with a constant."""

    sign: str
    operand: int

    def __call__(self, value: int) -> int:
        return {"+": value + self.operand, "-": value - self.operand, "*": value * self.operand}[self.sign]

    def __str__(self) -> str:
        return f"{self.sign}{self.operand}"


@dataclass(frozen=True, slots=True)
class Step:
    """A labelled step; ``odd`` is set for a conditional one (then ``operation`` is for even values)."""

    label: str
    operation: Operation
    odd: Operation | None = None

    def taken(self, value: int) -> Operation:
        """The operation that applies to a value."""
        return self.operation if self.odd is None or value % 2 == 0 else self.odd

    def __str__(self) -> str:
        return f"{self.label}:{self.operation}" if self.odd is None else f"{self.label}:even {self.operation} odd {self.odd}"


@dataclass(frozen=True, slots=True)
class Walk:
    """A start value and the steps that lead to the answer; for hunt and coded, ``rules`` is the printed legend."""

    family: str
    start: int
    steps: tuple[Step, ...]
    rules: tuple[Step, ...] = ()

    def values(self) -> list[int]:
        """The start and the value after each step."""
        values = [self.start]
        for step in self.steps:
            values.append(step.taken(values[-1])(values[-1]))
        return values

    def prompt(self) -> str:
        """The statement."""
        if self.family == "chain":
            return f"Start with {self.start}. Do {' '.join(map(str, self.steps))}{ENDING}"
        rules = f"Start with {self.start}. Rules {' '.join(map(str, self.rules))}"
        if self.family == "coded":
            return f"{rules}. Do {' '.join(step.label for step in self.steps)}{ENDING}"
        return f"{rules}. ask(value) names the next rule, or end{ENDING}"


def generate(families: dict[str, float], levels: tuple[int, int], split: Split, count: int, seed: int) -> list[Problem]:
    """``count`` different problems of a split, from a weighted mixture of families with ``levels`` (fewest, most) steps."""
    rng = random.Random(derive(seed, "lab", split))
    names, weights = list(families), list(families.values())
    found: dict[str, Problem] = {}
    idle = 0
    while len(found) < count:
        if idle == MOST_IDLE:
            raise ValueError(f"there are not {count} different {split} problems with {levels[0]} to {levels[1]} steps")
        idle += 1
        problem = to_problem(draw(rng, rng.choices(names, weights)[0], rng.randint(*levels)))
        if split_of(problem) == split and problem.id not in found:
            found[problem.id] = problem
            idle = 0
    return list(found.values())


def draw(rng: random.Random, family: str, steps: int) -> Walk:
    """A random walk of a family."""
    while True:
        walk = _chain(rng, steps) if family == "chain" else _hunt(rng, family, steps)
        # Distinct values, so that ask(value) is a function of the value.
        if len(set(walk.values())) == steps + 1:
            return walk


def to_problem(walk: Walk) -> Problem:
    """A walk as a Problem; the walk itself stays in the metadata for the experts."""
    prompt = walk.prompt()
    setup = _oracle(walk) if walk.family == "hunt" else ""
    digest = hashlib.blake2b(f"{prompt}\n{setup}".encode(), digest_size=8).hexdigest()
    return Problem(
        id=f"{walk.family}-{digest}",
        prompt=prompt,
        answer=str(walk.values()[-1]),
        source=f"lab/{walk.family}",
        setup=setup,
        metadata={"walk": walk, "steps": len(walk.steps)},
    )


def split_of(problem: Problem) -> Split:
    """The split a problem belongs to: 80% train, 10% validation, 10% test, by a hash of what it asks."""
    bucket = int.from_bytes(hashlib.blake2b(f"split {problem.prompt}".encode(), digest_size=4).digest(), "little") % 10
    return "train" if bucket < 8 else "validation" if bucket == 8 else "test"


def _operation(rng: random.Random, value: int) -> Operation:
    """An operation that keeps ``value`` between 1 and MOST."""
    while True:
        sign = rng.choice("+-*")
        operation = Operation(sign, rng.randint(2, 9) if sign == "*" else rng.randint(2, 99))
        if 1 <= operation(value) <= MOST:
            return operation


def any_operation(rng: random.Random) -> Operation:
    """Any operation, wherever it leads."""
    sign = rng.choice("+-*")
    return Operation(sign, rng.randint(2, 9) if sign == "*" else rng.randint(2, 99))


def _chain(rng: random.Random, count: int) -> Walk:
    value = start = rng.randint(2, 99)
    steps = []
    for label in LABELS[:count]:
        operation = _operation(rng, value)
        step = Step(label, operation)
        if rng.random() < 0.3:
            other = any_operation(rng)
            step = Step(label, operation, other) if value % 2 == 0 else Step(label, other, operation)
        steps.append(step)
        value = step.taken(value)(value)
    return Walk("chain", start, tuple(steps))


def _hunt(rng: random.Random, family: str, count: int) -> Walk:
    """A walk over a small legend; a dead end (no rule keeps the value in range) starts anew."""
    while True:
        size = rng.randint(4, MOST_RULES)
        rules = tuple(Step(LABELS[index], any_operation(rng)) for index in range(size))
        value = start = rng.randint(2, 99)
        steps: list[Step] = []
        while len(steps) < count:
            fitting = [rule for rule in rules if 1 <= rule.operation(value) <= MOST]
            if not fitting:
                break
            steps.append(rng.choice(fitting))
            value = steps[-1].operation(value)
        if len(steps) == count:
            return Walk(family, start, tuple(steps), rules)


def _oracle(walk: Walk) -> str:
    """The setup of a hunt: ``ask``. Off the path it names some rule, never the end, so that a wrong value leads astray."""
    path = {value: step.label for value, step in zip(walk.values(), walk.steps, strict=False)} | {walk.values()[-1]: "end"}
    letters = "".join(rule.label for rule in walk.rules)
    return (
        f"def ask(value, _path={path!r}, _letters={letters!r}):\n"
        "    return _path.get(value) or _letters[hash(value) % len(_letters)]\n"
    )
