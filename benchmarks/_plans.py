"""What every trajectory of a rollout benchmark does, fixed beforehand, and how each contestant is made to do it.

A plan is a problem and its assistant turns as token ids: thinking (a filler token, repeated), a tool call with a cell, and at
the end a boxed answer. So lengths, calls and waiting times are the same for all contestants.

- **aster**: :class:`Planned` stands between ``aster.rollout`` and the policy. It asks for a turn of exactly the planned
  length without stop tokens. The model draws tokens of its own, with all that sampling costs, and they stay in its context;
  the loop above reads the planned turn, which has as many. It costs a copy of a list a turn.
- **peers**: :class:`Forcing`, a logits processor, sets one score a row so high that the planned token is the one drawn. It
  costs one scatter of a number a row a step. A turn ends in the stop token, so the library's own rule ends the row.
"""

from __future__ import annotations

import contextlib
import io
import random
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from aster.chat import Qwen3Dialect
from aster.chat.qwen3 import TOOL_SCHEMA
from aster.engines import Completion, Sampler, SamplingParams
from aster.environments.lab import generate
from aster.types import Problem

FORCED = 1e9
"""A score beside which no other has a chance; finite, so that the softmax is."""
SETUP = "from time import sleep"
"""What the session of a plan's cells starts with."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One trajectory."""

    problem: Problem
    prompt: list[int]
    turns: list[list[int]]
    """Token ids of each assistant turn. All but the last call the tool once."""
    cells: list[str]
    """The code of each call."""
    responses: list[list[int]]
    """Token ids that come after each call: what the cell prints is known."""

    @property
    def sampled(self) -> int:
        """Tokens that are sampled."""
        return sum(map(len, self.turns))

    @property
    def length(self) -> int:
        """All tokens at the end."""
        return len(self.prompt) + self.sampled + sum(map(len, self.responses))


@dataclass(frozen=True, slots=True)
class Size:
    """Ranges from which plans are drawn, ends included."""

    calls: tuple[int, int]
    tokens: tuple[int, int]
    """Of a turn that calls; never less than the call itself needs."""
    seconds: float = 0.0
    """A call takes between 0 and so many seconds."""


def make_plans(dialect: Qwen3Dialect, sizes: list[Size], seed: int) -> list[Plan]:
    """One plan for each size. Prompts are the lab's."""
    rng = random.Random(seed)
    problems = generate({"chain": 1.0}, (6, 10), "test", len(sizes), seed=seed)
    filler = dialect.tokenizer.encode("x", add_special_tokens=False)[0]
    plans = []
    for problem, size in zip(problems, sizes, strict=True):
        turns, cells, responses = [], [], []
        for _ in range(rng.randint(*size.calls)):
            number = rng.randint(100, 999)
            wait = f"sleep({rng.uniform(0, size.seconds):.2f})\n" if size.seconds else ""
            cells.append(f"{wait}print({number})")
            call = dialect.turn_ids("", "", cells[-1:])
            turns.append([filler] * (rng.randint(*size.tokens) - len(call)) + call)
            responses.append(dialect.tool_ids([str(number)]))
        turns.append([filler] * 8 + dialect.turn_ids("", f"\\boxed{{{problem.answer}}}", []))
        plans.append(Plan(replace(problem, setup=SETUP), dialect.prompt_ids(problem.prompt), turns, cells, responses))
    return plans


class Planned:
    """A sampler for one trajectory that samples turns of planned lengths; see above."""

    def __init__(self, policy: Sampler, plan: Plan) -> None:
        self.policy, self.plan = policy, plan
        self.context: list[int] = []
        """The trajectory with the model's own tokens."""
        self.seen = 0
        self.turn = 0

    def open(self, sequence: str) -> None:
        """A trajectory begins."""
        self.policy.open(sequence)

    async def sample(self, token_ids: list[int], params: SamplingParams) -> Completion:
        """Sample as many tokens as the plan's next turn has, and return that turn."""
        turn = self.plan.turns[self.turn]
        self.context += token_ids[self.seen :]
        asked = replace(params, max_tokens=len(turn), stop_token_ids=())
        drawn = await self.policy.sample(list(self.context), asked)
        self.context += drawn.token_ids
        self.seen, self.turn = len(token_ids) + len(turn), self.turn + 1
        return Completion(turn, drawn.logprobs, stopped=True)

    def release(self, sequence: str) -> None:
        """It ended."""
        self.policy.release(sequence)


class Forcing(LogitsProcessor):
    """Makes ``generate`` draw one planned turn a row; see above."""

    def __init__(self, turns: list[list[int]], prompt_length: int, device: torch.device) -> None:
        longest = max(map(len, turns))
        self.prompt_length = prompt_length
        self.tokens = torch.tensor([turn + [turn[-1]] * (longest - len(turn)) for turn in turns], device=device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``scores`` (B, V) are generate's own copy."""
        step = input_ids.shape[1] - self.prompt_length
        return scores.scatter_(1, self.tokens[:, step : step + 1], FORCED)


class ForcedModel:
    """Adds :class:`Forcing` to a model's ``generate``, whoever calls it, for turn after turn of some plans.

    Rows must be the plans that have such a turn, in order, which is how both peers go on with a batch."""

    def __init__(self, model: Any) -> None:
        self.plans: list[Plan] = []
        self.turn = 0
        self.device = next(model.parameters()).device
        self._generate = model.generate
        model.generate = self.generate

    def begin(self, plans: list[Plan]) -> None:
        """The next call is the first turn of these."""
        self.plans, self.turn = plans, 0

    def generate(self, *arguments: Any, **settings: Any) -> Any:
        """The model's ``generate``."""
        turns = [plan.turns[self.turn] for plan in self.plans if len(plan.turns) > self.turn]
        self.turn += 1
        rows, length = settings["input_ids"].shape
        if rows != len(turns):
            raise RuntimeError(f"turn {self.turn} has {len(turns)} planned rows, and {rows} were asked for")
        return self._generate(*arguments, logits_processor=[Forcing(turns, length, self.device)], **settings)


_NAMES: dict[str, Any] = {"sleep": time.sleep}


def python(code):  # type: ignore[no-untyped-def]
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(code, _NAMES)
    return output.getvalue().removesuffix("\n")


# TRL writes the tool's schema from its annotations and docstring: the one that ASTER's dialect writes.
_FUNCTION = TOOL_SCHEMA["function"]
python.__annotations__ = {"code": str}
python.__doc__ = (
    f"{_FUNCTION['description']}\n\nArgs:\n    code: {_FUNCTION['parameters']['properties']['code']['description']}\n"
)
