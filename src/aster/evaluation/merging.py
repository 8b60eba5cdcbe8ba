"""Joins shards of one evaluation, made on several machines, into one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aster.config.changes import first_difference
from aster.errors import UserError
from aster.evaluation.folder import EvaluationFolder
from aster.evaluation.run import conclude, jobs_of
from aster.evaluation.settings import parse_shard
from aster.rollout.attempts import PART
from aster.run import replacing
from aster.types import Problem


def merge(target: Path, shards: Sequence[Path]) -> dict[str, Any]:
    """Join finished shards into a new folder and return its summary.

    Raises UserError where a shard is not finished, its settings or problems differ from the others, an attempt is in two
    shards, or an attempt is missing."""
    folders = [EvaluationFolder.load(path) for path in shards]
    first = folders[0]
    problems = [
        Problem(record["id"], record["prompt"], record["answer"], record["source"]) for record in first.problems().values()
    ]
    for other in folders[1:]:
        one, two = (folder.settings.model_copy(update={"shard": ""}).identity() for folder in (first, other))
        changed = first_difference(one, two)
        if changed:
            raise UserError(f"{other.path}: not a shard of the same evaluation as {first.path}: they differ in {changed}")
        if first.problems() != other.problems():
            raise UserError(f"{other.path}: not a shard of the same evaluation as {first.path}: their problems differ")
    _check_shards(folders)
    settings = first.settings.model_copy(update={"shard": "1/1"})
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: not an empty folder; merge into a new one")
    jobs = jobs_of(settings, problems)
    expected = {(job.problem.id, job.sample) for job in jobs}
    seen: dict[tuple[str, int], Path] = {}
    for folder in folders:
        for each in folder.outcomes():
            key = each.problem_id, each.sample
            if key in seen:
                raise UserError(f"{folder.path}: sample {key[1]} of problem {key[0]} is also in {seen[key]}; leave one out")
            seen[key] = folder.path
    missing = sorted(expected - seen.keys())
    if missing:
        raise UserError(
            f"{len(missing)} attempts are in no shard, the first is sample {missing[0][1]} of problem {missing[0][0]}; "
            "name all shards"
        )
    with EvaluationFolder.open(target, settings) as merged:
        merged.begin(problems, {**first.about()["notes"], "shards": [str(path) for path in shards]})
        for folder in folders:
            attempts = folder.latest()
            while part := list(itertools.islice(attempts, PART)):
                merged.add(part)
        if (first.path / "tokenizer").exists():
            import shutil

            with replacing(target / "tokenizer") as partial:
                shutil.copytree(first.path / "tokenizer", partial)
        return conclude(merged, jobs)


def _check_shards(folders: Sequence[EvaluationFolder]) -> None:
    """Raise UserError where the shards have different totals, or one is given twice or missing."""
    given: dict[int, Path] = {}
    _, parts = parse_shard(folders[0].settings.shard)
    for folder in folders:
        part, of = parse_shard(folder.settings.shard)
        if of != parts:
            raise UserError(f"{folder.path}: it is shard {folder.settings.shard}, but {folders[0].path} is one of {parts}")
        if part in given:
            raise UserError(f"{folder.path}: {given[part]} is shard {part}/{parts} too; leave one out")
        given[part] = folder.path
    missing = [f"{part}/{parts}" for part in range(1, parts + 1) if part not in given]
    if missing:
        raise UserError(f"shards {', '.join(missing)} are missing; name all {parts}")
