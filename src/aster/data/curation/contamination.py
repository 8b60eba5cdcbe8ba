"""Decontamination: find problems that are copies of a benchmark's problems.

Texts are compared without notation and spacing: only their words and numbers, joined into one string. Every substring of 16
characters of the benchmarks' problems (a piece) is in an index, so a problem is checked against all benchmarks at once. A copy
is found by

- ``n-gram``: most of the benchmark problem's pieces occur in the problem. This finds copies, also inside a longer text.
- ``fuzzy``: some pieces occur, and the strings are similar (edit distance of the whole, or of the best matching part). This
  finds copies with a few words changed.

Translations and complete paraphrases are not found. A benchmark's problem with other numbers may be flagged as well: pairs are
reported so that a person can decide.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from aster.data.curation.normalize import bare, tokens
from aster.types import Problem

PIECE = 16
"""Characters in a piece: three to four words."""
COPIED = 0.6
"""Share of a benchmark problem's pieces from which the problem is a copy. Unrelated problems share phrases too, such as "find
the number of"."""
COPIED_SHORT = 0.85
"""The same for benchmark problems with fewer than ``SHORT`` characters."""
SHORT = 60
SUSPECT = 0.1
"""Share of the pieces from which the similarity of the strings is computed."""
SIMILAR = 80.0
"""Similarity of the whole strings, in percent, from which the problem is a reworded copy."""
SIMILAR_PART = 88.0
"""The same for the best matching part."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A problem and the benchmark problem that it is a copy of."""

    problem_id: str
    benchmark: str
    benchmark_id: str
    method: Literal["n-gram", "fuzzy"]
    overlap: float
    """Share of the benchmark problem's pieces that occur in the problem."""
    similarity: float
    """Similarity of the strings in percent: of the whole or of the best part, whichever is larger."""
    prompt: str
    benchmark_prompt: str


class Contamination:
    """Checks problems against benchmarks (name -> problems)."""

    def __init__(self, benchmarks: Mapping[str, Sequence[Problem]]) -> None:
        self.asked: list[tuple[str, Problem, str, int]] = []  # benchmark, problem, its string, number of its pieces
        self._index: dict[str, list[int]] = defaultdict(list)
        for name, problems in benchmarks.items():
            for problem in problems:
                text = "".join(tokens(problem.prompt))
                pieces = _pieces(text)
                for piece in pieces:
                    self._index[piece].append(len(self.asked))
                self.asked.append((name, problem, text, len(pieces)))

    def check(self, problem: Problem) -> Hit | None:
        """Return the benchmark problem that matches best, or None if the problem is not a copy."""
        text = "".join(tokens(problem.prompt))
        shared: Counter[int] = Counter()
        for piece in _pieces(text):
            if piece in self._index:
                shared.update(self._index[piece])
        hits = [hit for place, number in shared.items() if (hit := self._compare(problem, text, place, number)) is not None]
        return max(hits, key=lambda hit: (hit.overlap, hit.similarity), default=None)

    def _compare(self, problem: Problem, text: str, place: int, shared: int) -> Hit | None:
        from rapidfuzz import fuzz

        name, asked, theirs, pieces = self.asked[place]
        overlap = shared / pieces
        if overlap < SUSPECT:
            return None
        whole = fuzz.ratio(text, theirs)
        # Look for the benchmark's text inside the problem, not the reverse: a fragment of a benchmark problem is not a copy.
        part = fuzz.partial_ratio(text, theirs) if len(text) >= len(theirs) else 0.0
        copied = overlap >= (COPIED_SHORT if len(theirs) < SHORT else COPIED)
        if not copied and whole < SIMILAR and part < SIMILAR_PART:
            return None
        return Hit(
            problem.id,
            name,
            asked.id,
            "n-gram" if copied else "fuzzy",
            round(overlap, 3),
            round(max(whole, part), 1),
            bare(problem.prompt),
            bare(asked.prompt),
        )


def _pieces(text: str) -> set[str]:
    return {text[start : start + PIECE] for start in range(max(1, len(text) - PIECE + 1))} if text else set()
