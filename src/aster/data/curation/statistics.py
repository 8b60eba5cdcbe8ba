"""Sets side by side: how they use the tool, and what that says about the risk of collapse."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable
from typing import Any

from aster.data.curation.copies import Contents
from aster.data.curation.measures import CountTokens, Measures
from aster.transcript import Transcript
from aster.types import CallStatus

PLACES = 10
"""Parts of a trajectory in which calls are counted, by how much of its thinking is done before them."""
TOKENS_PER_BAR = 1000
"""Width of the bars of the distribution of lengths."""
SPARSE_CALLS = 3
"""Fewer calls than this in most trajectories is called sparse: the paper's sparse sets have one or two."""
MOSTLY = 0.5


class SetStatistics:
    """Gathers the statistics of a stream of transcripts; memory grows with the number of trajectories by a few numbers each."""

    def __init__(
        self, name: str, count: CountTokens | None = None, unit: str | None = None, contents: Contents | None = None
    ) -> None:
        """``contents``: what was seen in the sets before this one."""
        self.name, self.count, self.unit, self.contents = name, count, unit, contents or Contents()
        self.copies: Counter[str] = Counter()
        self.calls: list[int] = []
        self.tokens: list[int] = []
        self.thinking: list[float] = []
        self.statuses: Counter[CallStatus] = Counter()
        self.places = [0] * PLACES
        self.problems: set[str] = set()
        self.verified = self.unverified = self.rechecks = self.only_rechecks = self.causal = self.later = 0
        self.counted = True

    def add(self, transcript: Transcript) -> None:
        """Take one transcript in."""
        first = self.contents.seen_in(transcript, self.name)
        self.copies.update([] if first is None else [first])
        measures = Measures(transcript, self.count)
        self.counted = self.counted and measures.counted
        self.calls.append(transcript.tool_calls)
        self.tokens.append(measures.tokens)
        self.problems.add(transcript.problem_id)
        self.statuses.update(call.status for call in transcript.calls)
        self.verified += transcript.reward == 1.0
        self.unverified += transcript.reward is None
        if not measures.ran:
            return
        self.thinking.append(measures.thinking_per_call)
        known = measures.known_before
        self.rechecks += sum(known)
        self.only_rechecks += all(known)
        self.causal += sum(measures.causal[1:])
        self.later += len(measures.causal) - 1
        total = sum(measures.thinking)
        done = 0
        for step, thought in zip(transcript.steps, measures.thinking, strict=True):
            done += thought
            ran = sum(call.status is not CallStatus.MALFORMED for call in step.calls)
            self.places[min(PLACES - 1, int(PLACES * done / total)) if total else 0] += ran

    def result(self) -> dict[str, Any]:
        """The numbers. A share or mean of nothing is None.

        name, trajectories, problems   whose they are, how many, of how many problems
        copies, copies_of              how many are the same as an earlier one: of this set, or by name of another
        verified                       share whose answer was verified as right; unverified ones count as not
        unverified                     share that nobody has verified
        calls_mean, calls_median, calls_histogram   tool calls per trajectory whose code ran; item n of the histogram: with n
        sparse                         share of trajectories with fewer than three calls
        call_success                   share of the calls whose code ran that ended without error
        malformed                      share of all calls that could not be parsed
        causal                         share of the calls after the first that use what an earlier one left
        rechecks                       share of the calls made when the final answer was known
        only_rechecks                  share of the trajectories with calls all of whose calls were
        call_places                    share of the calls made in each tenth of the trajectory's thinking
        unit                           of lengths: tokens as the author counted them, tokens of a tokenizer, or words
        thinking_per_call              mean over trajectories with calls
        tokens_mean, tokens_median, tokens_p95, tokens_histogram   written per trajectory; histogram in bars of 1,000
        verdict                        a sentence on the risk of collapse
        """
        made, ran = len(self.calls), sum(self.calls)
        asked = self.statuses.total()
        counts = Counter(self.calls)
        bars = Counter(length // TOKENS_PER_BAR for length in self.tokens)
        with_calls = made - counts[0]
        result: dict[str, Any] = {
            "name": self.name,
            "trajectories": made,
            "copies": self.copies.total(),
            "copies_of": dict(self.copies),
            "problems": len(self.problems),
            "verified": _share(self.verified, made),
            "unverified": _share(self.unverified, made),
            "calls_mean": _share(ran, made),
            "calls_median": statistics.median(self.calls) if made else None,
            "calls_histogram": [counts[number] for number in range(max(self.calls, default=-1) + 1)],
            "sparse": _share(sum(number for calls, number in counts.items() if calls < SPARSE_CALLS), made),
            "call_success": _share(self.statuses[CallStatus.OK], ran),
            "malformed": _share(asked - ran, asked),
            "causal": _share(self.causal, self.later),
            "rechecks": _share(self.rechecks, ran),
            "only_rechecks": _share(self.only_rechecks, with_calls),
            "call_places": [_share(number, ran) for number in self.places],
            "unit": self.unit or ("tokens" if self.counted and made else "words"),
            "thinking_per_call": statistics.fmean(self.thinking) if self.thinking else None,
            "tokens_mean": _share(sum(self.tokens), made),
            "tokens_median": statistics.median(self.tokens) if made else None,
            "tokens_p95": sorted(self.tokens)[int(0.95 * (made - 1))] if made else None,
            "tokens_histogram": [bars[bar] for bar in range(max(bars, default=-1) + 1)],
        }
        return result | {"verdict": verdict(result)}


def statistics_of(
    name: str,
    transcripts: Iterable[Transcript],
    count: CountTokens | None = None,
    unit: str | None = None,
    contents: Contents | None = None,
) -> dict[str, Any]:
    """:class:`SetStatistics` of a whole stream."""
    gathered = SetStatistics(name, count, unit, contents)
    for transcript in transcripts:
        gathered.add(transcript)
    return gathered.result()


def verdict(result: dict[str, Any]) -> str:
    """What the numbers say about collapse: whether the set looks like those from which, in the paper, RL let go of the tool.

    The paper saw tool use fall after cold starts of one or two calls. A set is called sparse where most of its trajectories
    have fewer than three calls, and post-hoc where most of its calls come after the answer is known. It is a reading of the
    set, not a prediction: model, problems and RL decide as well, and what counts as known is a heuristic
    (``Measures.known_before``).
    """
    if not result["trajectories"]:
        return "nothing to say: the set is empty"
    if not sum(result["calls_histogram"][1:]):
        return "no trajectory calls the tool: SFT on it cannot teach tool use"
    sparse = result["sparse"] > MOSTLY
    post_hoc = result["rechecks"] > MOSTLY
    calls = f"{result['sparse']:.0%} of the trajectories have fewer than {SPARSE_CALLS} calls"
    checks = f"{result['rechecks']:.0%} of the calls come after the answer is known"
    if sparse and post_hoc:
        return f"high risk: sparse and post-hoc ({calls}; {checks}); tool use that only checks tends to die out in RL"
    if sparse:
        return f"some risk: sparse ({calls}); in the paper tool use fell from such a start, although here the calls are needed"
    if post_hoc:
        return f"some risk: post-hoc ({checks}); the calls are many, but the answers do not need them"
    return f"no sign of risk: {1 - result['sparse']:.0%} of the trajectories have {SPARSE_CALLS} calls or more; {checks}"


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
