"""Synthesize with a teacher behind a server: attempts are kept as text, one by one, and then rendered as the student's tokens.

    synthesize/transcripts.jsonl    every finished attempt, a line each, appended when it ends
    synthesize/requests.jsonl       tokens and cost of every answered request
    synthesize/trajectories/        the attempts in the student's dialect, in the order of the problems, for later stages

A run that is killed loses the attempts under way and repeats none that is on disk. A run that has reached its limit of money,
or has made all attempts, goes on when the recipe asks for more, because an attempt depends only on problem, number and seed.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aster.chat import Qwen3Dialect
from aster.config import Synthesize
from aster.data.rendering import render
from aster.data.sets import iterate_set, write_set
from aster.engines.local.loading import load_tokenizer, make_dialect, resolve
from aster.environments import Environment
from aster.errors import UserError, one_line
from aster.rollout import Decoding, Job
from aster.rollout.attempts import Attempt, run_attempts
from aster.run import RunFolder, append_line, drop_torn_line, write_trajectories
from aster.teacher.chat import ChatAuthor
from aster.teacher.failures import failure_of
from aster.teacher.spending import LimitReached, Spending
from aster.terminal import Progress, say
from aster.transcript import Transcript
from aster.types import FAULTS

CHUNK = 64
"""Trajectories per file."""
FAILED_IN_ROW = 20
"""Attempts that may fail one after another. Then the stage gives up, because it would only use up the other attempts."""

Key = tuple[str, int]


@dataclass(slots=True)
class Tally:
    """The attempts that are on disk, counted."""

    keys: set[Key] = field(default_factory=set)
    correct: int = 0
    tool_calls: int = 0
    cost: float = 0.0
    failures: Counter[str] = field(default_factory=Counter)
    failed_in_row: int = 0
    last_error: str = ""
    author: str = ""
    """The model, by the name under which it is served."""

    @property
    def mean_cost(self) -> float:
        """The mean cost of an attempt."""
        return self.cost / max(1, len(self.keys))

    def add(self, transcript: Transcript) -> None:
        """Count one more attempt."""
        self.keys.add((transcript.problem_id, transcript.sample))
        self.author = transcript.author
        self.correct += transcript.reward == 1.0
        self.tool_calls += transcript.tool_calls
        self.cost += transcript.usage.cost if transcript.usage else 0.0
        name = failure_of(transcript)
        if name:
            self.failures[name] += 1
            self.last_error = one_line(transcript.error, None)
        self.failed_in_row = self.failed_in_row + 1 if transcript.stop_reason in FAULTS else 0

    def __str__(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in self.failures.most_common())


async def teach(
    settings: Synthesize, folder: RunFolder, jobs: list[Job], environment: Environment, model_path: str, source: str
) -> None:
    """Make the attempts that are missing, then render all for the student at ``model_path``. ``source`` names the problems.

    UserError where the teacher is gone, the limit of money is reached, or every attempt failed."""
    # First, so that nothing is paid for that the student cannot read.
    dialect = make_dialect(load_tokenizer(resolve(model_path, weights=False))).with_tools(environment.schemas)
    path = folder.path / "synthesize" / "transcripts.jsonl"
    ledger = folder.path / "synthesize" / "requests.jsonl"
    spending = Spending(settings.prices.per_million(), settings.max_cost, ledger, field="synthesize.max_cost")
    author = ChatAuthor(
        settings.base_url,
        settings.model,
        calls=settings.calls,
        system=settings.system,
        send_reasoning=settings.send_reasoning,
        request=settings.request,
        concurrency=settings.concurrency,
        request_seconds=settings.request_seconds,
        spending=spending,
        field="synthesize.base_url",
    )
    tally = _made(path, settings.retry_failed)
    _require_same_problems(source, folder, jobs, tally)
    missing = [job for job in jobs if (job.problem.id, job.sample) not in tally.keys]
    total = len(tally.keys) + len(missing)
    if tally.keys:
        say(f"synthesize: resuming after attempt {len(tally.keys)} of {total}")
    if missing:
        async with author, environment:
            _require_same_teacher(author, tally)
            with Progress("synthesize", total, "attempt", done=len(tally.keys)) as progress:
                work = _Work(settings, author, spending, environment, path, tally, progress)
                await work.make(missing, total)
    if tally.failures:
        say(f"synthesize: {tally.failures.total()} of {len(tally.keys)} attempts failed: {tally}")
    if tally.failures.total() == len(tally.keys):
        raise UserError(
            f"synthesize: every one of {len(tally.keys)} attempts failed ({tally}), the last with {tally.last_error}; "
            "synthesize.retry_failed=true repeats them"
        )
    _render(path, jobs, folder, dialect)
    spent = spending.total
    folder.finish(
        "synthesize",
        {
            "author": tally.author,
            "attempts": len(tally.keys),
            "problems": settings.problems,
            "attempts_per_problem": settings.attempts,
            "stopped_at_cost": settings.max_cost if len(tally.keys) < total else None,
            "correct": tally.correct,
            "tool_calls": tally.tool_calls / max(1, len(tally.keys)),
            "failures": dict(tally.failures),
            "prompt_tokens": spent.prompt_tokens,
            "completion_tokens": spent.completion_tokens,
            "cost": round(spent.cost, 6),
        },
    )


@dataclass(slots=True)
class _Work:
    """Makes the attempts of one start of the stage."""

    settings: Synthesize
    author: ChatAuthor
    spending: Spending
    environment: Environment
    path: Path
    tally: Tally
    progress: Progress
    under_way: int = 0
    ended: UserError | None = None
    """Why no new attempt begins; None while they do."""
    one_ended: asyncio.Event = field(default_factory=asyncio.Event)
    places: asyncio.Semaphore = field(init=False)
    """For attempts under way."""

    def __post_init__(self) -> None:
        self.places = asyncio.Semaphore(self.settings.concurrency)

    async def make(self, jobs: list[Job], total: int) -> None:
        """Make all of them. UserError where that is not possible; every attempt that has ended is on disk."""
        await run_attempts(
            jobs,
            lambda job: asyncio.create_task(self._start(job)),
            self._keep,
            label="synthesize",
            part=1,  # what was paid for is on disk at once
            hopeless=None,  # attempts under way are paid for, so they are not cancelled: see _attempt
        )
        if self.ended is None:
            return
        made = f"{len(self.tally.keys)} of {total} attempts are on disk"
        if isinstance(self.ended, LimitReached):
            if self.settings.finish_at_limit and self.tally.keys:
                say(f"{self.ended}; {made}, and the stage ends with them")
                return
            raise UserError(
                f"{self.ended}; {made}; give the same command with a higher limit to go on, or with "
                "synthesize.finish_at_limit=true to use what is there"
            )
        raise UserError(f"{self.ended}; {made}; the same command goes on from there")

    async def _start(self, job: Job) -> Transcript | None:
        """The attempt, as soon as there is a place and money for it; None where no new one begins."""
        async with self.places:
            if self.ended is not None or not await self._affordable():
                return None
            self.under_way += 1
            try:
                return await self._attempt(job)
            except UserError as error:
                # The other attempts may still end well: their requests are under way, or fit under the limit.
                self.ended = self.ended or error
                return None
            finally:
                self.under_way -= 1
                self.one_ended.set()

    async def _affordable(self) -> bool:
        """Whether the spending limit is likely to leave room for one more whole attempt. Waits for those under way while it is
        not known."""
        while not self.spending.may_start(self.tally.mean_cost, self.under_way):
            if not self.under_way:
                self.ended = self.ended or LimitReached(
                    f"{self.spending.field}: the limit of {self.spending.limit:g} leaves no room for one more attempt: "
                    f"{self.spending.spent:.4g} is spent, and an attempt costs {self.tally.mean_cost:.4g}"
                )
                return False
            self.one_ended.clear()
            await self.one_ended.wait()
        return self.ended is None

    def _keep(self, attempts: Sequence[Attempt]) -> None:
        for attempt in attempts:
            append_line(self.path, json.dumps(attempt.to_json(), separators=(",", ":")))

    async def _attempt(self, job: Job) -> Transcript:
        settings = self.settings
        transcript = await self.author.attempt(
            job.problem,
            job.sample,
            job.seed,
            environment=self.environment,
            budget=settings.limits.budget(),
            decoding=Decoding(settings.temperature, settings.top_p),
        )
        self.tally.add(transcript)
        total = self.spending.total
        self.progress.advance(
            1,
            correct=self.tally.correct,
            failed=self.tally.failures.total(),
            calls=self.tally.tool_calls,
            tokens=total.prompt_tokens + total.completion_tokens,
            cost=total.cost,
        )
        if self.tally.failed_in_row >= FAILED_IN_ROW and self.ended is None:
            self.ended = UserError(
                f"synthesize: {self.tally.failed_in_row} attempts failed one after another, the last with "
                f"{self.tally.last_error}; they are recorded, and synthesize.retry_failed=true repeats them"
            )
        return transcript


def _require_same_problems(source: str, folder: RunFolder, jobs: list[Job], tally: Tally) -> None:
    """UserError where attempts on disk are at problems that are not asked now: there are fewer, or their file has changed.
    Attempts at two sets of problems would be mixed."""
    asked = {job.problem.id: job.problem.prompt for job in jobs}
    known = folder.problems()
    left_out = {name for name, _ in tally.keys if name not in asked}
    if left_out:
        raise UserError(
            f"synthesize.problems: {len(left_out)} problems that have attempts are not among the {len(asked)} asked now, such "
            f"as {min(left_out)}: an earlier command asked for more, or {source} has changed since; give the higher number, "
            "restore the file or choose another --run"
        )
    # The run folder keeps the first text of an id.
    changed = {name for name, prompt in asked.items() if known[name]["prompt"] != prompt}
    if changed:
        raise UserError(
            f"{source}: has changed since this run began: {len(changed)} of its problems ask something else, such as "
            f"{min(changed)}; restore the file or choose another --run"
        )


def _require_same_teacher(author: ChatAuthor, tally: Tally) -> None:
    """UserError where the recipe names no model and the server has another one than before."""
    if tally.author and author.model != tally.author:
        raise UserError(
            f"{author.field}: {author.server.address} serves {author.model}, and the attempts on disk are by {tally.author}; "
            "give the address where that model is served, or choose another --run"
        )


def _made(path: Path, retry_failed: bool) -> Tally:
    """The attempts on disk. ``retry_failed``: those that failed are removed first."""
    drop_torn_line(path)
    tally = Tally()
    if not path.exists():
        return tally
    if retry_failed and any(transcript.stop_reason in FAULTS for transcript in iterate_set(path)):
        write_set(path, (transcript for transcript in iterate_set(path) if transcript.stop_reason not in FAULTS))
    for transcript in iterate_set(path):
        tally.add(transcript)
    tally.failed_in_row = 0
    return tally


def _render(path: Path, jobs: list[Job], folder: RunFolder, dialect: Qwen3Dialect) -> None:
    """Write the attempts on disk as the student's tokens, in the order of the problems. Only one file's are in memory."""
    place: dict[Key, int] = {}
    with open(path, "rb") as stream:
        offset = 0
        for line in stream:
            record = json.loads(line)
            place[record["problem_id"], record["sample"]] = offset
            offset += len(line)
        order = {job.problem.id: number for number, job in enumerate(jobs)}
        keys = sorted(place, key=lambda key: (order[key[0]], key[1]))
        for number, start in enumerate(range(0, len(keys), CHUNK)):
            trajectories = []
            for key in keys[start : start + CHUNK]:
                stream.seek(place[key])
                trajectories.append(render(Transcript.from_json(json.loads(stream.readline())), dialect))
            write_trajectories(folder.trajectory_file("synthesize", f"chunk_{number:05d}"), trajectories)
