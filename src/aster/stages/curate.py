"""Curate: the recipe's chain of filters on the teacher's trajectories, or on the set that is given as the cold start."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aster.chat.transcripts import render, transcribe
from aster.core.errors import UserError
from aster.core.recipe import Recipe, cold_start_name
from aster.core.run import RunFolder, iterate_trajectories, replacing, write_trajectories
from aster.core.seeds import derive
from aster.core.transcript import Transcript
from aster.core.types import Problem, Trajectory
from aster.curation import Chain, Dropped, choose
from aster.curation.sources import Source
from aster.policy.loading import load_tokenizer, make_dialect, resolve
from aster.stages.common import teaching_problems

Attempt = tuple[Transcript, Callable[[], Trajectory]]
"""An attempt as text, and a way to its tokens."""


def run(recipe: Recipe, folder: RunFolder) -> None:
    """Filter the synthesized trajectories, or render the given set."""
    tokenizer = load_tokenizer(resolve(recipe.model.path, weights=recipe.policy.needs_weights))
    dialect = make_dialect(tokenizer)

    def attempts() -> Iterator[Attempt]:
        """In two passes over the same attempts, not all of which need fit into memory."""
        if recipe.cold_start_set is not None:
            for transcript in Source(Path(recipe.cold_start_set)):
                # What is asked for again is rendered when it is kept.
                yield transcript, lambda transcript=transcript: render(transcript, dialect)  # type: ignore[misc]
            return
        problems = {problem.id: problem for problem in teaching_problems(recipe, recipe.synthesize.problems)}
        files = sorted((folder.path / "synthesize" / "trajectories").glob("chunk_*.jsonl.gz"))
        author = recipe.model.path if recipe.synthesize.teacher == "policy" else cold_start_name(recipe.cold_start)
        for file in files:
            for trajectory in iterate_trajectories(file):
                problem = problems[trajectory.problem_id]
                yield transcribe(trajectory, problem, dialect, author), lambda trajectory=trajectory: trajectory  # type: ignore[misc]

    chain = Chain(recipe.curate, recipe.cold_start)
    dropped: list[Dropped] = []
    selection = choose((chain.judge(each) for each, _ in attempts()), chain, derive(recipe.seed, "curate"), dropped.append)
    if not selection.kept:
        counts = ", ".join(f"{step.filter}: {step.kept}" for step in selection.funnel)
        raise UserError(f"curate: no trajectory is left ({counts}); synthesize more, or widen the recipe's section curate")
    write_dropped(folder.path / "curate" / "dropped.jsonl", dropped)
    totals = {"tool_calls": 0, "trained_tokens": 0}

    def kept() -> Iterator[Trajectory]:
        places = set(selection.kept)
        for place, (transcript, tokens) in enumerate(attempts()):
            if place not in places:
                continue
            if recipe.cold_start_set is not None:
                folder.remember_problems([_problem(transcript)])
            trajectory = tokens()
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


def write_dropped(path: Path, dropped: list[Dropped]) -> None:
    """Write who was dropped by which filter, one a line."""
    with replacing(path) as partial, open(partial, "w", encoding="utf-8") as stream:
        for each in dropped:
            stream.write(json.dumps(dataclasses.asdict(each)) + "\n")


def _problem(transcript: Transcript) -> Problem:
    metadata: dict[str, Any] = dict(transcript.metadata)
    return Problem(transcript.problem_id, transcript.prompt, transcript.expected, transcript.source, transcript.setup, metadata)
