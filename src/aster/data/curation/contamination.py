"""Decontamination: problems that are those of a benchmark.

Texts are compared without notation and spacing: as the string of their words and numbers, without anything between them. A
benchmark's problem is looked for by its pieces of 16 such characters, through an index, so that every problem meets all
benchmarks at once. It is found

- by ``n-gram``, where most of its pieces occur in the other: a copy, also inside a longer text;
- by ``fuzzy``, where some of them do and the strings match otherwise (edit distance of the whole, or of the best part):
  reworded here and there.

Translations, and problems told anew in other words, are not found. A benchmark's question with other numbers may be found too:
the pair is reported, and a look at it decides.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from aster.data.curation.normalize import bare, tokens
from aster.types import Problem

PIECE = 16
"""Characters of a piece: three to four words."""
COPIED = 0.6
"""Share of a benchmark problem's pieces that makes a copy. Unrelated problems share phrases such as "find the number of"."""
COPIED_SHORT = 0.85
SHORT = 60
"""A benchmark problem of fewer characters needs ``COPIED_SHORT``."""
SUSPECT = 0.1
"""Share of the pieces from which the strings are compared."""
SIMILAR = 80.0
"""Similarity of the whole strings, in percent, that makes a reworded copy."""
SIMILAR_PART = 88.0
"""The same of the best matching part."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A problem, and that of a benchmark which it is."""

    problem_id: str
    benchmark: str
    benchmark_id: str
    method: Literal["n-gram", "fuzzy"]
    overlap: float
    """Share of the benchmark problem's pieces that are in the problem."""
    similarity: float
    """Of the strings, in percent: the larger of the whole and of the best part."""
    prompt: str
    benchmark_prompt: str


class Contamination:
    """Checks problems against benchmarks: name -> problems."""

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
        """The benchmark problem that this one matches best, or None."""
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
        # The part is looked for in the longer one: a problem that is a part of the benchmark's is not the benchmark's.
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
