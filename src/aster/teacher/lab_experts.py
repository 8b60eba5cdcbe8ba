"""Scripted experts: the teachers of the lab. Each writes turns; the sandbox runs their code, and they read its output.

An expert is a generator. It yields ``(thinking, code)`` and is sent the tool's output; it returns ``(thinking, answer)``.
The thinking has the base model's own step format (``b:15+4``), because SFT does not teach it another one.

    dense       one small cell a step; the state lives in the session (cold start ``aster``)
    retool      computes in its thinking, and has code do one or two of the calculations, whose result it goes on with
    demyagent   one or two larger cells that do the whole computation
    program     the whole computation as one program, in one call
    text        the base model's way: everything in its thinking (only for ``chain`` and ``coded``)

The sparse experts represent sets of other papers, whose data is not here. The comparison is fair to them: every call is needed
for the answer. Calls that only check a known answer would lose for a reason that says nothing about density.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Sequence

from aster.config import ColdStart
from aster.environments.lab import Operation, Step, Walk

Script = Generator[tuple[str, str], str, tuple[str, str]]
Expert = Callable[[Walk, random.Random], Script]

LOOP = "for i in range(20):\n c=ask(v)\n if c=='end':break\n v=eval(str(v)+R[c])\nv"
"""The loop of a program that hunts. It is bounded, because with a mistake in the rules it would never reach the end."""


def text_only(walk: Walk) -> tuple[str, str]:
    """The thinking and the answer of the text-only reasoner."""
    lines, value = _compute(walk.steps, walk.start)
    return "\n".join(lines), str(value)


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


def retool(walk: Walk, rng: random.Random) -> Script:
    """A chain: one or two runs of steps, together half of all, are code, the others are computed in the thinking, which goes on
    from the code's result. A hunt: one question in a cell, its step in the thinking, then a program."""
    if walk.family == "hunt":
        value, name = _heard((yield "ask", f"v={walk.start}\nv,ask(v)"))
        operation: Operation = next(rule.operation for rule in walk.rules if rule.label == name)
        computed = operation(value)
        output = yield f"{name}:{value}{operation}={computed}", _hunting_program(computed, walk.rules)
        return "end", output
    value = walk.start
    done = 0
    for begin, end in _calculations(len(walk.steps), 2 if rng.random() < 0.5 else 1):
        lines, value = _compute(walk.steps[done:begin], value)
        value = int((yield "\n".join(lines) or "run", _program(value, walk.steps[begin:end])))
        done = end
    lines, value = _compute(walk.steps[done:], value)
    return "\n".join(lines) or "end", str(value)


def demyagent(walk: Walk, rng: random.Random) -> Script:
    """One cell, or two, of which the second uses what the first left in the session. Nothing is computed in the thinking."""
    if walk.family == "hunt":
        asked = rng.random() < 0.5
        if asked:
            yield "ask", f"v={walk.start}\nv,ask(v)"
        return "end", (yield "run", _hunting_program("v" if asked else walk.start, walk.rules))
    half = len(walk.steps) // 2 if rng.random() < 0.5 else 0
    if half:
        yield "run", _program(walk.start, walk.steps[:half])
    return "end", (yield "run", _program("v" if half else walk.start, walk.steps[half:]))


EXPERTS: dict[ColdStart, Expert] = {
    ColdStart.ASTER: dense,
    ColdStart.RETOOL: retool,
    ColdStart.DEMYAGENT: demyagent,
    ColdStart.PROGRAM: program,
}


def _calculations(steps: int, count: int) -> list[tuple[int, int]]:
    """``count`` runs of steps (begin, end) that together hold half of the steps; the others lie before, between and after."""
    count = min(count, max(1, steps // 3))
    inside = max(count, (steps + 1) // 2)
    found, begin = [], 0
    for index in range(count):
        gap = (steps - inside) * (index + 1) // (count + 1) - (steps - inside) * index // (count + 1)
        size = inside * (index + 1) // count - inside * index // count
        found.append((begin + gap, begin + gap + size))
        begin += gap + size
    return found


def _compute(steps: Sequence[Step], value: int) -> tuple[list[str], int]:
    """Steps computed in the thinking from a value, one a line (``b:15+4=19``), and their result."""
    lines = []
    for step in steps:
        operation = step.taken(value)
        lines.append(f"{step.label}:{value}{operation}={operation(value)}")
        value = operation(value)
    return lines, value


def _program(start: int | str, steps: Sequence[Step]) -> str:
    """The code that does ``steps`` from a value, or from the session's ``v``."""
    lines = [f"v={start}"] if start != "v" else []
    for step in steps:
        line = f"v=v{step.operation}"
        lines.append(line if step.odd is None else f"{line} if v%2==0 else v{step.odd}")
    return "\n".join([*lines, "v"])


def _hunting_program(start: int | str, rules: Sequence[Step]) -> str:
    table = ",".join(f"{rule.label}='{rule.operation}'" for rule in rules)
    begin = f"v={start}\n" if start != "v" else ""
    return f"{begin}R=dict({table})\n{LOOP}"


def _heard(output: str) -> tuple[int, str]:
    """The value and the rule in the echo ``(14, 'b')``."""
    value, name = output.strip("()").split(", ")
    return int(value), name.strip("'")
