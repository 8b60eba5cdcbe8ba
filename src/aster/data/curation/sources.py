"""Read transcripts from sets and from run folders.

Trajectories of a run folder are decoded with the tokenizer file that it keeps, so this needs no torch.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aster.chat import Qwen3Dialect
from aster.config import ColdStart, cold_start_name, read_cold_start
from aster.data.rendering import transcribe
from aster.data.sets import ENDINGS, latest, parse_line, read_lines
from aster.data.text import run_tokenizer
from aster.errors import UserError
from aster.run import RunFolder, iterate_trajectories
from aster.transcript import Transcript
from aster.types import Problem, Trajectory

STAGES = ("curate", "synthesize", "evaluate/rl")
"""A run folder stands for the trajectories of the first of these stages that has any."""


class Source:
    """The transcripts under one path. Each iteration reads them again, one at a time.

    ``path`` is a set (``.jsonl`` or ``.jsonl.gz``), a run folder (the trajectories of the first stage of :data:`STAGES` that
    has any), or the folder of one stage (``RUN/synthesize``, ``RUN/evaluate/rl``). Raises UserError for anything else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run: RunFolder | None = None
        self.stage = ""
        self.files: list[Path] = []
        if path.is_dir():
            self.run, self.stage, self.files = _in_run(path)
        elif not path.name.endswith(ENDINGS):
            raise UserError(f"{path}: not a set: its name must end in {' or '.join(ENDINGS)}, or it must be a run folder")
        elif not path.is_file():
            raise UserError(f"{path}: no such set")

    def lines(self) -> Iterator[tuple[str, bytes]]:
        """Yield each transcript as a line of a set, with its place in words (``FILE, line N``)."""
        if self.run is None:
            yield from read_lines(self.path)
            return
        for number, transcript in enumerate(self, start=1):
            yield f"{self.path}, trajectory {number}", json.dumps(transcript.to_json(), separators=(",", ":")).encode() + b"\n"

    def __iter__(self) -> Iterator[Transcript]:
        if self.run is None:
            for place, line in read_lines(self.path):
                yield parse_line(place, line)
            return
        problems = self.run.problems()
        dialects = _Dialects(self.run)
        author = author_of(self.run, self.stage)
        # In parts, an attempt that failed and was made again is there twice. RL makes new attempts at a problem in each step.
        repeated = any(file.name.startswith("part_") for file in self.files)
        for trajectory in latest(self._trajectories) if repeated else self._trajectories():
            problem = remembered(problems, trajectory.problem_id)
            yield transcribe(trajectory, problem, dialects.of(trajectory), author)

    def _trajectories(self) -> Iterator[Trajectory]:
        return itertools.chain.from_iterable(map(iterate_trajectories, self.files))


def remembered(problems: Mapping[str, Mapping[str, Any]], problem_id: str) -> Problem:
    """Return a problem from a run folder's records (``RunFolder.problems``). An unknown problem has only its id."""
    record = problems.get(problem_id) or {}
    return Problem(
        problem_id,
        record.get("prompt", ""),
        record.get("answer", ""),
        record.get("source", ""),
        record.get("setup", ""),
        record.get("metadata", {}),
    )


def author_of(run: RunFolder, stage: str) -> str:
    """Return who wrote a stage's trajectories (they do not record it): the teacher of the cold start, or the run's model."""
    recipe = run.recipe
    path, cold_start, synthesis = str(recipe["model"]["path"]), read_cold_start(recipe["cold_start"]), recipe["synthesize"]
    if stage not in ("synthesize", "curate"):
        return path
    if isinstance(cold_start, ColdStart) and synthesis["teacher"] == "policy":
        return path
    if isinstance(cold_start, ColdStart) and synthesis["teacher"] == "endpoint":
        # The recipe may omit the model's name if the server has only one.
        return str(synthesis["model"] or (run.summary("synthesize") or {}).get("author", ""))
    return cold_start_name(cold_start)


def _in_run(path: Path) -> tuple[RunFolder, str, list[Path]]:
    """Return the run folder at or above a path, the stage, and the stage's trajectory files."""
    top = next((folder for folder in (path, *path.absolute().parents[:3]) if (folder / "recipe.yaml").exists()), None)
    if top is None:
        raise UserError(f"{path}: not a run folder (it has no recipe.yaml) and not the folder of a stage in one")
    stages = STAGES if top is path else (str(path.absolute().relative_to(top.absolute())),)
    for stage in stages:
        files = sorted((top / stage).glob("trajectories/*.jsonl.gz")) or sorted((top / stage).glob("attempts/*.jsonl.gz"))
        if files:
            return RunFolder.load(top), stage, files
    under_way = top / "synthesize" / "transcripts.jsonl"
    hint = f"; its teacher's attempts so far are in the set {under_way}" if under_way.exists() else ""
    places = ", ".join(f"{stage}/trajectories" for stage in stages)
    raise UserError(f"{path}: no trajectories in it (looked in {places}){hint}")


class _Dialects:
    """The run's dialect. The end of each trajectory's prompt shows whether the header opens ``<think>``."""

    def __init__(self, run: RunFolder) -> None:
        self.tokenizer = _FileTokenizer(run)
        self.known: dict[bool, Qwen3Dialect] = {}

    def of(self, trajectory: Trajectory) -> Qwen3Dialect:
        prompt = trajectory.turns[0] if trajectory.turns else None
        ending = self.tokenizer.decode(trajectory.token_ids[: prompt.end][-8:]) if prompt is not None else ""
        opened = ending.endswith("<think>\n")
        if opened not in self.known:
            self.known[opened] = Qwen3Dialect(self.tokenizer, open_thinking=opened)
        return self.known[opened]


class _FileTokenizer:
    """Gives a run folder's tokenizer file the interface that a dialect needs."""

    def __init__(self, run: RunFolder) -> None:
        self.tokenizer = run_tokenizer(run)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(
        self,
        token_ids: list[int],
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = False,  # noqa: ARG002 - part of the interface of transformers' tokenizers
    ) -> str:
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens))

    def convert_tokens_to_ids(self, tokens: str) -> int | None:
        found: int | None = self.tokenizer.token_to_id(tokens)
        return found
