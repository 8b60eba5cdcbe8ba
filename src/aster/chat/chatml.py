"""Qwen3's form as decoded text, in which other trainers store rollouts, with or without special tokens.

Decoding without special tokens removes ``<|im_start|>`` and ``<|im_end|>`` but leaves a line with the name of the role.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from aster.chat.qwen3 import parse_calls, render_call
from aster.chat.tools import AssistantTurn
from aster.chat.writing import Exchange, split_thinking

_RESPONSES = re.compile(
    r"(?:<\|im_end\|>)?\s*(?:(?:<\|im_start\|>|(?<=\n)|\A)(?:user|tool)\n)?\s*"
    r"((?:<tool_response>.*?</tool_response>\s*)+)"
    r"(?:<\|im_end\|>)?\s*(?:(?:<\|im_start\|>|(?<=\n))assistant(?:\n|\Z))?",
    re.DOTALL,
)
_RESPONSE = re.compile(r"<tool_response>\n?(.*?)\n?</tool_response>", re.DOTALL)
_END = re.compile(r"(?:<\|im_end\|>|<\|endoftext\|>)\s*\Z")


@dataclass(frozen=True, slots=True)
class Chatml:
    """A :class:`~aster.chat.writing.Writing`."""

    instructions: str = ""
    stop: tuple[str, ...] = ()

    def close(self, text: str) -> str:
        """Return the text unchanged: there is no stop string."""
        return text

    def parse(self, text: str) -> AssistantTurn:
        """Parse one turn."""
        thinking, rest = split_thinking(_END.sub("", text))
        content, calls = parse_calls(rest)
        return AssistantTurn(thinking, content, calls)

    def render(self, thinking: str, content: str, codes: list[str]) -> str:
        """Write one turn."""
        calls = "\n".join(render_call(code) for code in codes)
        return f"<think>\n{thinking}\n</think>\n\n{content}" + ("\n" if content and calls else "") + calls

    def results(self, outputs: list[str]) -> str:
        """Write each output in its tags."""
        return "\n".join(f"<tool_response>\n{output}\n</tool_response>" for output in outputs)

    def dialogue(self, text: str) -> list[Exchange]:
        """Parse a whole attempt. A turn ends where results begin."""
        exchanges: list[Exchange] = []
        position = 0
        for match in _RESPONSES.finditer(text):
            exchanges.append(Exchange(self.parse(text[position : match.start()]), _RESPONSE.findall(match[1])))
            position = match.end()
        if text[position:].strip() or not exchanges:
            exchanges.append(Exchange(self.parse(text[position:])))
        return exchanges


CHATML = Chatml()
