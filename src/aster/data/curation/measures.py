"""What the filters and the statistics ask of one transcript, each worked out when it is first asked for.

Two of them are heuristics, and their docstrings say what they miss: :attr:`Measures.causal` and :attr:`Measures.known_before`.
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
    """The number of words: what stands for tokens where nobody counted them."""
    return len(text.split())


class Measures:
    """The measures of one transcript."""

    def __init__(self, transcript: Transcript, count: CountTokens | None = None) -> None:
        self.transcript = transcript
        self.counted = count is None and bool(transcript.steps) and all(step.tokens is not None for step in transcript.steps)
        """Whether lengths are the author's own counts of tokens; else ``count`` (by default words) made them."""
        self.count = count or count_words

    @cached_property
    def tokens(self) -> int:
        """Tokens the author wrote: thinking, text and code."""
        return sum(self._written(step) for step in self.transcript.steps)

    @cached_property
    def thinking(self) -> list[int]:
        """Tokens of thinking of each step. An author's count is of a whole turn: the thinking has its part by characters."""
        if not self.counted:
            return [self.count(step.thinking) for step in self.transcript.steps]
        found = []
        for step in self.transcript.steps:
            others = len(step.text) + sum(len(call.code) for call in step.calls)
            found.append(round((step.tokens or 0) * len(step.thinking) / max(1, len(step.thinking) + others)))
        return found

    @property
    def thinking_per_call(self) -> float:
        """Tokens of thinking for each call; a transcript without calls counts as if it had one."""
        return sum(self.thinking) / max(1, len(self.transcript.calls))

    @cached_property
    def ran(self) -> list[ToolCall]:
        """The calls whose code ran."""
        return [call for call in self.transcript.calls if call.status is not CallStatus.MALFORMED]

    @cached_property
    def causal(self) -> list[bool]:
        """For each call that ran whether its code uses what an earlier call left. False for the first.

        It does where it reads a name that an earlier cell bound (an import does not count), or holds a number of at least three
        digits that an earlier output showed and neither the problem nor any earlier code or thinking before that output had.

        Seen from the code alone: a name may be read and its value not matter, a cell may be inspired by an output and share
        nothing with it, and a number may be the same by chance. Names of a cell that failed count, as far as it got them bound.
        """
        bound: set[str] = set()
        shown: set[str] = set()
        known = telling_numbers(self.transcript.prompt)
        found = []
        for step in self.transcript.steps:
            # What the model worked out itself, before it saw the numbers in an output, it does not owe to the tool.
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
        """Share of the calls after the first that are :attr:`causal`; 1 where there are none after the first."""
        later = self.causal[1:]
        return sum(later) / len(later) if later else 1.0

    @cached_property
    def known_before(self) -> list[bool]:
        """For each call that ran whether the final answer was known by then, so that the call can only check it.

        It is known from where it is announced (``the answer is 42``, ``\\boxed{42}``) in the model's own text, or where it
        stands in that text or an output and is long enough to be no coincidence: three characters, and not in the problem.

        A short answer that is reached and not announced goes unseen, so that re-checks are rather missed; a long one may stand
        somewhere as one candidate among others, so that a search for it is taken for a check. A checked guess that would have
        been revised counts as a check. Answers are compared as text: other forms of the same value are not seen.
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
        """Share of the calls made when the answer was known; 0 without calls."""
        return sum(self.known_before) / len(self.known_before) if self.known_before else 0.0

    @cached_property
    def repeated_text(self) -> float:
        """Share of the eight-word sequences of all thinking that have occurred before in it: near 1 in a loop."""
        words = " ".join(step.thinking for step in self.transcript.steps).split()
        count = len(words) - WORDS_OF_A_LOOP + 1
        if count <= 1:
            return 0.0
        hashes = numpy.fromiter(map(hash, words), dtype=numpy.int64, count=len(words)).view(numpy.uint64)
        rolling = numpy.zeros(count, dtype=numpy.uint64)
        for offset in range(WORDS_OF_A_LOOP):
            # A polynomial in 64 bits, which wraps around.
            rolling = rolling * numpy.uint64(0x9E3779B97F4A7C15) + hashes[offset : offset + count]
        return 1.0 - len(numpy.unique(rolling)) / count

    @cached_property
    def repeated_cells(self) -> float:
        """Share of the calls whose code, but for spacing, an earlier call has run."""
        codes = [" ".join(call.code.split()) for call in self.ran]
        return 1.0 - len(set(codes)) / len(codes) if codes else 0.0

    def _written(self, step: Step) -> int:
        if self.counted:
            return step.tokens or 0
        return sum(map(self.count, (step.thinking, step.text, *(call.code for call in step.calls))))


class _Answer:
    """A final answer, to be looked for in texts."""

    def __init__(self, answer: str, prompt: str) -> None:
        self.text = _SPACES.sub(" ", answer.strip().strip("$").strip())
        self.folded = self.text.casefold()
        long = len(self.text.replace(".", "").strip("0-")) >= LEAST_DIGITS
        self.telling = long and not (self.text in prompt and self.whole.search(prompt))

    @cached_property
    def whole(self) -> re.Pattern[str]:
        """The answer, neither part of a longer number or word nor the beginning of a decimal."""
        return re.compile(rf"(?<![\w.]){re.escape(self.text)}(?!\w|\.\d)")

    @cached_property
    def announced(self) -> re.Pattern[str]:
        """The answer where it is called so, or in a box."""
        box = rf"\\boxed\{{\s*{re.escape(self.text)}\s*\}}"
        return re.compile(rf"{_ANNOUNCED}{self.whole.pattern}|{box}", re.IGNORECASE)

    def is_announced(self, text: str) -> bool:
        """Whether a text of the model calls it the answer."""
        # Most texts do not hold it at all, which is seen sooner than a pattern is compiled.
        return bool(self.text) and self.folded in text.casefold() and self.announced.search(text) is not None

    def is_shown(self, text: str) -> bool:
        """Whether it stands in a text and is no coincidence there."""
        return self.telling and self.text in text and self.whole.search(text) is not None
