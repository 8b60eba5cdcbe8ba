"""Measures of one transcript for the filters and the statistics. Each is computed when it is first read.

Two are heuristics, and their docstrings say what they miss: :attr:`Measures.causal` and :attr:`Measures.known_before`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cached_property

import numpy

from aster.data.curation.cells import LEAST_DIGITS, read_cell, telling_numbers
from aster.transcript import Step, Transcript
from aster.types import CallStatus, ToolCall

WORDS_OF_A_LOOP = 8
"""Length of the word sequences in which repetition is counted."""

_SPACES = re.compile(r"\s+")
_ANNOUNCED = r"(?:answer|result|solution|total|value)\b[^.\n]{0,40}?(?:\bis\b|=|:|\bof\b)[\s$*`]*(?:\\boxed\{)?[\s$]*"

CountTokens = Callable[[str], int]


def count_words(text: str) -> int:
    """Return the number of words, the unit of length if tokens were not counted."""
    return len(text.split())


class Measures:
    """The measures of one transcript.

    Lengths are in tokens as ``count`` counts them; without it, in tokens as the transcript's author counted them, or in words
    if the author did not.
    """

    def __init__(self, transcript: Transcript, count: CountTokens | None = None) -> None:
        self.transcript = transcript
        self.counted = count is None and bool(transcript.steps) and all(step.tokens is not None for step in transcript.steps)
        """Whether lengths are the author's own token counts."""
        self.count = count or count_words

    @cached_property
    def tokens(self) -> int:
        """Number of tokens that the author wrote: thinking, text and code."""
        return sum(self._written(step) for step in self.transcript.steps)

    @cached_property
    def thinking(self) -> list[int]:
        """Number of tokens of thinking in each step.

        The author counts whole turns; the thinking gets the share of the turn's tokens that it has of its characters.
        """
        if not self.counted:
            return [self.count(step.thinking) for step in self.transcript.steps]
        found = []
        for step in self.transcript.steps:
            others = len(step.text) + sum(len(call.code) for call in step.calls)
            found.append(round((step.tokens or 0) * len(step.thinking) / max(1, len(step.thinking) + others)))
        return found

    @property
    def thinking_per_call(self) -> float:
        """Tokens of thinking per call. A transcript without calls counts as if it had one."""
        return sum(self.thinking) / max(1, len(self.transcript.calls))

    @cached_property
    def ran(self) -> list[ToolCall]:
        """The calls whose code ran."""
        return [call for call in self.transcript.calls if call.status is not CallStatus.MALFORMED]

    @cached_property
    def causal(self) -> list[bool]:
        """For each call that ran: whether its code uses something that an earlier call left. False for the first.

        A call does so if it reads a name that an earlier cell bound (imports do not count), or if it contains a number of at
        least three digits that an earlier output showed first: neither the problem nor earlier code or thinking had it before.

        This heuristic reads only the code. It is wrong if a name is read but its value does not matter, if an output inspired a
        cell that shares no name or number with it, or if two numbers are equal by chance. Names of a cell that failed count
        as bound.
        """
        bound: set[str] = set()
        shown: set[str] = set()
        known = telling_numbers(self.transcript.prompt)
        found = []
        for step in self.transcript.steps:
            # A number that the model wrote before any output showed it does not come from the tool.
            known |= telling_numbers(f"{step.thinking}\n{step.text}") - shown
            for call in step.calls:
                if call.status is CallStatus.MALFORMED:
                    continue
                cell = read_cell(call.code)
                numbers = telling_numbers(call.code)
                found.append((cell is not None and not bound.isdisjoint(cell.needs)) or not shown.isdisjoint(numbers))
                known |= numbers - shown
                shown |= telling_numbers(call.output) - known
                if cell is not None:
                    bound = (bound - cell.imports) | cell.binds
        return found

    @property
    def causal_share(self) -> float:
        """Share of the calls after the first that are :attr:`causal`; 1 if there is no second call."""
        later = self.causal[1:]
        return sum(later) / len(later) if later else 1.0

    @cached_property
    def known_before(self) -> list[bool]:
        """For each call that ran: whether the final answer was already known, so that the call can only check it.

        The answer is known once the model's own text announces it (``the answer is 42``, ``\\boxed{42}``), or once it occurs in
        that text or in an output and is too long for a coincidence: three characters or more, and not in the problem.

        This is a heuristic. It misses short answers that are found but not announced. It takes a search for a check if a long
        answer was printed as one candidate of many. A guess that is checked counts as known, although the check might have
        changed it. Answers are compared as text, so other forms of the same value are missed.
        """
        answer = _Answer(self.transcript.answer or "", self.transcript.prompt)
        found = []
        known = False
        for step in self.transcript.steps:
            text = f"{step.thinking}\n{step.text}"
            known = known or answer.is_announced(text) or answer.is_shown(text)
            for call in step.calls:
                if call.status is CallStatus.MALFORMED:
                    continue
                found.append(known)
                known = known or answer.is_shown(call.output)
        return found

    @property
    def recheck_share(self) -> float:
        """Share of the calls made after the answer was known; 0 without calls."""
        return sum(self.known_before) / len(self.known_before) if self.known_before else 0.0

    @cached_property
    def repeated_text(self) -> float:
        """Share of the eight-word sequences in the thinking that repeat an earlier one: near 1 if the model loops."""
        words = " ".join(step.thinking for step in self.transcript.steps).split()
        count = len(words) - WORDS_OF_A_LOOP + 1
        if count <= 1:
            return 0.0
        hashes = numpy.fromiter(map(hash, words), dtype=numpy.int64, count=len(words)).view(numpy.uint64)
        rolling = numpy.zeros(count, dtype=numpy.uint64)
        for offset in range(WORDS_OF_A_LOOP):
            # A polynomial hash in 64 bits; overflow wraps around.
            rolling = rolling * numpy.uint64(0x9E3779B97F4A7C15) + hashes[offset : offset + count]
        return 1.0 - len(numpy.unique(rolling)) / count

    @cached_property
    def repeated_cells(self) -> float:
        """Share of the calls that run the code of an earlier call again; spacing does not count."""
        codes = [" ".join(call.code.split()) for call in self.ran]
        return 1.0 - len(set(codes)) / len(codes) if codes else 0.0

    def _written(self, step: Step) -> int:
        if self.counted:
            return step.tokens or 0
        return sum(map(self.count, (step.thinking, step.text, *(call.code for call in step.calls))))


class _Answer:
    """Searches texts for a final answer."""

    def __init__(self, answer: str, prompt: str) -> None:
        self.text = _SPACES.sub(" ", answer.strip().strip("$").strip())
        self.folded = self.text.casefold()
        long = len(self.text.replace(".", "").strip("0-")) >= LEAST_DIGITS
        self.telling = long and not (self.text in prompt and self.whole.search(prompt))

    @cached_property
    def whole(self) -> re.Pattern[str]:
        """Matches the answer, but not inside a longer number or word and not at the beginning of a decimal."""
        return re.compile(rf"(?<![\w.]){re.escape(self.text)}(?!\w|\.\d)")

    @cached_property
    def announced(self) -> re.Pattern[str]:
        """Matches the answer after words such as "the answer is", or in a box."""
        box = rf"\\boxed\{{\s*{re.escape(self.text)}\s*\}}"
        return re.compile(rf"{_ANNOUNCED}{self.whole.pattern}|{box}", re.IGNORECASE)

    def is_announced(self, text: str) -> bool:
        """Whether a text announces the answer."""
        # Most texts do not contain it, and this test is faster than compiling the pattern.
        return bool(self.text) and self.folded in text.casefold() and self.announced.search(text) is not None

    def is_shown(self, text: str) -> bool:
        """Whether a text contains the answer, and the answer is too long for a coincidence."""
        return self.telling and self.text in text and self.whole.search(text) is not None
