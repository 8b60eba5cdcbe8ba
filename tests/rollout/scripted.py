"""A scripted fake in the place of a policy: it returns given turns. Everything else in these tests is real."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from aster.chat import Qwen3Dialect
from aster.engines import Completion, SamplingParams
from aster.lab.tokenizer import build_tokenizer
from aster.types import Budget

DIALECT = Qwen3Dialect(build_tokenizer())
WIDE = Budget(context_tokens=4096, turn_tokens=1024, tool_calls=50, turns=50, wall_seconds=60)


def turn(thinking: str, content: str = "", *codes: str) -> list[int]:
    """A turn that calls, or answers where there is no code."""
    return DIALECT.turn_ids(thinking, content, list(codes))


def raw(text: str) -> list[int]:
    """A turn of any text."""
    return DIALECT.tokenizer.encode(text + "<|im_end|>", add_special_tokens=False)


@dataclass
class ScriptedFakeSampler:
    """Gives its turns one after another, each cut at ``max_tokens`` as an engine would, and keeps what it was asked."""

    turns: list[list[int] | Exception]
    seconds: float = 0.0
    asked: list[tuple[list[int], SamplingParams]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)

    def open(self, sequence: str) -> None:
        self.events.append(f"open {sequence}")

    async def sample(self, token_ids: list[int], params: SamplingParams) -> Completion:
        await asyncio.sleep(self.seconds)
        self.asked.append((token_ids, params))
        given = self.turns[len(self.asked) - 1]
        if isinstance(given, Exception):
            raise given
        assert params.max_tokens > 0
        cut = given[: params.max_tokens]
        stopped = bool(cut) and cut[-1] in params.stop_token_ids
        return Completion(cut, [-0.5] * len(cut), stopped)

    def release(self, sequence: str) -> None:
        self.events.append(f"release {sequence}")
