"""Where transcripts come from: sets, and run folders, whose trajectories are read back as text.

No torch: a run folder keeps its tokenizer as a file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aster.chat import Qwen3Dialect
from aster.config import ColdStart, cold_start_name, read_cold_start
from aster.data.rendering import transcribe
from aster.data.sets import ENDINGS, parse_line, read_lines
from aster.data.text import run_tokenizer
from aster.errors import UserError
from aster.run import RunFolder, iterate_trajectories
from aster.transcript import Transcript
from aster.types import Problem, Trajectory

STAGES = ("curate", "synthesize", "evaluate/rl")
"""Whose trajectories stand for a run folder: of the first of these that has some."""


class Source:
    """The transcripts behind one path, read one by one as often as they are asked for.

    ``path`` is a set (``.jsonl`` or ``.jsonl.gz``), a run folder (its curated set, else what was synthesized), or a stage's
    folder in one (``RUN/synthesize``, ``RUN/evaluate/rl``). UserError where it is none of them.
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
        """Each transcript as its line of a set, with the words that say where it stands."""
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
        # Attempts of an evaluation that failed are made again, and both are on disk.
        last = {(t.problem_id, t.sample): file for file in self.files for t in iterate_trajectories(file)}
        for file in self.files:
            for trajectory in iterate_trajectories(file):
                if last[trajectory.problem_id, trajectory.sample] != file:
                    continue
                problem = remembered(problems, trajectory.problem_id)
                yield transcribe(trajectory, problem, dialects.of(trajectory), author)


def remembered(problems: Mapping[str, Mapping[str, Any]], problem_id: str) -> Problem:
    """A problem as the run folder remembers it (``RunFolder.problems``); of one that it does not, the id alone."""
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
    """Who wrote a stage's trajectories: the teacher of the cold start, or the run's own model. They do not say it."""
    recipe = run.recipe
    path, cold_start, synthesis = str(recipe["model"]["path"]), read_cold_start(recipe["cold_start"]), recipe["synthesize"]
    if stage not in ("synthesize", "curate"):
        return path
    if isinstance(cold_start, ColdStart) and synthesis["teacher"] == "policy":
        return path
    if isinstance(cold_start, ColdStart) and synthesis["teacher"] == "endpoint":
        # The recipe need not name the model where the server has only one.
        return str(synthesis["model"] or (run.summary("synthesize") or {}).get("author", ""))
    return cold_start_name(cold_start)


def _in_run(path: Path) -> tuple[RunFolder, str, list[Path]]:
    """The run folder at or above a path, the stage in it and its files of trajectories."""
    top = next((folder for folder in (path, *path.absolute().parents[:3]) if (folder / "recipe.yaml").exists()), None)
    if top is None:
        raise UserError(f"{path}: not a run folder (it has no recipe.yaml), nor a stage's folder in one")
    stages = STAGES if top is path else (str(path.absolute().relative_to(top.absolute())),)
    for stage in stages:
        files = sorted((top / stage).glob("trajectories/*.jsonl.gz")) or sorted((top / stage).glob("attempts/*.jsonl.gz"))
        if files:
            return RunFolder.load(top), stage, files
    under_way = top / "synthesize" / "transcripts.jsonl"
    hint = f"; the attempts of its teacher so far are the set {under_way}" if under_way.exists() else ""
    places = ", ".join(f"{stage}/trajectories" for stage in stages)
    raise UserError(f"{path}: no trajectories in it (looked in {places}){hint}")


class _Dialects:
    """The run's dialect; whether its headers open the thinking is seen from the trajectories."""

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
    """A run folder's tokenizer file in the form in which a dialect asks for it."""

    def __init__(self, run: RunFolder) -> None:
        self.tokenizer = run_tokenizer(run)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(
        self,
        token_ids: list[int],
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = False,  # noqa: ARG002 - what transformers' tokenizers take
    ) -> str:
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens))

    def convert_tokens_to_ids(self, tokens: str) -> int | None:
        found: int | None = self.tokenizer.token_to_id(tokens)
        return found
