"""Scripted experts: the teachers of the lab. Each writes turns; the sandbox runs their code, and they read what came back.

An expert is a generator. It yields ``(thinking, code)`` and is sent the tool's output; it returns ``(thinking, answer)``.
The thinking reuses the base model's own step format (``b:15+4``): a cold start in another format is not learned.

    dense     one small cell a step; the state lives in the session
    program   the whole computation as one program, in one call
    sparse    the first part in the head, the rest in one or two calls that are really needed
    text      the base model's way: all in the head (chain and coded alone)
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Generator

from aster.core.recipe import ColdStart
from aster.lab.families import Operation, Step, Walk

Script = Generator[tuple[str, str], str, tuple[str, str]]
Expert = Callable[[Walk, random.Random], Script]

LOOP = "for i in range(20):\n c=ask(v)\n if c=='end':break\n v=eval(str(v)+R[c])\nv"
"""The loop of a program that hunts: bounded, because a mistake in the rules never reaches the end."""


def text_only(walk: Walk) -> tuple[str, str]:
    """The thinking and the answer of the text-only reasoner."""
    return "\n".join(_reckoned(walk, 0, len(walk.steps))), str(walk.values()[-1])


def dense(walk: Walk, _rng: random.Random) -> Script:
    """One cell a step. On a hunt it follows what ``ask`` says, not the hidden path."""
    if walk.family == "chain":
        value = walk.start
        for index, step in enumerate(walk.steps):
            operation = step.taken(value)
            left = str(value) if index == 0 else "v"
            output = yield f"{step.label}:{value}{operation}", f"v={left}{operation}\nv"
            value = int(output)
        return "end", str(value)
    rules = {rule.label: rule.operation for rule in walk.rules}
    value, name = _heard((yield "ask", f"v={walk.start}\nv,ask(v)"))
    while name != "end":
        operation = rules[name]
        value, name = _heard((yield f"{name}:{value}{operation}", f"v=v{operation}\nv,ask(v)"))
    return "end", str(value)


def program(walk: Walk, _rng: random.Random) -> Script:
    """Everything in one cell."""
    if walk.family == "chain":
        output = yield "run", _program(walk.start, walk.steps)
    else:
        output = yield "run", _hunting_program(walk.start, walk.rules)
    return "end", output


def sparse(walk: Walk, rng: random.Random) -> Script:
    """A chain: the first half in the head, the rest in one or two cells. A hunt: one question by hand, then a program."""
    if walk.family == "hunt":
        value, name = _heard((yield "ask", f"v={walk.start}\nv,ask(v)"))
        operation: Operation = next(rule.operation for rule in walk.rules if rule.label == name)
        reckoned = operation(value)
        output = yield f"{name}:{value}{operation}={reckoned}", _hunting_program(reckoned, walk.rules)
        return "end", output
    half = len(walk.steps) // 2
    thinking = "\n".join(_reckoned(walk, 0, half)) or "run"
    cuts = [half, len(walk.steps)]
    if rng.random() < 0.5:
        cuts.insert(1, (half + len(walk.steps) + 1) // 2)
    output = str(walk.values()[half])
    for begin, end in itertools.pairwise(cuts):
        output = yield thinking, _program(int(output), walk.steps[begin:end])
        thinking = "run"
    return "end", output


EXPERTS: dict[ColdStart, Expert] = {ColdStart.DENSE: dense, ColdStart.PROGRAM: program, ColdStart.SPARSE: sparse}


def _reckoned(walk: Walk, begin: int, end: int) -> list[str]:
    """Steps worked out in the head, one a line: ``b:15+4=19``."""
    values = walk.values()
    return [
        f"{walk.steps[index].label}:{values[index]}{walk.steps[index].taken(values[index])}={values[index + 1]}"
        for index in range(begin, end)
    ]


def _program(start: int, steps: tuple[Step, ...]) -> str:
    lines = [f"v={start}"]
    for step in steps:
        line = f"v=v{step.operation}"
        lines.append(line if step.odd is None else f"{line} if v%2==0 else v{step.odd}")
    return "\n".join([*lines, "v"])


def _hunting_program(start: int, rules: tuple[Step, ...]) -> str:
    table = ",".join(f"{rule.label}='{rule.operation}'" for rule in rules)
    return f"v={start}\nR=dict({table})\n{LOOP}"


def _heard(output: str) -> tuple[int, str]:
    """The value and the rule in the echo ``(14, 'b')``."""
    value, name = output.strip("()").split(", ")
    return int(value), name.strip("'")
