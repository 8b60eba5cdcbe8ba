"""The chain of filters that selects the trajectories to train on, with a count after each filter (the funnel).

The paper keeps 4,000 trajectories with a correct answer, more than nine calls, and no failed call. The other filters are ours
and are off by default. The recipe's section ``curate`` (:class:`~aster.config.Curate`) turns them on; docs/data.md says what
each is for.

:class:`Chain` looks at one transcript at a time, so a set may be larger than memory. It keeps a small record of each
(:class:`Judged`). When all have been seen, :func:`choose` removes copies, limits the number per problem and the total, and
returns the selection. Copies are removed after the filters, because one copy may be verified and another not.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from aster.config import ColdStart, Curate
from aster.data.curation.copies import content_of
from aster.data.curation.measures import CountTokens, Measures
from aster.seeds import derive
from aster.transcript import Transcript
from aster.types import CallStatus

UNIQUE = "no copy of another"
"""Name of the filter that keeps one of several identical trajectories."""
BINS = 5
"""Number of classes for a difficulty between 0 and 1."""


@dataclass(frozen=True, slots=True)
class Funnel:
    """One filter and the number of trajectories left after it."""

    filter: str
    kept: int


@dataclass(frozen=True, slots=True)
class Filter:
    """One filter of the chain."""

    name: str
    keeps: Callable[[Measures], bool]


@dataclass(frozen=True, slots=True)
class Judged:
    """What is kept in memory of one transcript after the filters."""

    problem_id: str
    sample: int
    author: str
    dropped_by: int | None
    """Index of the filter that dropped it; None: it passed all."""
    kind: str = ""
    """Class of difficulty and topic, used to balance the choice."""
    content: str = ""
    """Hash that is the same for copies; empty if copies are kept."""
    source: int = 0
    """Index of the source that it comes from."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """A transcript that was not kept, and the filter that dropped it."""

    problem_id: str
    sample: int
    author: str
    filter: str


@dataclass(frozen=True, slots=True)
class Selection:
    """The result of a curation."""

    kept: list[int]
    """Indices of the kept transcripts in the stream, in order."""
    funnel: list[Funnel]
    copies: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Number of trajectories dropped as copies, by (source of the dropped one, source of the kept one)."""


class Chain:
    """The active filters. Judges one transcript at a time."""

    def __init__(
        self, settings: Curate, cold_start: ColdStart | str, count: CountTokens | None = None, sources: int = 1
    ) -> None:
        """``count`` counts the tokens of a text (default: see :class:`Measures`). ``sources`` is the number of sets read."""
        self.settings = settings.resolved(cold_start, sources)
        self.filters = list(_filters(self.settings))
        self.count = count

    def judge(self, transcript: Transcript, source: int = 0) -> Judged:
        """Apply the filters in order to a transcript of the source with index ``source``."""
        measures = Measures(transcript, self.count)
        dropped = next((place for place, each in enumerate(self.filters) if not each.keeps(measures)), None)
        kind = content = ""
        if dropped is None:
            kind = _kind(transcript.metadata, self.settings.balance)
            content = content_of(transcript) if self.settings.unique else ""
        return Judged(transcript.problem_id, transcript.sample, transcript.author, dropped, kind, content, source)


def _filters(settings: Curate) -> Iterator[Filter]:
    if settings.verified:
        yield Filter("answer verified", lambda m: m.transcript.reward == 1.0)
    if settings.succeeded:
        yield Filter("every call succeeded", lambda m: all(call.status is CallStatus.OK for call in m.transcript.calls))
    if not settings.density.open:
        yield Filter(f"{settings.density} tool calls", lambda m: settings.density.holds(m.transcript.tool_calls))
    if not settings.tokens.open:
        yield Filter(f"{settings.tokens} tokens", lambda m: settings.tokens.holds(m.tokens))
    if not settings.thinking_per_call.open:
        name = f"{settings.thinking_per_call} tokens of thinking a call"
        yield Filter(name, lambda m: settings.thinking_per_call.holds(m.thinking_per_call))
    if settings.repeated_cells < 1:
        name = f"at most {settings.repeated_cells:.0%} of the calls repeated"
        yield Filter(name, lambda m: m.repeated_cells <= settings.repeated_cells)
    if settings.repeated_text < 1:
        name = f"at most {settings.repeated_text:.0%} of the thinking repeated"
        yield Filter(name, lambda m: m.repeated_text <= settings.repeated_text)
    if settings.rechecks < 1:
        name = f"at most {settings.rechecks:.0%} of the calls re-check a known answer"
        yield Filter(name, lambda m: m.recheck_share <= settings.rechecks)
    if settings.causal > 0:
        name = f"at least {settings.causal:.0%} of the later calls use earlier results"
        yield Filter(name, lambda m: m.causal_share >= settings.causal)


def choose(judged: Iterable[Judged], chain: Chain, seed: int, dropped: Callable[[Dropped], Any] = lambda _: None) -> Selection:
    """Choose among the transcripts that passed the filters, after the whole stream has been judged.

    Keeps one of several copies, then at most ``per_problem`` of each problem, then ``size`` in all. The same transcripts and
    seed give the same choice, in whatever order the transcripts come. ``dropped`` is called for each that is not kept.
    """
    settings = chain.settings
    passed: list[tuple[int, Judged]] = []
    counts = [0] * len(chain.filters)
    total = 0
    for place, each in enumerate(judged):
        total += 1
        if each.dropped_by is None:
            passed.append((place, each))
        else:
            counts[each.dropped_by] += 1
            dropped(Dropped(each.problem_id, each.sample, each.author, chain.filters[each.dropped_by].name))
    funnel = [Funnel("attempts", total)]
    for each_filter, count in zip(chain.filters, counts, strict=True):
        funnel.append(Funnel(each_filter.name, funnel[-1].kept - count))
    copies: Counter[tuple[int, int]] = Counter()
    for name, limit, group, share in (
        (UNIQUE, 1 if settings.unique else None, _content_of, _first),
        (f"at most {settings.per_problem} of a problem", settings.per_problem, _problem_of, _first),
        (_choice_name(settings), settings.size, _all, _balanced),
    ):
        if limit is None or (group is _all and len(passed) <= limit):
            continue
        kept = {place for members in _grouped(passed, group).values() for place in share(members, limit, seed)}
        for place, each in passed:
            if place not in kept:
                dropped(Dropped(each.problem_id, each.sample, each.author, name))
        if group is _content_of:
            copies = _copies(passed, kept)
        passed = [(place, each) for place, each in passed if place in kept]
        funnel.append(Funnel(name, len(passed)))
    return Selection([place for place, _ in passed], funnel, copies)


Members = list[tuple[int, Judged]]


def _choice_name(settings: Curate) -> str:
    over = f", balanced over {' and '.join(settings.balance)}" if settings.balance else ""
    return f"{settings.size} chosen by seed{over}"


def _content_of(judged: Judged) -> str:
    return judged.content


def _copies(passed: Members, kept: set[int]) -> Counter[tuple[int, int]]:
    """Count the dropped copies by (their source, the source of the kept one)."""
    of = {judged.content: judged.source for place, judged in passed if place in kept}
    return Counter((judged.source, of[judged.content]) for place, judged in passed if place not in kept)


def _problem_of(judged: Judged) -> str:
    return judged.problem_id


def _all(_judged: Judged) -> str:
    return ""


def _kind_of(judged: Judged) -> str:
    return judged.kind


def _grouped(members: Members, key: Callable[[Judged], str]) -> dict[str, Members]:
    groups: dict[str, Members] = defaultdict(list)
    for place, judged in members:
        groups[key(judged)].append((place, judged))
    return groups


def _first(members: Members, limit: int, seed: int) -> list[int]:
    """Return the places of ``limit`` members, chosen at random by the seed."""
    if len(members) <= limit:
        return [place for place, _ in members]
    ranked = sorted(members, key=lambda m: (derive(seed, m[1].problem_id, m[1].sample, m[1].author), m[0]))
    return [place for place, _ in ranked[:limit]]


def _balanced(members: Members, limit: int, seed: int) -> list[int]:
    """Like :func:`_first`, with an equal number of each kind. If a kind has too few, the others get its remaining places."""
    kinds = sorted(_grouped(members, _kind_of).items(), key=lambda item: (len(item[1]), derive(seed, "kind", item[0])))
    chosen: list[int] = []
    for index, (_, of_kind) in enumerate(kinds):
        chosen += _first(of_kind, (limit - len(chosen)) // (len(kinds) - index), seed)
    return chosen


def _kind(metadata: dict[str, Any], over: Iterable[Literal["difficulty", "topic"]]) -> str:
    return "/".join(_class_of(metadata.get(name)) for name in over)


def _class_of(value: Any) -> str:
    """Return the class of a difficulty or topic.

    Fractions between 0 and 1 fall into five equal classes, other numbers are rounded, and of a list the first item counts.
    """
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, bool) or value is None:
        return ""
    if isinstance(value, int | float):
        if not math.isfinite(value):
            return ""
        return (
            f"{min(BINS - 1, int(value * BINS))}/{BINS}" if isinstance(value, float) and 0 <= value <= 1 else str(round(value))
        )
    return str(value)
