"""The run folder: what a run leaves behind, enough to resume, report and replay.

    recipe.yaml                     the resolved recipe
    run.json                        versions, machine, the commands that did something
    metrics.jsonl                   one line an optimizer step: {"stage": ..., "step": ..., ...}
    problems.jsonl                  every problem a trajectory belongs to: id, prompt, answer, source, ...
    STAGE/summary.json              written last: its presence means that the stage is finished
    STAGE/trajectories/NAME.jsonl.gz   every trajectory
    STAGE/checkpoints/step_000010/  a transformers folder with optimizer state
    summary.json                    base / sft / rl side by side
    report.html

Files are written beside their place and renamed, so that a killed run leaves whole files alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import yaml
from pydantic import ValidationError

from aster.config.changes import first_change, first_lowered
from aster.config.section import Section
from aster.errors import UserError, one_line
from aster.jsonl import json_line_rows, lines_of, parse_row, unbroken
from aster.types import Problem, Trajectory

PRELIMINARY = ("run.json", "problems.jsonl", "tokenizer")
"""What a run writes before it does anything that takes time."""
TAIL = 1 << 16
"""Bytes read at once in search of a file's last line."""
VERSIONED = ("aster-tir", "torch", "transformers", "tokenizers", "numpy", "sympy", "math-verify")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError under it into a UserError that names ``path`` and says that the run resumes."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written: {error.strerror or error}; free space or make it writable, then give the same "
            "command again: the run resumes"
        ) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path``; on success it replaces ``path`` in one step."""
    partial = path.with_name(f".{path.name}.partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if partial.is_dir():
            shutil.rmtree(partial)
        yield partial
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file; UserError where it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """All of :func:`iterate_json_lines`."""
    return list(iterate_json_lines(path))


def iterate_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a JSON-lines file that grows; a last line cut short by a kill is left out. Missing file: no lines.

    UserError where a whole line is broken."""
    if not path.exists():
        return
    whole = ((f"line {number}", parse_row(line)) for number, line in lines_of(path) if line.endswith(b"\n"))
    for _, record in unbroken(path, whole):
        yield record


def append_line(path: Path, line: str) -> None:
    """Append a line; it is on disk when this returns. After a kill :func:`drop_torn_line` takes away what is left of one."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as stream:
            stream.write(line.encode("ascii") + b"\n")
            stream.flush()
            os.fsync(stream.fileno())


def drop_torn_line(path: Path) -> None:
    """Cut off a last line without its newline, so that the next line appended does not continue it."""
    if not path.exists():
        return
    with open(path, "rb") as stream:
        # From the end, for the file may be large.
        position = size = stream.seek(0, os.SEEK_END)
        whole = 0
        while position and not whole:
            position = max(0, position - TAIL)
            stream.seek(position)
            newline = stream.read(min(TAIL, size - position)).rfind(b"\n")
            whole = position + newline + 1 if newline >= 0 else 0
    if whole != size:
        with writing(path):
            os.truncate(path, whole)


def write_trajectories(path: Path, trajectories: Iterable[Trajectory]) -> None:
    """Write a ``.jsonl.gz`` of trajectories, whole or not at all."""
    with replacing(path) as partial, gzip.open(partial, "wt", compresslevel=1, encoding="utf-8") as stream:
        for trajectory in trajectories:
            # ASCII: a policy or a cell may produce lone surrogates, which UTF-8 cannot hold.
            stream.write(json.dumps(trajectory.to_json(), separators=(",", ":")) + "\n")


def iterate_trajectories(path: Path) -> Iterator[Trajectory]:
    """Read what :func:`write_trajectories` wrote, one by one. UserError where the file is missing or broken."""
    for place, record in unbroken(path, json_line_rows(path)):
        try:
            yield Trajectory.from_json(record)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}, {place}: not a trajectory ({type(error).__name__}: {error})") from None


def read_trajectories(path: Path) -> list[Trajectory]:
    """All of :func:`iterate_trajectories`."""
    return list(iterate_trajectories(path))


class RunFolder:
    """One run's folder, held by one process at a time."""

    def __init__(self, path: Path, recipe: dict[str, Any], lock: IO[str] | None) -> None:
        """``recipe``: as the folder keeps it."""
        self.path = path
        self.recipe = recipe
        self._lock = lock
        self._command: list[str] | None = None
        self._problems = {record["id"] for record in read_json_lines(path / "problems.jsonl")}

    @classmethod
    def open(cls, path: str | Path, recipe: Section, command: list[str] | None = None) -> RunFolder:
        """Create the folder or go on with it. UserError where it belongs to another recipe or another process."""
        path = Path(path)
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            lock = open(path / ".lock", "a")  # noqa: SIM115 - held for the life of the run
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise UserError(f"{path}: another process is running in this folder; wait for it or choose another --run") from None
        try:
            stored = path / "recipe.yaml"
            if _is_blank(path) and _stored(stored) != recipe.model_dump(mode="json"):
                # A first attempt that failed at once, on a wrong path say: the mended recipe may have its folder.
                _clear(path)
            if stored.exists():
                _check_same(path, _stored(stored), recipe)
            else:
                with replacing(stored) as partial:
                    partial.write_text(_dump(recipe.model_dump(mode="json")), encoding="utf-8")
            for name in ("metrics.jsonl", "problems.jsonl"):
                drop_torn_line(path / name)
            run = cls(path, _stored(stored), lock)
            run._command = command if command is not None else sys.argv
            if not (path / "run.json").exists():
                run.begin()
        except BaseException:
            lock.close()
            raise
        return run

    def begin(self) -> None:
        """Keep the command in run.json, with versions and machine. Called before work: a finished run stays as it is."""
        if self._command is None:
            return
        path = self.path / "run.json"
        about = read_json(path) if path.exists() else {"commands": []}
        about |= {"versions": versions(), "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}"}
        about["commands"].append(self._command)
        write_json(path, about)
        self._command = None

    @classmethod
    def load(cls, path: str | Path, recipe: Section | None = None) -> RunFolder:
        """An existing folder, to read. UserError where it is none, or does not belong to ``recipe``."""
        path = Path(path)
        if not (path / "recipe.yaml").exists():
            raise UserError(f"{path}: not a run folder (it has no recipe.yaml)")
        stored = _stored(path / "recipe.yaml")
        if recipe is not None:
            _check_same(path, stored, recipe)
        return cls(path, stored, None)

    def close(self) -> None:
        """Let go of the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- stages

    def summary(self, stage: str) -> dict[str, Any] | None:
        """The summary of a finished stage (``sft``, ``evaluate/base``), or None."""
        path = self.path / stage / "summary.json"
        return read_json(path) if path.exists() else None

    def finish(self, stage: str, summary: dict[str, Any]) -> None:
        """Mark a stage finished."""
        write_json(self.path / stage / "summary.json", summary)

    def reopen(self, stage: str) -> None:
        """Take the mark of :meth:`finish` away: the stage goes on from what it left."""
        path = self.path / stage / "summary.json"
        with writing(path):
            path.unlink(missing_ok=True)

    # -- metrics

    def log(self, stage: str, step: int, **metrics: Any) -> None:
        """Append one line to metrics.jsonl."""
        path = self.path / "metrics.jsonl"
        with writing(path), open(path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps({"stage": stage, "step": step, **metrics}) + "\n")

    def metrics(self, stage: str | None = None) -> list[dict[str, Any]]:
        """The logged lines, of one stage or all."""
        lines = read_json_lines(self.path / "metrics.jsonl")
        return [line for line in lines if stage is None or line["stage"] == stage]

    def forget_metrics(self, stage: str, after_step: int) -> None:
        """Drop a stage's lines past a step: a resumed run writes them again."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return
        kept = [line for line in read_json_lines(path) if line["stage"] != stage or line["step"] <= after_step]
        with replacing(path) as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    # -- trajectories and problems

    def trajectory_file(self, stage: str, name: str) -> Path:
        """Where a stage keeps the trajectories of a step or set."""
        return self.path / stage / "trajectories" / f"{name}.jsonl.gz"

    def remember_problems(self, problems: Iterable[Problem]) -> None:
        """Keep the text of problems that trajectories refer to."""
        path = self.path / "problems.jsonl"
        with writing(path), open(path, "a", encoding="utf-8") as stream:
            for problem in problems:
                if problem.id in self._problems:
                    continue
                self._problems.add(problem.id)
                record: dict[str, Any] = {
                    "id": problem.id,
                    "prompt": problem.prompt,
                    "answer": problem.answer,
                    "source": problem.source,
                }
                if problem.setup:
                    record["setup"] = problem.setup
                if known := {key: problem.metadata[key] for key in ("difficulty", "topic") if key in problem.metadata}:
                    record["metadata"] = known
                stream.write(json.dumps(record) + "\n")

    def problems(self) -> dict[str, dict[str, Any]]:
        """Remembered problems by id."""
        return {record["id"]: record for record in read_json_lines(self.path / "problems.jsonl")}

    # -- checkpoints

    def checkpoints(self, stage: str) -> list[tuple[int, Path]]:
        """The whole checkpoints of a stage as (step, folder), oldest first."""
        folder = self.path / stage / "checkpoints"
        found = [(int(path.name.removeprefix("step_")), path) for path in folder.glob("step_*") if path.is_dir()]
        return sorted(found)

    def checkpoint_path(self, stage: str, step: int) -> Path:
        """Where the checkpoint of a step goes."""
        return self.path / stage / "checkpoints" / f"step_{step:06d}"

    def prune_checkpoints(self, stage: str, keep: int = 2) -> None:
        """Delete all but the newest checkpoints."""
        for _, path in self.checkpoints(stage)[:-keep]:
            _remove(path)

    def forget_checkpoints(self, stage: str, after_step: int) -> None:
        """Delete a stage's checkpoints past a step, and what a kill left of unfinished ones."""
        for step, path in self.checkpoints(stage):
            if step > after_step:
                _remove(path)
        for path in (self.path / stage / "checkpoints").glob(".*.partial"):
            shutil.rmtree(path)


def versions() -> dict[str, str]:
    """Installed versions of what decides a run's numbers, without importing it."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _remove(path: Path) -> None:
    """Delete a folder; a kill on the way does not leave half of it under its name."""
    doomed = path.with_name(f".{path.name}.doomed.partial")
    with writing(path):
        if doomed.exists():
            shutil.rmtree(doomed)
        os.replace(path, doomed)
        shutil.rmtree(doomed)


def _dump(recipe: dict[str, Any]) -> str:
    return yaml.safe_dump(recipe, sort_keys=False)


def _is_blank(path: Path) -> bool:
    """Whether this is a run folder in which nothing has been done yet."""
    stored = path / "recipe.yaml"
    if not stored.exists() or not {entry.name for entry in path.iterdir()} <= {".lock", "recipe.yaml", *PRELIMINARY}:
        return False
    # A recipe that somebody wrote by hand, in a folder that is not ours alone, is never replaced.
    return stored.read_text(encoding="utf-8") == _dump(_stored(stored))


def _clear(path: Path) -> None:
    """Make a blank run folder an empty one."""
    with writing(path):
        for name in PRELIMINARY:
            entry = path / name
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
        (path / "recipe.yaml").unlink()


def _stored(path: Path) -> dict[str, Any]:
    """The recipe that a run folder keeps. UserError where it cannot be read."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: a recipe is a mapping of fields, this is a {type(found).__name__}")
    return found


def _check_same(path: Path, stored: dict[str, Any], recipe: Section) -> None:
    """UserError where a folder's stored recipe is not the given one, but for fields that may change."""
    try:
        old = type(recipe).model_validate(stored)
    except ValidationError as error:
        field = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise UserError(
            f"{path / 'recipe.yaml'}: this version cannot read its field {field} ({error.errors()[0]['msg']}); use the version "
            "in run.json, or choose another --run"
        ) from None
    lowered = first_lowered(old, recipe)
    if lowered is not None:
        field, before, now = lowered
        raise UserError(
            f"{field}: {now} is less than the {before} with which {path} began; it can only be raised: give at least that, or "
            "choose another --run"
        )
    changed = first_change(old, recipe)
    if changed:
        raise UserError(f"{path}: holds a run of another recipe (they differ in {changed}); choose another --run or delete it")
