"""Compute how a set of trajectories uses the tool, and what that says about the risk of collapse in RL."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable
from typing import Any

from aster.data.curation.copies import Contents
from aster.data.curation.measures import CountTokens, Measures
from aster.telemetry import call_statistics
from aster.transcript import Transcript
from aster.types import CallStatus

PLACES = 10
"""Equal parts of a trajectory's thinking. Calls are counted by the part that has been reached when they are made."""
TOKENS_PER_BAR = 1000
"""Width of a bar in the histogram of lengths."""
SPARSE_CALLS = 3
"""A set is sparse if most of its trajectories have fewer calls than this: the paper's sparse sets have one or two."""
MOSTLY = 0.5
"""Share above which something holds for most of a set."""


class _Statistics:
    """Adds up the statistics of a stream of transcripts. Keeps only a few numbers per trajectory in memory."""

    def __init__(self, name: str, count: CountTokens | None, unit: str | None, contents: Contents) -> None:
        self.name, self.count, self.unit, self.contents = name, count, unit, contents
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
        """Add one transcript."""
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
        """Return the numbers; see :func:`statistics_of`."""
        made, ran = len(self.calls), sum(self.calls)
        bars = Counter(length // TOKENS_PER_BAR for length in self.tokens)
        result: dict[str, Any] = {
            "name": self.name,
            "trajectories": made,
            "copies": self.copies.total(),
            "copies_of": dict(self.copies),
            "problems": len(self.problems),
            "verified": _share(self.verified, made),
            "unverified": _share(self.unverified, made),
            **call_statistics(self.calls, self.statuses),
            "sparse": _share(sum(calls < SPARSE_CALLS for calls in self.calls), made),
            "causal": _share(self.causal, self.later),
            "rechecks": _share(self.rechecks, ran),
            "only_rechecks": _share(self.only_rechecks, made - self.calls.count(0)),
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
    """Return the statistics of a set.

    ``count`` counts the tokens of a text and ``unit`` names what it counts (default: see :class:`Measures`). ``contents``
    remembers the trajectories of the sets before this one, so that copies are found across sets.

    Keys of the result (a share or mean of nothing is None):

        name, trajectories, problems   name of the set, number of trajectories and of different problems
        copies, copies_of              number of trajectories that repeat an earlier one; the same by the earlier one's set
        verified                       share whose answer was verified as right; unverified answers do not count
        unverified                     share whose answer has not been verified
        calls_mean, calls_median, calls_histogram, call_success, malformed   see aster.telemetry.call_statistics
        sparse                         share of trajectories with fewer than three calls
        causal                         share of the calls after the first that use what an earlier call left
        rechecks                       share of the calls made after the final answer was known
        only_rechecks                  share of the trajectories with calls in which every call is a re-check
        call_places                    share of the calls made in each tenth of the trajectory's thinking
        unit                           unit of lengths: tokens as the author counted them, tokens of a tokenizer, or words
        thinking_per_call              thinking per call, mean over the trajectories with calls
        tokens_mean, tokens_median, tokens_p95, tokens_histogram   length per trajectory; histogram with bars of 1,000
        verdict                        a sentence on the risk of collapse
    """
    gathered = _Statistics(name, count, unit, contents or Contents())
    for transcript in transcripts:
        gathered.add(transcript)
    return gathered.result()


def verdict(result: dict[str, Any]) -> str:
    """Return a sentence on the risk that RL from this set gives up the tool.

    In the paper, tool use fell in RL after cold starts with one or two calls. A set is called sparse if most of its
    trajectories have fewer than three calls, and post-hoc if most of its calls come after the answer is known. The verdict
    describes the set and is no prediction: the model, the problems and RL matter as well, and whether the answer is known is
    decided by a heuristic (``Measures.known_before``).
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
        return f"some risk: sparse ({calls}); in the paper tool use fell after such a start, but here the calls are needed"
    if post_hoc:
        return f"some risk: post-hoc ({checks}); there are many calls, but the answers do not need them"
    return f"no sign of risk: {1 - result['sparse']:.0%} of the trajectories have {SPARSE_CALLS} calls or more; {checks}"


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
