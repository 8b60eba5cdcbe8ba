"""Harmony, the form of GPT-OSS, as raw text: for servers that return the model's text unparsed.

A turn is a list of messages ``<|start|>HEADER<|message|>BODY``, each ending in ``<|end|>``, ``<|call|>`` or ``<|return|>``. The
header is the role, then ``<|channel|>`` with the channel's name, ``to=`` with a recipient before or after it, and
``<|constrain|>`` with the type of the body. The first message of a turn has no ``<|start|>``, because the prompt ends with it.

    analysis     reasoning
    commentary   with a recipient: a call; without: text for the user before calls
    final        the answer
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from aster.chat.qwen3 import read_arguments
from aster.chat.tools import AssistantTurn, ParsedCall
from aster.chat.writing import Exchange, join

_MESSAGE = re.compile(
    r"(?:<\|start\|>(?P<role>[^<]*))?(?P<header>(?:<\|channel\|>[^<]*|<\|constrain\|>[^<]*)*)<\|message\|>"
    r"(?P<body>.*?)(?P<end><\|end\|>|<\|call\|>|<\|return\|>|(?=<\|start\|>)|\Z)",
    re.DOTALL,
)
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*([A-Za-z]+)")
_MARK = re.compile(r"<\|(start|end|message|channel|constrain|return|call)\|>")
_CHANNELS = "(?:analysis|commentary|final)"
_BEGINS = re.compile(rf"\s*(?:assistant{_CHANNELS}|analysis[A-Z]|(?:analysis|commentary) ?to=)")
_FIRST, _NEXT = re.compile(rf"\s*{_CHANNELS}"), re.compile(f"assistant{_CHANNELS}")
TOOLS = frozenset({"python", "functions.python"})


@dataclass(frozen=True, slots=True)
class Harmony:
    """A :class:`~aster.chat.writing.Writing`."""

    instructions: str = ""
    stop: tuple[str, ...] = ()

    def close(self, text: str) -> str:
        """Return the text unchanged: parsing accepts a call without ``<|call|>``, which the server's stop token removes."""
        return text

    def parse(self, text: str) -> AssistantTurn:
        """Parse one turn. A text without any mark is the answer."""
        return self._turn(list(_MESSAGE.finditer(text)), text)

    def render(self, thinking: str, content: str, codes: list[str]) -> str:
        """Write one turn as the model writes it after ``<|start|>assistant``."""
        messages = [f"<|channel|>analysis<|message|>{_broken(thinking)}<|end|>"] if thinking else []
        if codes:
            messages += [f"<|channel|>commentary<|message|>{_broken(content)}<|end|>"] if content else []
            messages += [
                "<|channel|>commentary to=functions.python <|constrain|>json<|message|>"
                + _MARK.sub(r"\\u003c|\1|>", json.dumps({"code": code}, ensure_ascii=False))
                + "<|call|>"
                for code in codes
            ]
        else:
            messages.append(f"<|channel|>final<|message|>{_broken(content)}<|return|>")
        return "<|start|>assistant".join(messages)

    def results(self, outputs: list[str]) -> str:
        """Write each output as a message of the tool."""
        return "".join(
            f"<|start|>functions.python to=assistant<|channel|>commentary<|message|>{_broken(output)}<|end|>"
            for output in outputs
        )

    def dialogue(self, text: str) -> list[Exchange]:
        """Parse a whole attempt. Messages of the tool are results; those of system, developer and user are skipped."""
        exchanges: list[Exchange] = []
        pending: list[re.Match[str]] = []
        for match in _MESSAGE.finditer(text):
            role = (match["role"] or "assistant").strip()
            name = re.split(r"\s", role, maxsplit=1)[0]
            if name in ("system", "developer", "user"):
                continue
            if name == "assistant":
                pending.append(match)
                continue
            if pending or not exchanges:
                exchanges.append(Exchange(self._turn(pending, ""), []))
                pending = []
            exchanges[-1].outputs.append(match["body"])
        if pending or not exchanges:
            exchanges.append(Exchange(self._turn(pending, "" if exchanges else text)))
        return exchanges

    def _turn(self, messages: list[re.Match[str]], text: str) -> AssistantTurn:
        if not messages:
            return AssistantTurn("", _MARK.sub("", text).strip())
        thinking: list[str] = []
        content: list[str] = []
        calls: list[ParsedCall] = []
        for message in messages:
            header = (message["role"] or "") + message["header"]
            recipient = _RECIPIENT.search(header)
            channel = _CHANNEL.search(header)
            if recipient is not None and recipient[1] != "assistant":
                calls.append(_call(recipient[1], message["body"]))
            elif channel is not None and channel[1] == "analysis":
                thinking.append(message["body"])
            else:
                content.append(message["body"])
        return AssistantTurn(join(*thinking), join(*content), calls)


def without_marks(text: str) -> bool:
    """Return whether the text is certainly a turn without its marks, so that it cannot be split into messages.

    Then the names of the channels are attached to the text, as in ``analysisLet me see.assistantfinalIt is 42.`` A single
    answer (``finalIt is 42.``) cannot be distinguished from other text and gives False.
    """
    if _MARK.search(text):
        return False
    return bool(_BEGINS.match(text) or (_FIRST.match(text) and _NEXT.search(text)))


def _call(recipient: str, body: str) -> ParsedCall:
    if recipient not in TOOLS:
        return ParsedCall(body, f"there is no tool named {recipient[:80]}; the one tool is python")
    return read_arguments(body)


def _broken(text: str) -> str:
    """Break up marks in a text, so that it cannot end its own message."""
    return _MARK.sub(r"< |\1|>", text)


HARMONY = Harmony()
