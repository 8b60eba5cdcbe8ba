"""The declared chain of filters: which trajectories teach. Each filter has its count: the funnel.

The paper keeps correct answers whose tool calls all succeeded, with more than nine calls, and of those 4,000. The other
filters are ours and off by default; the recipe's section ``curate`` (:class:`~aster.config.Curate`) declares them, and
docs/data.md says what each is for.

Filters look at one transcript at a time (:class:`Chain`), so any number of them stream through. What passes leaves a few words
behind (:class:`Judged`), out of which the choice is made when all have been seen (:func:`choose`): one of those that are the
same, so many of a problem, so many in all. Copies are told apart after the filters, because one copy may be verified and the
other not.
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
"""The filter that keeps one of trajectories that are the same."""
BINS = 5
"""Classes of a difficulty that is a share of 1."""


@dataclass(frozen=True, slots=True)
class Funnel:
    """One filter and how many trajectories were left after it."""

    filter: str
    kept: int


@dataclass(frozen=True, slots=True)
class Filter:
    """One filter of the chain."""

    name: str
    keeps: Callable[[Measures], bool]


@dataclass(frozen=True, slots=True)
class Judged:
    """What is remembered of a transcript that streamed by."""

    problem_id: str
    sample: int
    author: str
    dropped_by: int | None
    """The filter's place in the chain; None: it passed all."""
    kind: str = ""
    """Its class of difficulty and topic, for the balance of the choice."""
    content: str = ""
    """What it shares with its copies; empty where these are kept."""
    source: int = 0
    """Which of the sources it comes from."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """A transcript that was not kept, and the filter that dropped it."""

    problem_id: str
    sample: int
    author: str
    filter: str


@dataclass(frozen=True, slots=True)
class Selection:
    """What is kept of a stream of transcripts, by their places in it."""

    kept: list[int]
    """In the order of the stream."""
    funnel: list[Funnel]
    copies: Counter[tuple[int, int]] = field(default_factory=Counter)
    """How many trajectories of one source were dropped as copies of one that is kept, by (their source, the kept one's)."""


class Chain:
    """The filters in force, for one transcript at a time."""

    def __init__(
        self, settings: Curate, cold_start: ColdStart | str, count: CountTokens | None = None, sources: int = 1
    ) -> None:
        """``sources``: how many sets are read."""
        self.settings = settings.resolved(cold_start, sources)
        self.filters = list(_filters(self.settings))
        self.count = count

    def judge(self, transcript: Transcript, source: int = 0) -> Judged:
        """Pass a transcript of one of the sources through the filters, in order."""
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
    """The choice of what passed, after the whole stream: one of those that are the same, so many of a problem, so many in all.
    Same stream and seed, same choice; which transcripts are chosen does not depend on their order. ``dropped`` hears of each
    that is not kept."""
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
    """Whose copies those are that are not kept."""
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
    """The places of the ``limit`` members that the seed puts first."""
    if len(members) <= limit:
        return [place for place, _ in members]
    ranked = sorted(members, key=lambda m: (derive(seed, m[1].problem_id, m[1].sample, m[1].author), m[0]))
    return [place for place, _ in ranked[:limit]]


def _balanced(members: Members, limit: int, seed: int) -> list[int]:
    """As :func:`_first`, an equal number of each kind; what a rare kind leaves of its part goes to the others."""
    kinds = sorted(_grouped(members, _kind_of).items(), key=lambda item: (len(item[1]), derive(seed, "kind", item[0])))
    chosen: list[int] = []
    for index, (_, of_kind) in enumerate(kinds):
        chosen += _first(of_kind, (limit - len(chosen)) // (len(kinds) - index), seed)
    return chosen


def _kind(metadata: dict[str, Any], over: Iterable[Literal["difficulty", "topic"]]) -> str:
    return "/".join(_class_of(metadata.get(name)) for name in over)


def _class_of(value: Any) -> str:
    """A difficulty or topic as a class: shares of 1 in five equal parts, other numbers rounded, of a list the first."""
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
