"""One evaluation from settings to tables: ``aster evaluate --policy ... --benchmark ...``.

An attempt is on disk at the latest so many attempts or seconds after it has ended (:data:`PART`, :data:`PART_SECONDS`), and
whatever ends the process by an exception, Ctrl-C among them, writes the rest first. Given again, the command makes what is
missing, and anew what failed through no doing of the policy.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aster.config import Rollout
from aster.data.benchmarks import load_benchmark
from aster.data.problems import choose_problems
from aster.errors import UserError, one_line
from aster.evaluation.budgets import curves
from aster.evaluation.folder import Attempt, EvaluationFolder
from aster.evaluation.metrics import summarize
from aster.evaluation.outcomes import Outcome, outcome
from aster.evaluation.policies import open_attempts
from aster.evaluation.settings import Settings, parse_shard
from aster.money import Prices
from aster.rollout import Job
from aster.seeds import derive
from aster.terminal import Progress, say
from aster.types import FAULTS, Problem

PART = 16
"""Attempts in a file."""
PART_SECONDS = 60.0
"""An attempt waits no longer for the others of its file."""
HOPELESS = 16
"""So many faults in a row, at more than one problem, stop the evaluation: a server that is gone must not pass for a policy that
is wrong. Where one problem alone fails, or the last few attempts of a resumed evaluation do, they are recorded as faults: else
the evaluation could never be finished."""
LAB = "lab"
LAB_PROBLEMS = 128


@dataclass(frozen=True)
class Request:
    """What is asked for, beside the settings."""

    folder: Path
    rollout: Rollout
    label: str | None = None
    prices: Prices | None = None
    retry_faults: bool = False
    """A finished evaluation makes its faulty attempts anew."""


def read_problems(
    benchmark: str, folder: str | None, count: int | None, seed: int, suffix: str, *, changed: bool = False
) -> list[Problem]:
    """The problems to ask, each with ``suffix``; a seeded choice where ``count`` is less than there are.

    ``lab`` are the embedded problems, as the pipeline's evaluation has them; their text asks for the box itself."""
    if benchmark == LAB:
        from aster.config import Problems
        from aster.environments.lab import generate

        settings = Problems()
        return generate(settings.families, (settings.levels[0], settings.levels[1]), "test", count or LAB_PROBLEMS, 0)
    problems = load_benchmark(benchmark, folder, changed=changed)
    chosen = choose_problems(problems, count or len(problems), seed)
    return [Problem(each.id, each.prompt + suffix, each.answer, each.source, each.setup, each.metadata) for each in chosen]


def evaluate(settings: Settings, problems: Sequence[Problem], request: Request) -> dict[str, Any]:
    """Make the attempts that are missing, and the summary. Returns the summary."""
    with EvaluationFolder.open(request.folder, settings) as folder:
        found = folder.summary()
        if found is not None:
            faults = found["faults"]
            if not (request.retry_faults and faults):
                hint = f"; --retry-faults makes the {faults} faulty attempts anew" if faults else ""
                asked = {key: each for key, each in _named(request).items() if each is not None}
                if any(found["notes"].get(key) != each for key, each in asked.items()):
                    folder.note(**asked)
                    say(f"{request.folder}: this evaluation is finished; only its label and prices are new{hint}")
                    return conclude(folder, jobs_of(settings, problems))
                say(f"{request.folder}: this evaluation is finished; nothing to do{hint}")
                return found
            folder.unfinish()
        if settings.kind != "chat":
            settings.engine_config(request.rollout)  # what is wrong with it is said before anything is written
        notes = {
            **_named(request),
            "training": training_of(settings),
            "concurrency": request.rollout.slots,
        }
        folder.begin(problems, notes)
        jobs = jobs_of(settings, problems)
        kept = {key: each for key, each in _on_disk(folder).items() if each.stop_reason not in FAULTS}
        missing = [job for job in jobs if (job.problem.id, job.sample) not in kept]
        if kept and missing:
            say(f"evaluate: resuming after attempt {len(kept)} of {len(jobs)}")
        if missing:
            asyncio.run(_make(folder, settings, request.rollout, missing, len(jobs)))
        return conclude(folder, jobs)


def _named(request: Request) -> dict[str, Any]:
    """The notes that tables show and that may be given anew; None where not given."""
    prices = request.prices
    return {"label": request.label, "prices": None if prices is None else [prices.read, prices.written]}


def _prices(folder: EvaluationFolder) -> Prices | None:
    """What was given last; None where nothing was."""
    noted = folder.about()["notes"].get("prices")
    return Prices(*noted) if noted else None


def conclude(folder: EvaluationFolder, jobs: Sequence[Job]) -> dict[str, Any]:
    """Read what is on disk, in the order of the jobs, and finish the folder."""
    outcomes = _on_disk(folder)
    ordered = [outcomes[job.problem.id, job.sample] for job in jobs]
    about = folder.about()
    settings = folder.settings
    say("evaluate: computing intervals and votes")
    summary = {
        **summarize(ordered, settings.seed, _prices(folder)),
        "curves": curves(ordered, settings.seed, settings.context_tokens, settings.tool_calls),
        "settings": settings.model_dump(mode="json"),
        "notes": about["notes"],
        "versions": about["versions"],
        "machine": about["machine"],
    }
    folder.finish(ordered, summary)
    return summary


def jobs_of(settings: Settings, problems: Sequence[Problem]) -> list[Job]:
    """The attempts of the settings' shard. A seed belongs to (run seed, problem, sample) alone: neither to budget nor order."""
    part, parts = parse_shard(settings.shard)
    mine = [problem for index, problem in enumerate(problems) if index % parts == part - 1]
    if not mine:
        raise UserError(
            f"--shard {settings.shard}: there are {len(problems)} problems, so this shard has none; use fewer shards"
        )
    return [
        Job(problem, sample, derive(settings.seed, "evaluate", problem.id, sample))
        for problem in mine
        for sample in range(settings.k)
    ]


def training_of(settings: Settings) -> dict[str, Any] | None:
    """The budget that a checkpoint was trained under, where it lies in a run folder; else None."""
    from aster.config.file import load_recipe

    if settings.kind not in ("local", "tinker"):
        return None
    path = Path(settings.checkpoint or settings.policy).resolve()
    stage, run = path.parent.parent, path.parent.parent.parent
    if path.parent.name != "checkpoints" or not (run / "recipe.yaml").exists():
        return None
    recipe = load_recipe(run / "recipe.yaml")
    found: dict[str, Any] = {"run": recipe.name, "stage": stage.name, "checkpoint": path.name}
    if stage.name == "rl":
        limits = recipe.rl.stages[-1].limits
        found |= {"context_tokens": limits.context_tokens, "tool_calls": limits.tool_calls}
    return found


def _on_disk(folder: EvaluationFolder) -> dict[tuple[str, int], Outcome]:
    """The outcome of every attempt on disk; of repeated ones the last."""
    return {(each.problem_id, each.sample): outcome(each) for each in folder.attempts()}


async def _make(folder: EvaluationFolder, settings: Settings, rollout: Rollout, jobs: list[Job], total: int) -> None:
    from aster.engines import EngineLost
    from aster.environments import PythonTool
    from aster.environments.opening import make_environment
    from aster_sandbox import Sandbox, SandboxFailure, SettingsError

    async with AsyncExitStack() as stack:
        try:
            beside_sampler = settings.kind == "local" and settings.engine.samples_here
            environment = make_environment(
                settings.environment, settings.offered_tools, settings.sandbox, beside_sampler=beside_sampler
            )
            await stack.enter_async_context(environment)
            for tool in environment.tools:
                if isinstance(tool, PythonTool):
                    sandbox = tool.sandbox
                    folder.note(isolation=sandbox.level.value if isinstance(sandbox, Sandbox) else "of the service")
            start = await stack.enter_async_context(open_attempts(settings, rollout, environment, folder, _prices(folder)))
            with Progress("evaluate", total, "attempt", done=total - len(jobs)) as progress:
                await _collect(folder, [start(job) for job in jobs], progress, first=len(jobs) == total)
        except SettingsError as error:
            raise UserError(str(error)) from error
        except SandboxFailure as error:
            raise UserError(f"sandbox: {error}") from error
        except EngineLost as error:
            raise UserError(f"--policy {settings.policy}: {error}; the same command resumes") from error


async def _collect(
    folder: EvaluationFolder, tasks: Sequence[asyncio.Task[Any]], progress: Progress, first: bool = True
) -> None:
    """Take attempts as they end, and write them part by part. UserError where only faults come. ``first``: nothing good is on
    disk."""
    waiting: set[asyncio.Task[Any]] = set(tasks)
    ended: list[Attempt] = []
    faults = in_a_row = 0
    failing: set[str] = set()  # problems of the faults in a row
    written = time.monotonic()
    try:
        while waiting:
            done, waiting = await asyncio.wait(waiting, timeout=PART_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                attempt = task.result()
                ended.append(attempt)
                faulty = attempt.stop_reason in FAULTS
                faults, in_a_row = faults + faulty, in_a_row + 1 if faulty else 0
                failing = {*failing, attempt.problem_id} if faulty else set()
                progress.advance(calls=attempt.tool_calls)
            if (in_a_row >= HOPELESS and len(failing) > 1) or (first and in_a_row == len(tasks)):
                last = ended[-1]
                # They would be made anew all the same.
                ended = [each for each in ended if each.stop_reason not in FAULTS]
                raise UserError(
                    f"evaluate: {in_a_row} attempts in a row failed, the last with {last.stop_reason}: "
                    f"{one_line(last.error, None)}; mend it and give the same command again: it resumes"
                )
            if len(ended) >= PART or (ended and time.monotonic() - written > PART_SECONDS):
                folder.add(ended)
                ended, written = [], time.monotonic()
    finally:
        if ended:
            folder.add(ended)
    if faults:
        say(f"evaluate: {faults} of {len(tasks)} attempts failed through no doing of the policy")
