"""``aster replay``: every recorded call again in the sandbox.

A set whose outputs do not come back teaches what cannot be relied on. Each trajectory's calls run in one session, with the seed
and setup that are recorded. What can never come back is no difference: addresses of objects and measured times are made alike
before outputs are compared a second time.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from aster.transcript import Transcript
from aster.types import CallStatus, ToolCall
from aster_sandbox import AnySandbox, AnySession, SandboxFailure

EXAMPLES = 5
"""Differences shown of each kind."""
SHOWN = 300
"""Characters shown of an output."""
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]+\b")
_TIME = re.compile(
    r"\b\d+(?:\.\d+)?(?:e[+-]?\d+)?(?=\s*(?:s|ms|us|µs|ns|sec|secs|seconds?|milliseconds?|microseconds?|minutes?)\b)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Difference:
    """One call whose output did not come back."""

    problem_id: str
    sample: int
    call: int
    """Its number in the trajectory, from 0."""
    kind: str
    """``output``, or ``RECORDED -> NOW`` for another status."""
    code: str
    recorded: str
    now: str


@dataclass(slots=True)
class Replayed:
    """What came of a replay."""

    trajectories: int = 0
    calls: int = 0
    same: int = 0
    """Outputs that came back to the character."""
    alike: int = 0
    """Outputs that did but for addresses and measured times."""
    skipped: int = 0
    """Calls that no code ran for."""
    differing_trajectories: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    examples: list[Difference] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """Trajectories whose session the sandbox could not give."""

    @property
    def different(self) -> int:
        """Outputs that did not come back."""
        return self.kinds.total()

    @property
    def clean(self) -> bool:
        """Whether everything came back."""
        return not self.different and not self.failures

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return {**asdict(self), "kinds": dict(self.kinds), "different": self.different}


async def replay(
    transcripts: Iterable[Transcript], sandbox: AnySandbox, concurrency: int, done: Callable[[], None] = lambda: None
) -> Replayed:
    """Run all calls again, ``concurrency`` trajectories at a time; ``done`` is called after each."""
    report = Replayed()
    queue = iter(transcripts)

    async def work() -> None:
        for transcript in queue:
            await _one(transcript, sandbox, report)
            done()

    await asyncio.gather(*(work() for _ in range(concurrency)))
    return report


async def _one(transcript: Transcript, sandbox: AnySandbox, report: Replayed) -> None:
    report.trajectories += 1
    session: AnySession | None = None
    differs = False
    try:
        for number, call in enumerate(transcript.calls):
            if call.status is CallStatus.MALFORMED:
                report.skipped += 1
                continue
            if session is None:
                session = await sandbox.open(transcript.seed, transcript.setup)
            # Others run meanwhile and count in the same report: what is this one's is kept apart.
            differs |= not _came_back(transcript, number, call, ToolCall.of_cell(await session.run(call.code)), report)
    except SandboxFailure as error:
        report.failures.append(f"{transcript.problem_id}/{transcript.sample}: {error}")
    finally:
        if session is not None:
            await session.close()
    report.differing_trajectories += differs


def _came_back(transcript: Transcript, number: int, recorded: ToolCall, now: ToolCall, report: Replayed) -> bool:
    report.calls += 1
    if recorded.status is now.status and recorded.output == now.output:
        report.same += 1
        return True
    if recorded.status is now.status and alike(recorded.output) == alike(now.output):
        report.alike += 1
        return True
    kind = "output" if recorded.status is now.status else f"{recorded.status} -> {now.status}"
    if report.kinds[kind] < EXAMPLES:
        where = (transcript.problem_id, transcript.sample, number, kind)
        report.examples.append(Difference(*where, recorded.code[:SHOWN], recorded.output[:SHOWN], now.output[:SHOWN]))
    report.kinds[kind] += 1
    return False


def alike(output: str) -> str:
    """An output without what can never come back, and without white space at its ends, which sets lose."""
    return _TIME.sub("#", _ADDRESS.sub("0x#", output)).strip()


def describe(report: Replayed) -> str:
    """The report as text."""
    lines = [
        f"{report.calls} calls of {report.trajectories} trajectories ran again: {report.same} outputs the same, {report.alike} "
        f"but for addresses and times, {report.different} different (in {report.differing_trajectories} trajectories)"
    ]
    if report.skipped:
        lines.append(f"{report.skipped} calls were malformed: no code ran for them, and none was run")
    lines += [f"  {kind}: {count}" for kind, count in report.kinds.most_common()]
    for each in report.examples:
        lines += [
            f"\n{each.problem_id}, sample {each.sample}, call {each.call} ({each.kind})",
            *_block("code", each.code),
            *_block("recorded", each.recorded),
            *_block("now", each.now),
        ]
    lines += [f"not replayed: {failure}" for failure in report.failures]
    return "\n".join(lines)


def _block(title: str, text: str) -> list[str]:
    return [f"  {title}:", *(f"    {line}" for line in text.split("\n"))]
