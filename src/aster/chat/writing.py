"""What every way of writing calls offers, and the part that tag-like ones share."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Protocol

from aster.chat.tools import AssistantTurn, ParsedCall


@dataclass(frozen=True, slots=True)
class Exchange:
    """One turn of a written-out dialogue and the outputs that follow it, in order."""

    turn: AssistantTurn
    outputs: list[str] = field(default_factory=list)


class Writing(Protocol):
    """A way of writing calls in text. Reading never raises: a call that cannot be read is a ParsedCall with an error."""

    @property
    def instructions(self) -> str:
        """System text for a model that must be told to write so; empty where it was trained to."""

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts after which a server should stop, so that the model does not write its own results."""

    def close(self, text: str) -> str:
        """A turn that the server stopped at one of ``stop``, with the closing mark that it took off."""

    def parse(self, text: str) -> AssistantTurn:
        """Read one turn."""

    def render(self, thinking: str, content: str, codes: list[str]) -> str:
        """Write one turn. Where it calls, ``thinking`` holds all its prose."""

    def results(self, outputs: list[str]) -> str:
        """The calls' outputs as the model is given them back."""

    def dialogue(self, text: str) -> list[Exchange]:
        """Read a whole attempt, results included."""


def split_thinking(text: str) -> tuple[str, str]:
    """Thinking in ``<think>`` at the beginning of a text, and the rest; a template may have opened it, so that only its end is
    there. Without any: no thinking."""
    before, closed, rest = text.partition("</think>")
    if closed:
        return before.strip().removeprefix("<think>").strip(), rest.strip()
    if text.lstrip().startswith("<think>"):
        return text.strip().removeprefix("<think>").strip(), ""
    return "", text.strip()


def join(*texts: str) -> str:
    """Those that are not empty, as paragraphs."""
    return "\n\n".join(text for text in texts if text)


@dataclass(frozen=True, slots=True)
class Blocks:
    """A :class:`Writing` that marks code and results by an opening and a closing mark each.

    What such models write before a call is their reasoning: it becomes the turn's thinking. The text of a turn without calls
    stays its text, apart from what is in ``<think>``."""

    opening: str
    """Regular expression of what opens a call."""
    closing: str
    """Of what closes it."""
    result_opening: str
    result_closing: str
    call_form: tuple[str, str]
    """The marks as they are written, around the code with its newlines."""
    result_form: tuple[str, str]
    instructions: str
    stop: tuple[str, ...]
    stop_closes: str = ""
    """What the server's stop takes off the end of a turn that calls."""

    def close(self, text: str) -> str:
        """Append the closing mark to a call that has none."""
        ends = [match.end() for match in re.finditer(self.opening, text)]
        return text + self.stop_closes if ends and not re.search(self.closing, text[ends[-1] :]) else text

    def parse(self, text: str) -> AssistantTurn:
        """Read one turn. Results that the model made up itself are no part of it, nor is what it makes of them."""
        forged = re.search(self.result_opening, text)
        if forged is not None and re.search(self.opening, text[: forged.start()]):
            text = text[: forged.start()]
        return self._turn(text)

    def render(self, thinking: str, content: str, codes: list[str]) -> str:
        """Write one turn."""
        calls = "\n".join(f"{self.call_form[0]}{code}{self.call_form[1]}" for code in codes)
        if codes:
            return "\n".join(text for text in (join(thinking, content), calls) if text)
        return f"<think>\n{thinking}\n</think>\n\n{content}" if thinking else content

    def results(self, outputs: list[str]) -> str:
        """The outputs, each in its marks."""
        return "\n".join(f"{self.result_form[0]}{output}{self.result_form[1]}" for output in outputs)

    def dialogue(self, text: str) -> list[Exchange]:
        """Read a whole attempt: a turn ends where a result begins. Results that directly follow one another are one turn's."""
        exchanges: list[Exchange] = []
        result = re.compile(f"(?:{self.result_opening})(.*?)(?:{self.result_closing}|$)", re.DOTALL)
        position = 0
        for match in result.finditer(text):
            before = text[position : match.start()]
            output = match[1].removeprefix("\n").removesuffix("\n")
            if exchanges and not before.strip() and len(exchanges[-1].outputs) < len(exchanges[-1].turn.calls):
                exchanges[-1].outputs.append(output)
            else:
                exchanges.append(Exchange(self._turn(before), [output]))
            position = match.end()
        rest = text[position:]
        if rest.strip() or not exchanges:
            exchanges.append(Exchange(self._turn(rest)))
        return exchanges

    def _turn(self, text: str) -> AssistantTurn:
        calls: list[ParsedCall] = []
        prose: list[str] = []
        position = 0
        opening, closing = re.compile(self.opening), re.compile(self.closing)
        while (start := opening.search(text, position)) is not None:
            prose.append(text[position : start.start()])
            end = closing.search(text, start.end())
            body = text[start.end() : end.start() if end else len(text)]
            if end is None:
                calls.append(ParsedCall(body.strip("\n"), "the code is not closed"))
                position = len(text)
            else:
                code = unfenced(body)
                calls.append(ParsedCall(code, "" if code.strip() else "there is no code in it"))
                position = end.end()
        prose.append(text[position:])
        if not calls:
            return AssistantTurn(*split_thinking(text))
        parts = [split_thinking(part) for part in prose]
        return AssistantTurn(join(*(text for part in parts for text in part)), "", calls)


FENCE = re.compile(r"\A\s*```[A-Za-z0-9_+-]*[ \t]*\n(.*?)\n?```\s*\Z", re.DOTALL)


def unfenced(code: str) -> str:
    """Code without a Markdown fence around the whole of it and without the newlines at its ends."""
    match = FENCE.match(code)
    return (match[1] if match else code).strip("\n")
