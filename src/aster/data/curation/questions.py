"""Select problems: in English, without duplicates and benchmark problems, with a count after each filter."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aster.data import benchmarks
from aster.data.curation.chain import Funnel
from aster.data.curation.contamination import Contamination, Hit
from aster.data.curation.duplicates import Duplicates
from aster.data.curation.language import is_english
from aster.data.problems import NO_COLUMNS, iterate_problems, load_problems
from aster.types import Problem

ALL = "all"
"""Stands for the names of all benchmarks."""
FAULTS_KEPT = 20
"""Messages about unreadable rows that are kept as examples."""


@dataclass(slots=True)
class Questions:
    """Filters problems one at a time, counts what it drops, and keeps the pairs found by decontamination."""

    english: bool = True
    duplicates: Duplicates | None = None
    contamination: Contamination | None = None
    rows: int = 0
    unreadable: int = 0
    faults: list[str] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    answers_differ: int = 0
    """Number of duplicates whose answer differs as text from that of the kept problem."""
    hits: list[Hit] = field(default_factory=list)

    def select(
        self, sources: Sequence[str], prompt_suffix: str = "", columns: Mapping[str, str] = NO_COLUMNS
    ) -> Iterator[Problem]:
        """Yield the problems that pass, in order. Raises UserError if a source cannot be read."""
        used: set[str] = set()
        for source in sources:
            for _, problem in iterate_problems(source, prompt_suffix, columns, self._fault):
                self.rows += 1
                reason = self._reason(problem)
                if reason is not None:
                    self.dropped[reason] += 1
                    continue
                # Problems of different files may have the same id: number the later ones.
                names = itertools.chain([problem.id], (f"{problem.id}-{number}" for number in itertools.count(2)))
                name = next(name for name in names if name not in used)
                used.add(name)
                yield problem if name == problem.id else dataclasses.replace(problem, id=name)

    @property
    def funnel(self) -> list[Funnel]:
        """The number of problems after each filter. Complete only after :meth:`select` has been read to its end."""
        steps = [Funnel("rows", self.rows + self.unreadable), Funnel("a problem with an answer", self.rows)]
        names = []
        if self.english:
            names.append("English")
        if self.duplicates is not None:
            names += ["no exact duplicate"] + (["no near duplicate"] if self.duplicates.near else [])
        if self.contamination is not None:
            names.append("not of a benchmark")
        for name in names:
            steps.append(Funnel(name, steps[-1].kept - self.dropped[name]))
        return steps

    def _fault(self, message: str) -> None:
        self.unreadable += 1
        if len(self.faults) < FAULTS_KEPT:
            self.faults.append(message)

    def _reason(self, problem: Problem) -> str | None:
        if self.english and not is_english(problem.prompt):
            return "English"
        if self.duplicates is not None and (duplicate := self.duplicates.check(problem)) is not None:
            self.answers_differ += duplicate.answers_differ
            return f"no {duplicate.kind} duplicate"
        if self.contamination is not None and (hit := self.contamination.check(problem)) is not None:
            self.hits.append(hit)
            return "not of a benchmark"
        return None


def problem_line(problem: Problem) -> str:
    """Return a problem as a line of JSON, which ``load_problems`` reads back unchanged."""
    record: dict[str, Any] = {"id": problem.id, "prompt": problem.prompt, "answer": problem.answer}
    record |= {"data_source": problem.source} | problem.metadata
    return json.dumps(record, ensure_ascii=True) + "\n"


def load_benchmarks(names: Sequence[str]) -> dict[str, list[Problem]]:
    """Load benchmarks by name (``all``: every one that ``aster evaluate`` knows) and files of problems by path.

    Raises UserError if one is unknown or cannot be read.
    """
    if ALL in names:
        names = [*benchmarks.REGISTRY, *(name for name in names if name != ALL and name not in benchmarks.REGISTRY)]
    return {
        name: load_problems(name) if name.endswith(benchmarks.ENDINGS) else benchmarks.load_benchmark(name) for name in names
    }
