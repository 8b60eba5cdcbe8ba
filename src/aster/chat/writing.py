"""The interface of text forms for tool calls, and the shared implementation of forms with opening and closing marks."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Protocol

from aster.chat.tools import AssistantTurn, ParsedCall


@dataclass(frozen=True, slots=True)
class Exchange:
    """One turn of a dialogue written as text, and the outputs of its calls, in order."""

    turn: AssistantTurn
    outputs: list[str] = field(default_factory=list)


class Writing(Protocol):
    """A text form for tool calls. Parsing never raises: a call that cannot be parsed is a ParsedCall with an error."""

    @property
    def instructions(self) -> str:
        """System text that asks a model to use this form; empty if models are trained to use it."""

    @property
    def stop(self) -> tuple[str, ...]:
        """Stop strings for a server, so that the model does not write results itself."""

    def close(self, text: str) -> str:
        """Return a turn that the server stopped at one of ``stop``, with the closing mark that the server removed."""

    def parse(self, text: str) -> AssistantTurn:
        """Parse one turn."""

    def render(self, thinking: str, content: str, codes: list[str]) -> str:
        """Write one turn. In a turn with calls, ``thinking`` must hold all prose."""

    def results(self, outputs: list[str]) -> str:
        """Write the outputs of a turn's calls in the form in which the model receives them."""

    def dialogue(self, text: str) -> list[Exchange]:
        """Parse a whole attempt, results included."""


def split_thinking(text: str) -> tuple[str, str]:
    """Split a text into the thinking in ``<think>`` at its beginning, and the rest.

    If the template opened the thinking, only ``</think>`` is in the text. Without either tag, the thinking is empty.
    """
    before, closed, rest = text.partition("</think>")
    if closed:
        return before.strip().removeprefix("<think>").strip(), rest.strip()
    if text.lstrip().startswith("<think>"):
        return text.strip().removeprefix("<think>").strip(), ""
    return "", text.strip()


def join(*texts: str) -> str:
    """Join the texts that are not empty as paragraphs."""
    return "\n\n".join(text for text in texts if text)


@dataclass(frozen=True, slots=True)
class Blocks:
    """A :class:`Writing` with an opening and a closing mark around code and around results.

    Models that use such a form reason in the text before a call, so that text becomes the turn's thinking. In a turn without
    calls only the content of ``<think>`` is thinking.
    """

    opening: str
    """Regular expression for the beginning of a call."""
    closing: str
    """Regular expression for its end."""
    result_opening: str
    result_closing: str
    call_form: tuple[str, str]
    """The marks that are written around the code, with their newlines."""
    result_form: tuple[str, str]
    instructions: str
    stop: tuple[str, ...]
    stop_closes: str = ""
    """The closing mark that is missing after the server stopped at one of ``stop``."""

    def close(self, text: str) -> str:
        """Append the closing mark if the last call has none."""
        ends = [match.end() for match in re.finditer(self.opening, text)]
        return text + self.stop_closes if ends and not re.search(self.closing, text[ends[-1] :]) else text

    def parse(self, text: str) -> AssistantTurn:
        """Parse one turn. If the model wrote a result itself, the text from there on is dropped."""
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
        """Write each output between its marks."""
        return "\n".join(f"{self.result_form[0]}{output}{self.result_form[1]}" for output in outputs)

    def dialogue(self, text: str) -> list[Exchange]:
        """Parse a whole attempt. A turn ends where a result begins; consecutive results belong to one turn."""
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
    """Return code without a Markdown fence around it and without newlines at its ends."""
    match = FENCE.match(code)
    return (match[1] if match else code).strip("\n")
