"""Generate the problems of the lab's families.

*chain*: the problem lists every step, as in ``Start with 5. Do a:*3 b:+14 c:even -4 odd *2. ...``. It can be solved by one
program or by a dialogue of small cells.

*hunt*: the problem lists the rules but not their order. The function ``ask(value)``, which exists only in the sandbox, names
the next rule for the current value. The problem cannot be solved without running code. One program can solve it: it has to copy
the rules and loop.

*coded*: a hunt whose order is listed. It is used only to pretrain the base model.

Values stay between 1 and 999. The split of a problem is computed from a hash of its text, so splits never overlap, whatever the
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
"""Labels of steps and rules. They are letters because digits also occur in values, and a tiny model then looks up the wrong
step."""
MOST_RULES = 6
"""Largest number of rules in a hunt."""
MOST = 999
"""Largest value."""
MOST_IDLE = 2000
"""After this many draws without a new problem, there are considered to be no more."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation: ``+``, ``-`` or ``*`` with a constant."""

    sign: str
    operand: int

    def __call__(self, value: int) -> int:
        return {"+": value + self.operand, "-": value - self.operand, "*": value * self.operand}[self.sign]

    def __str__(self) -> str:
        return f"{self.sign}{self.operand}"


@dataclass(frozen=True, slots=True)
class Step:
    """A labelled step. In a conditional step, ``operation`` applies to even values and ``odd`` to odd ones."""

    label: str
    operation: Operation
    odd: Operation | None = None

    def taken(self, value: int) -> Operation:
        """Return the operation that applies to a value."""
        return self.operation if self.odd is None or value % 2 == 0 else self.odd

    def __str__(self) -> str:
        return f"{self.label}:{self.operation}" if self.odd is None else f"{self.label}:even {self.operation} odd {self.odd}"


@dataclass(frozen=True, slots=True)
class Walk:
    """A start value and the steps that lead to the answer. For hunt and coded, ``rules`` are the rules in the prompt."""

    family: str
    start: int
    steps: tuple[Step, ...]
    rules: tuple[Step, ...] = ()

    def values(self) -> list[int]:
        """Return the start value and the value after each step."""
        values = [self.start]
        for step in self.steps:
            values.append(step.taken(values[-1])(values[-1]))
        return values

    def prompt(self) -> str:
        """Return the text of the problem."""
        if self.family == "chain":
            return f"Start with {self.start}. Do {' '.join(map(str, self.steps))}{ENDING}"
        rules = f"Start with {self.start}. Rules {' '.join(map(str, self.rules))}"
        if self.family == "coded":
            return f"{rules}. Do {' '.join(step.label for step in self.steps)}{ENDING}"
        return f"{rules}. ask(value) names the next rule, or end{ENDING}"


def generate(families: dict[str, float], levels: tuple[int, int], split: Split, count: int, seed: int) -> list[Problem]:
    """Generate ``count`` different problems of a split.

    ``families`` maps family names to weights; ``levels`` are the smallest and largest number of steps. Raises ValueError if
    there are not so many different problems.
    """
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
    """Return a random walk of a family with this many steps."""
    while True:
        walk = _chain(rng, steps) if family == "chain" else _hunt(rng, family, steps)
        # All values must be different, so that ask(value) depends only on the value.
        if len(set(walk.values())) == steps + 1:
            return walk


def to_problem(walk: Walk) -> Problem:
    """Return a walk as a Problem. The experts need the walk itself, so it is in the metadata."""
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
    """Return the split of a problem, by a hash of its prompt: 80% train, 10% validation, 10% test."""
    bucket = int.from_bytes(hashlib.blake2b(f"split {problem.prompt}".encode(), digest_size=4).digest(), "little") % 10
    return "train" if bucket < 8 else "validation" if bucket == 8 else "test"


def _operation(rng: random.Random, value: int) -> Operation:
    """Return a random operation that keeps ``value`` between 1 and MOST."""
    while True:
        operation = any_operation(rng)
        if 1 <= operation(value) <= MOST:
            return operation


def any_operation(rng: random.Random) -> Operation:
    """Return a random operation, without a limit on its result."""
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
    """Return a walk over a few rules. If no rule keeps the value in range, start again with other rules."""
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
    """Return the setup code of a hunt, which defines ``ask``.

    For a value that is not on the path, ``ask`` names some rule but never the end, so a wrong value leads to a wrong answer.
    """
    path = {value: step.label for value, step in zip(walk.values(), walk.steps, strict=False)} | {walk.values()[-1]: "end"}
    letters = "".join(rule.label for rule in walk.rules)
    return (
        f"def ask(value, _path={path!r}, _letters={letters!r}):\n"
        "    return _path.get(value) or _letters[hash(value) % len(_letters)]\n"
    )
