"""Runs one evaluation: of a run's checkpoints (``aster run``), or of any policy (``aster evaluate --policy``).

When it is resumed, it makes the missing attempts, and repeats those that failed because of an engine, a sandbox or an
environment (:mod:`aster.rollout.attempts`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aster.config import Problems, Rollout
from aster.data.benchmarks import load_benchmark
from aster.data.problems import choose_problems
from aster.errors import UserError
from aster.evaluation.budgets import curves
from aster.evaluation.folder import EvaluationFolder
from aster.evaluation.metrics import summarize
from aster.evaluation.outcomes import Outcome, outcome
from aster.evaluation.policies import open_attempts
from aster.evaluation.settings import Settings, parse_shard
from aster.money import Prices
from aster.rollout import Job
from aster.rollout.attempts import run_attempts
from aster.run import RunFolder
from aster.seeds import derive
from aster.terminal import Progress, say
from aster.types import FAULTS, Problem

LAB = "lab"
LAB_PROBLEMS = 128


@dataclass(frozen=True)
class Request:
    """The options of an evaluation that are not in its settings."""

    folder: Path
    rollout: Rollout
    label: str | None = None
    prices: Prices | None = None
    retry_faults: bool = False
    """Whether a finished evaluation repeats its faulty attempts."""
    root: Path = Path()
    """The folder from which a relative ``Settings.checkpoint`` starts."""


def read_problems(
    benchmark: str, folder: str | None, count: int | None, seed: int, suffix: str, *, changed: bool = False
) -> list[Problem]:
    """The problems to ask, each with ``suffix``. If ``count`` is less than their number, the seed chooses among them.

    ``lab``: the lab's problems, as in the pipeline's evaluation. Their text already asks for the box."""
    if benchmark == LAB:
        from aster.environments.lab import generate

        settings = Problems()
        return generate(settings.families, (settings.levels[0], settings.levels[1]), "test", count or LAB_PROBLEMS, 0)
    problems = load_benchmark(benchmark, folder, changed=changed)
    chosen = choose_problems(problems, count or len(problems), seed)
    return [Problem(each.id, each.prompt + suffix, each.answer, each.source, each.setup, each.metadata) for each in chosen]


def evaluate(settings: Settings, problems: Sequence[Problem], request: Request) -> dict[str, Any]:
    """Make the missing attempts and write the summary. Returns the summary. Raises UserError."""
    from aster.engines import EngineLost
    from aster_sandbox import SandboxFailure, SettingsError

    try:
        return asyncio.run(make_evaluation(settings, problems, request))
    except SettingsError as error:
        raise UserError(str(error)) from error
    except SandboxFailure as error:
        raise UserError(f"sandbox: {error}") from error
    except EngineLost as error:
        raise UserError(f"--policy {settings.policy}: {error}; the same command resumes") from error


async def make_evaluation(settings: Settings, problems: Sequence[Problem], request: Request) -> dict[str, Any]:
    """:func:`evaluate`, within an event loop. EngineLost, SandboxFailure and SettingsError are the caller's."""
    with EvaluationFolder.open(request.folder, settings) as folder:
        found = folder.summary()
        if found is not None:
            faults = found["faults"]
            if not (request.retry_faults and faults):
                hint = f"; --retry-faults makes the {faults} faulty attempts again" if faults else ""
                asked = {key: each for key, each in _named(request).items() if each is not None}
                if any(found["notes"].get(key) != each for key, each in asked.items()):
                    folder.note(**asked)
                    say(f"{request.folder}: this evaluation is finished; only its label and prices are new{hint}")
                    return conclude(folder, jobs_of(settings, problems))
                say(f"{request.folder}: this evaluation is finished; nothing to do{hint}")
                return found
            folder.unfinish()
        if settings.kind != "chat":
            settings.engine_config(request.rollout)  # reports errors before anything is written
        notes = {
            **_named(request),
            "training": training_of(settings, request.root),
            "concurrency": request.rollout.slots,
        }
        folder.begin(problems, notes)
        jobs = jobs_of(settings, problems)
        kept = {key for key, each in _on_disk(folder).items() if each.stop_reason not in FAULTS}
        missing = [job for job in jobs if (job.problem.id, job.sample) not in kept]
        if kept and missing:
            say(f"{folder.title}: resuming after attempt {len(jobs) - len(missing)} of {len(jobs)}")
        if missing:
            await _make(folder, settings, request, jobs, missing)
        return conclude(folder, jobs)


def _named(request: Request) -> dict[str, Any]:
    """The notes that tables show and that a later command may change. None where not given."""
    prices = request.prices
    return {"label": request.label, "prices": None if prices is None else [prices.read, prices.written]}


def _prices(folder: EvaluationFolder) -> Prices | None:
    """The prices given last, or None."""
    noted = folder.about()["notes"].get("prices")
    return Prices(*noted) if noted else None


def conclude(folder: EvaluationFolder, jobs: Sequence[Job]) -> dict[str, Any]:
    """Read the attempts on disk in the order of the jobs, and write the outcomes and the summary. Returns the summary."""
    outcomes = _on_disk(folder)
    ordered = [outcomes[job.problem.id, job.sample] for job in jobs]
    about = folder.about()
    settings = folder.settings
    say(f"{folder.title}: computing intervals and votes")
    measured = summarize(ordered, settings.seed, _prices(folder))
    if measured["clipped"]:
        say(
            f"{folder.title}: {measured['clipped']} of {len(ordered)} rewards are below 0 or above 1; accuracy counts them as "
            "0 or 1"
        )
    summary = {
        **measured,
        "curves": curves(ordered, settings.seed, settings.context_tokens, settings.tool_calls),
        "settings": settings.model_dump(mode="json"),
        "notes": about["notes"],
        "versions": about["versions"],
        "machine": about["machine"],
    }
    folder.finish(ordered, summary)
    return summary


def jobs_of(settings: Settings, problems: Sequence[Problem]) -> list[Job]:
    """The attempts of the settings' shard. A job's seed depends only on the run's seed, the problem and
    the sample, not on budget or order."""
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


def training_of(settings: Settings, root: Path = Path()) -> dict[str, Any] | None:
    """The budget with which the policy, or its checkpoint, was trained, if it is in a run folder; otherwise None. ``root``: see
    :class:`Request`."""
    if settings.kind not in ("local", "tinker"):
        return None
    path = (root / settings.checkpoint if settings.checkpoint else Path(settings.policy)).resolve()
    stage, run = path.parent.parent, path.parent.parent.parent
    if path.parent.name != "checkpoints" or not (run / "recipe.yaml").exists():
        return None
    recipe = RunFolder.load(run).recipe
    found: dict[str, Any] = {"run": recipe["name"], "stage": stage.name, "checkpoint": path.name}
    if stage.name == "rl":
        limits = recipe["rl"]["stages"][-1]["limits"]
        found |= {"context_tokens": limits["context_tokens"], "tool_calls": limits["tool_calls"]}
    return found


def _on_disk(folder: EvaluationFolder) -> dict[tuple[str, int], Outcome]:
    """The outcome of every attempt on disk; for a repeated attempt, of the last."""
    return {(each.problem_id, each.sample): outcome(each) for each in folder.attempts()}


async def _make(
    folder: EvaluationFolder, settings: Settings, request: Request, jobs: Sequence[Job], missing: Sequence[Job]
) -> None:
    """Make the attempts of the jobs that are ``missing``."""
    from aster.environments import PythonTool
    from aster.environments.opening import make_environment
    from aster_sandbox import Sandbox

    rollout = request.rollout
    checkpoint = request.root / settings.checkpoint if settings.checkpoint else None
    async with AsyncExitStack() as stack:
        beside_sampler = settings.kind == "local" and settings.engine.samples_here
        environment = make_environment(
            settings.environment, settings.offered_tools, settings.sandbox, settings.demand, beside_sampler=beside_sampler
        )
        await stack.enter_async_context(environment)
        for tool in environment.tools:
            if isinstance(tool, PythonTool):
                sandbox = tool.sandbox
                folder.note(isolation=sandbox.level.value if isinstance(sandbox, Sandbox) else "of the service")
        start = await stack.enter_async_context(
            open_attempts(settings, checkpoint, rollout, environment, folder, _prices(folder))
        )
        with Progress(folder.title, len(jobs), "attempt", done=len(jobs) - len(missing)) as progress:
            await run_attempts(
                missing,
                start,
                folder.add,
                label=folder.title,
                seen=lambda attempt: progress.advance(calls=attempt.tool_calls),
                wave=rollout.slots if rollout.deterministic else None,
                first=len(missing) == len(jobs),
            )
