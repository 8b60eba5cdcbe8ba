"""The stage curate: the recipe's filters on the teacher's trajectories, or on the data set given as the cold start."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from aster.chat import Qwen3Dialect
from aster.config.recipe import Recipe
from aster.data.curation import Chain, Dropped, choose
from aster.data.curation.sources import Source, author_of, remembered
from aster.data.rendering import render, transcribe
from aster.engines.local.loading import load_tokenizer, make_dialect, resolve
from aster.environments.opening import make_environment
from aster.errors import UserError
from aster.report.sets import funnel_table
from aster.run import RunFolder, iterate_trajectories, replacing, write_trajectories
from aster.seeds import derive
from aster.terminal import say
from aster.transcript import Transcript
from aster.types import Problem, Trajectory

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt as text and as tokens. Each is made only when it is called for."""

    text: Callable[[], Transcript]
    tokens: Callable[[], Trajectory]


def run(recipe: Recipe, folder: RunFolder) -> None:
    """Filter the synthesized trajectories, or those of the given data set, and write the ones that are kept. Raises UserError
    where none is left."""
    tokenizer = load_tokenizer(resolve(recipe.model.path, weights=recipe.policy.needs_weights))
    tools = make_environment(recipe.environment, recipe.tools, recipe.sandbox).schemas
    attempts = functools.partial(_attempts, recipe, folder, make_dialect(tokenizer).with_tools(tools))
    chain = Chain(recipe.curate, recipe.cold_start)
    dropped: list[Dropped] = []
    judged = (chain.judge(attempt.text()) for attempt in attempts())
    selection = choose(judged, chain, derive(recipe.seed, "curate"), dropped.append)
    for line in funnel_table(selection.funnel).splitlines():
        say(f"curate: {line}")
    if not selection.kept:
        counts = ", ".join(f"{step.filter}: {step.kept}" for step in selection.funnel)
        raise UserError(f"curate: no trajectory is left ({counts}); synthesize more, or relax the recipe's section curate")
    write_dropped(folder.path / "curate" / "dropped.jsonl", dropped)
    totals = {"tool_calls": 0, "trained_tokens": 0}
    known: dict[str, Problem] = {}

    def kept() -> Iterator[Trajectory]:
        """Reads the attempts a second time, so that they need not all fit into memory."""
        places = set(selection.kept)
        for place, attempt in enumerate(attempts()):
            if place not in places:
                continue
            if recipe.cold_start_set is not None:
                problem = _problem(attempt.text())
                first = known.setdefault(problem.id, problem)
                if (first.prompt, first.answer) != (problem.prompt, problem.answer):
                    # A run identifies problems by their ids, so an attempt would be shown with the prompt of the other problem.
                    raise UserError(
                        f"cold_start: {recipe.cold_start_set}: the id {problem.id!r} is used for two problems or answers; "
                        "give them different ids"
                    )
                folder.remember_problems([problem])
            trajectory = attempt.tokens()
            totals["tool_calls"] += trajectory.tool_calls
            totals["trained_tokens"] += trajectory.sampled_tokens
            yield trajectory

    write_trajectories(folder.trajectory_file("curate", "kept"), kept())
    folder.finish(
        "curate",
        {
            "kept": len(selection.kept),
            "funnel": [dataclasses.asdict(step) for step in selection.funnel],
            "tool_calls": totals["tool_calls"] / len(selection.kept),
            "trained_tokens": totals["trained_tokens"],
        },
    )


def _attempts(recipe: Recipe, folder: RunFolder, dialect: Qwen3Dialect) -> Iterator[Attempt]:
    """The attempts of the data set given as the cold start, or else of the run's synthesis, in order."""
    if recipe.cold_start_set is not None:
        for transcript in Source(Path(recipe.cold_start_set)):
            yield Attempt(functools.partial(_itself, transcript), functools.partial(render, transcript, dialect))
        return
    # Use the problems as they were asked: their file may have changed since.
    problems = folder.problems()
    author = author_of(folder, "synthesize")
    for file in sorted((folder.path / "synthesize" / "trajectories").glob("chunk_*.jsonl.gz")):
        for trajectory in iterate_trajectories(file):
            text = functools.partial(transcribe, trajectory, remembered(problems, trajectory.problem_id), dialect, author)
            yield Attempt(text, functools.partial(_itself, trajectory))


def _itself(value: Value) -> Value:
    return value


def write_dropped(path: Path, dropped: list[Dropped]) -> None:
    """Write the dropped attempts and the filter that dropped each, one per line."""
    with replacing(path) as partial, open(partial, "w", encoding="utf-8") as stream:
        for each in dropped:
            stream.write(json.dumps(dataclasses.asdict(each)) + "\n")


def _problem(transcript: Transcript) -> Problem:
    metadata: dict[str, Any] = dict(transcript.metadata)
    return Problem(transcript.problem_id, transcript.prompt, transcript.expected, transcript.source, transcript.setup, metadata)
