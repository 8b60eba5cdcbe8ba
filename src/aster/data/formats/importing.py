"""``aster data import``: read and check other projects' rows and write them as a set.

Rows that cannot be read are counted by reason, with the places of the first ones.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from aster.data.formats import LAYOUTS
from aster.data.formats.base import Layout, Unreadable
from aster.data.formats.extra import ours
from aster.data.formats.rows import read_rows
from aster.data.problems import BOX_REQUEST, load_problems
from aster.data.sets import require_set_name, write_set
from aster.errors import UserError
from aster.jsonl import Broken
from aster.transcript import Transcript
from aster.types import CallStatus, Problem, StopReason

if TYPE_CHECKING:
    from aster.environments import Score

Scorer = Callable[[Transcript], "Score"]
EXAMPLES = 3
"""Places shown for each reason."""


@dataclass(slots=True)
class Imported:
    """The report of an import."""

    rows: int = 0
    attempts: int = 0
    problems: int = 0
    unreadable: Counter[str] = field(default_factory=Counter)
    """Rows that could not be read, by reason."""
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Places of the first rows, by reason or note."""
    calls: Counter[CallStatus] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    """Number of attempts by note: what is unusual about them, and how they were graded."""

    @property
    def unread(self) -> int:
        """Number of rows that could not be read."""
        return self.unreadable.total()

    def refuse(self, reason: str, place: str) -> None:
        """Count a row that could not be read."""
        self.unreadable[reason] += 1
        self._example(reason, place)

    def note(self, what: str, place: str) -> None:
        """Count an attempt under a note."""
        self.notes[what] += 1
        self._example(what, place)

    def _example(self, what: str, place: str) -> None:
        if len(self.examples[what]) < EXAMPLES:
            self.examples[what].append(place)


def import_set(source: Path, layout: str, out: Path, problems: Path | None = None, *, score: Scorer) -> Imported:
    """Read rows of ``layout`` from ``source`` and write them as the set ``out``.

    ``problems`` is a file of problems whose answers are used for scoring. ``score`` is the environment's
    (:func:`aster.environments.transcript_scorer`). Raises UserError if the layout is unknown, if a file
    cannot be read, or if no row fits the layout.
    """
    how = LAYOUTS.get(layout)
    if how is None or how.read is None:
        readable = ", ".join(name for name, each in LAYOUTS.items() if each.read is not None)
        raise UserError(f"--layout {layout}: cannot be read; choose one of {readable}")
    require_set_name("--out", out)
    report = Imported()
    write_set(out, _transcripts(source, how, _Known(problems), report, score))
    return report


def describe(report: Imported, source: Path, layout: str) -> str:
    """Return the report as text."""
    read = report.rows - report.unread
    lines = [
        f"{source}: read {read} of {report.rows} rows as {layout}: {report.attempts} attempts at {report.problems} problems, "
        f"{report.calls.total()} tool calls"
    ]
    if report.unreadable:
        lines += ["not read:", *_counted(report.unreadable, report)]
    if report.calls:
        lines += ["calls: " + ", ".join(f"{count} {status}" for status, count in report.calls.most_common())]
    if report.notes:
        lines += ["attempts:", *_counted(report.notes, report)]
    return "\n".join(lines)


def _counted(counts: Counter[str], report: Imported) -> list[str]:
    width = max(len(reason) for reason in counts)
    lines = []
    for reason, count in counts.most_common():
        places = report.examples[reason]
        more = ", ..." if count > len(places) else ""
        lines.append(f"  {reason:<{width}}  {count:>7}   {', '.join(places)}{more}")
    return lines


def _transcripts(source: Path, layout: Layout, known: _Known, report: Imported, score: Scorer) -> Iterator[Transcript]:
    assert layout.read is not None
    samples: Counter[str] = Counter()
    for place, row in read_rows(source):
        report.rows += 1
        if isinstance(row, Broken):
            report.refuse(row.reason, place)
            continue
        try:
            found = layout.read(row)
            written_by_us = ours(row)
        except Unreadable as error:
            report.refuse(str(error), place)
            continue
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            report.refuse(f"not of this layout ({type(error).__name__})", place)
            continue
        for transcript in found:
            if not written_by_us:
                if transcript.problem_id.isdecimal():
                    # A bare number is usually a row number, which problems of another file may have too.
                    transcript.problem_id = f"{source.name.partition('.')[0]}-{transcript.problem_id}"
                known.complete(transcript)
                transcript.sample = samples[transcript.problem_id]
                _score(transcript, place, report, score)
            samples[transcript.problem_id] += 1
            report.attempts += 1
            report.problems = len(samples)
            report.calls.update(call.status for call in transcript.calls)
            yield transcript
    if not report.attempts:
        # Raised while the set is being written, so that an existing set is not replaced by an empty one.
        first = next(iter(report.unreadable), "it is empty")
        raise UserError(f"{source}: no row can be read as {layout.name} ({first}); does it have another layout?")


def _score(transcript: Transcript, place: str, report: Imported, score: Scorer) -> None:
    """Answer, reward and verdict of an attempt that came without."""
    answered = transcript.stop_reason is StopReason.ANSWERED
    if not answered:
        unanswered = (
            transcript.calls and transcript.calls[-1].status is CallStatus.MALFORMED and not transcript.calls[-1].output
        )
        report.note("ends in a call without a result" if unanswered else "ends in a call", place)
    found = score(transcript)
    transcript.answer = found.answer
    if not answered:
        transcript.reward, transcript.verdict = found.reward, found.verdict
        return
    if found.answer is None:
        report.note("answers without a box", place)
    if not transcript.expected:
        report.note("the right answer is not known", place)
        return
    transcript.reward, transcript.verdict = found.reward, found.verdict
    report.note("answer verified: right" if found.reward > 0 else "answer verified: wrong", place)
    recorded = transcript.metadata.get("score")
    if isinstance(recorded, int | float) and (recorded > 0) != (found.reward > 0):
        report.note("the recorded score says otherwise", place)


class _Known:
    """Known problems, by id and by prompt."""

    def __init__(self, path: Path | None) -> None:
        found = load_problems(path) if path is not None else []
        self.ids = {problem.id: problem for problem in found}
        self.prompts = {_plain(problem.prompt): problem for problem in found}

    def complete(self, transcript: Transcript) -> None:
        """Fill in the fields of the problem, found by id or by the prompt without spacing and without a request for a box."""
        problem: Problem | None = self.ids.get(transcript.problem_id) or self.prompts.get(_plain(transcript.prompt))
        if problem is None:
            return
        transcript.problem_id, transcript.expected = problem.id, problem.answer
        transcript.source, transcript.setup = transcript.source or problem.source, problem.setup
        transcript.metadata = {**problem.metadata, **transcript.metadata}


def _plain(prompt: str) -> str:
    return re.sub(r"\s+", "", prompt.strip().removesuffix(BOX_REQUEST))
