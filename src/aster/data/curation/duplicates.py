"""Find duplicate problems: exact ones, also in another notation, and nearly identical ones."""

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
"""Bands of four hashes each. A pair of similarity 0.8 is missed once in ten million; 87 of 100 pairs of similarity 0.5 are
proposed although they are no duplicates."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A problem that repeats an earlier one."""

    kind: Literal["exact", "near"]
    first: str
    """Id of the earlier problem."""
    answers_differ: bool
    """Whether the texts of the two answers differ: one may be wrong, or only written in another way."""


class Duplicates:
    """Recognizes problems that it has seen before, and remembers each new one.

    *Exact* duplicates have the same words and numbers in the same order, in whatever notation. *Near* duplicates share most of
    their three-word shingles and have the same numbers: problems that differ in a number are different problems. MinHash
    proposes candidates, and the exact similarity of the shingle sets decides.
    """

    def __init__(self, near: bool = True) -> None:
        # Imported here: nothing else needs this compiled library.
        from rensa import RMinHashLSH

        self.near = near
        self._seen: dict[bytes, int] = {}
        self._kept: list[tuple[str, str, frozenset[int], int]] = []  # id, answer, shingles, numbers
        self._lsh = RMinHashLSH(SIMILARITY, PERMUTATIONS, BANDS)

    def check(self, problem: Problem) -> Duplicate | None:
        """Return how a problem repeats an earlier one; if it does not, remember it and return None."""
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
