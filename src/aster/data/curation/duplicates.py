"""Problems that are there twice: exactly, in another notation, or nearly word for word."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from aster.data.curation.normalize import tokens
from aster.types import Problem

SHINGLE = 3
"""Words in a shingle."""
SIMILARITY = 0.8
"""Jaccard similarity of the sets of shingles from which two problems are near duplicates."""
PERMUTATIONS = 128
BANDS = 32
"""Of four hashes each: a pair of similarity 0.8 is missed once in ten million, one of 0.5 proposed in vain in 87 of 100."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A problem that an earlier one makes superfluous."""

    kind: Literal["exact", "near"]
    first: str
    """The earlier problem's id."""
    answers_differ: bool
    """Whether the two have other answers as text: one may be wrong, or only written otherwise."""


class Duplicates:
    """Tells problems that have been seen before; remembers each new one.

    *Exact* duplicates have the same words and numbers in the same order, whatever the notation. *Near* ones share most of their
    three-word shingles and have the same numbers: two problems that differ in a number are two problems. MinHash proposes them;
    their sets of shingles decide.
    """

    def __init__(self, near: bool = True) -> None:
        # A library of compiled code, which nothing else needs.
        from rensa import RMinHashLSH

        self.near = near
        self._seen: dict[bytes, int] = {}
        self._kept: list[tuple[str, str, frozenset[int], int]] = []  # id, answer, shingles, numbers
        self._lsh = RMinHashLSH(SIMILARITY, PERMUTATIONS, BANDS)

    def check(self, problem: Problem) -> Duplicate | None:
        """Whether a problem has been seen; it is remembered where it has not."""
        from rensa import RMinHash

        words = tokens(problem.prompt)
        digest = hashlib.blake2b(" ".join(words).encode(), digest_size=16).digest()
        if digest in self._seen:
            return self._duplicate("exact", self._seen[digest], problem)
        place = self._seen[digest] = len(self._kept)
        if not self.near:
            self._kept.append((problem.id, problem.answer, frozenset(), 0))
            return None
        pieces = [" ".join(words[start : start + SHINGLE]) for start in range(max(1, len(words) - SHINGLE + 1))]
        shingles = frozenset(map(_hash, pieces))
        numbers = _hash(" ".join(sorted(Counter(word for word in words if word.isdecimal()).elements())))
        sketch = RMinHash(PERMUTATIONS, 1)
        sketch.update(pieces)
        for other in sorted(self._lsh.query(sketch)):
            _, _, theirs, their_numbers = self._kept[other]
            if numbers == their_numbers and len(shingles & theirs) >= SIMILARITY * len(shingles | theirs):
                self._seen[digest] = other
                return self._duplicate("near", other, problem)
        self._kept.append((problem.id, problem.answer, shingles, numbers))
        self._lsh.insert(place, sketch)
        return None

    def _duplicate(self, kind: Literal["exact", "near"], place: int, problem: Problem) -> Duplicate:
        first, answer, _, _ = self._kept[place]
        return Duplicate(kind, first, answer.strip() != problem.answer.strip())


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
