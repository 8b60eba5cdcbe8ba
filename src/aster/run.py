"""The run folder. It holds everything needed to resume, report and replay a run.

    recipe.yaml                     the recipe, with all defaults and overrides
    run.json                        versions, machine, and the commands that did work
    metrics.jsonl                   one line per step: {"stage": ..., "step": ..., ...}
    problems.jsonl                  every problem that has a trajectory: id, prompt, answer, source, ...
    STAGE/summary.json              written last; if it exists, the stage is finished
    STAGE/trajectories/NAME.jsonl.gz   every trajectory
    STAGE/checkpoints/step_000010/  a transformers folder with the optimizer's state
    summary.json                    the results of base, sft and rl
    report.html

Files are written under a temporary name and renamed, so that a killed run leaves only whole files.
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
"""The files that a run writes before any work that takes time."""
TAIL = 1 << 16
"""Bytes read at once when searching for a file's last line."""
VERSIONED = ("aster-tir", "torch", "transformers", "tokenizers", "numpy", "sympy", "math-verify")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError in the with block into a UserError that names ``path`` and says that the run can be resumed."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written: {error.strerror or error}; free space or make it writable, then give the same "
            "command again: the run resumes"
        ) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to ``path``. If the with block succeeds, it replaces ``path`` in one step."""
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
    """Write a JSON file. A failed or killed write leaves the old file as it was."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises UserError where it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of :func:`iterate_json_lines` as a list."""
    return list(iterate_json_lines(path))


def iterate_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSON-lines file. An incomplete last line, which a killed run leaves, is skipped. A missing file has no
    records. Raises UserError where a complete line is broken."""
    if not path.exists():
        return
    whole = ((f"line {number}", parse_row(line)) for number, line in lines_of(path) if line.endswith(b"\n"))
    for _, record in unbroken(path, whole):
        yield record


def append_line(path: Path, line: str) -> None:
    """Append a line; it is on disk when this returns. After a kill, :func:`drop_torn_line` removes an incomplete line."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as stream:
            stream.write(line.encode("ascii") + b"\n")
            stream.flush()
            os.fsync(stream.fileno())


def drop_torn_line(path: Path) -> None:
    """Remove a last line that has no newline, so that the next line appended does not continue it."""
    if not path.exists():
        return
    with open(path, "rb") as stream:
        # Search from the end, because the file may be large.
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
    """Write trajectories to a ``.jsonl.gz`` file. A failed or killed write leaves no partial file under that name."""
    with replacing(path) as partial, gzip.open(partial, "wt", compresslevel=1, encoding="utf-8") as stream:
        for trajectory in trajectories:
            # ASCII, because a policy or a cell may produce lone surrogates, which UTF-8 cannot encode.
            stream.write(json.dumps(trajectory.to_json(), separators=(",", ":")) + "\n")


def iterate_trajectories(path: Path) -> Iterator[Trajectory]:
    """Read the trajectories of a ``.jsonl.gz`` file, one by one. Raises UserError where it is missing or broken."""
    for place, record in unbroken(path, json_line_rows(path)):
        try:
            yield Trajectory.from_json(record)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}, {place}: not a trajectory ({type(error).__name__}: {error})") from None


def read_trajectories(path: Path) -> list[Trajectory]:
    """The trajectories of :func:`iterate_trajectories` as a list."""
    return list(iterate_trajectories(path))


class RunFolder:
    """The folder of one run. Only one process at a time can have it open for writing."""

    def __init__(self, path: Path, recipe: dict[str, Any], lock: IO[str] | None) -> None:
        """``recipe``: the recipe stored in the folder. ``lock``: the locked file, or None for reading."""
        self.path = path
        self.recipe = recipe
        self._lock = lock
        self._command: list[str] | None = None
        self._problems = {record["id"] for record in read_json_lines(path / "problems.jsonl")}

    @classmethod
    def open(cls, path: str | Path, recipe: Section, command: list[str] | None = None) -> RunFolder:
        """Create the folder, or open it to resume its run. Raises UserError where another recipe or process has it."""
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
                # The first attempt failed at once, for instance on a wrong path. The corrected recipe may use its folder.
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
        """Write the command, versions and machine to run.json. Called only before work: a finished run is not changed."""
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
        """Open an existing folder for reading. Raises UserError where it is not a run folder, or does not belong to
        ``recipe``."""
        path = Path(path)
        if not (path / "recipe.yaml").exists():
            raise UserError(f"{path}: not a run folder (it has no recipe.yaml)")
        stored = _stored(path / "recipe.yaml")
        if recipe is not None:
            _check_same(path, stored, recipe)
        return cls(path, stored, None)

    def close(self) -> None:
        """Release the folder's lock."""
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
        """Remove the mark of :meth:`finish`, so that the stage continues from its last state."""
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
        """The lines of metrics.jsonl, for one stage or for all."""
        lines = read_json_lines(self.path / "metrics.jsonl")
        return [line for line in lines if stage is None or line["stage"] == stage]

    def forget_metrics(self, stage: str, after_step: int) -> None:
        """Delete a stage's lines after a step, because a resumed run writes them again."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return
        kept = [line for line in read_json_lines(path) if line["stage"] != stage or line["step"] <= after_step]
        with replacing(path) as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    # -- trajectories and problems

    def trajectory_file(self, stage: str, name: str) -> Path:
        """The path of a stage's trajectories; ``name`` is a step or a set."""
        return self.path / stage / "trajectories" / f"{name}.jsonl.gz"

    def remember_problems(self, problems: Iterable[Problem]) -> None:
        """Add the problems that are not in problems.jsonl yet."""
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
        """The problems of problems.jsonl by id."""
        return {record["id"]: record for record in read_json_lines(self.path / "problems.jsonl")}

    # -- checkpoints

    def checkpoints(self, stage: str) -> list[tuple[int, Path]]:
        """The complete checkpoints of a stage as (step, folder), oldest first."""
        folder = self.path / stage / "checkpoints"
        found = [(int(path.name.removeprefix("step_")), path) for path in folder.glob("step_*") if path.is_dir()]
        return sorted(found)

    def checkpoint_path(self, stage: str, step: int) -> Path:
        """The folder for the checkpoint of a step."""
        return self.path / stage / "checkpoints" / f"step_{step:06d}"

    def prune_checkpoints(self, stage: str, keep: int = 2) -> None:
        """Delete all checkpoints of a stage except the newest ``keep``."""
        for _, path in self.checkpoints(stage)[:-keep]:
            _remove(path)

    def forget_checkpoints(self, stage: str, after_step: int) -> None:
        """Delete a stage's checkpoints after a step, and incomplete ones that a killed run left."""
        for step, path in self.checkpoints(stage):
            if step > after_step:
                _remove(path)
        for path in (self.path / stage / "checkpoints").glob(".*.partial"):
            shutil.rmtree(path)


def versions() -> dict[str, str]:
    """Installed versions of Python and of the packages that affect a run's results. Does not import the packages."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _remove(path: Path) -> None:
    """Delete a folder. It is renamed first, so that a kill never leaves half of it under its own name."""
    doomed = path.with_name(f".{path.name}.doomed.partial")
    with writing(path):
        if doomed.exists():
            shutil.rmtree(doomed)
        os.replace(path, doomed)
        shutil.rmtree(doomed)


def _dump(recipe: dict[str, Any]) -> str:
    return yaml.safe_dump(recipe, sort_keys=False)


def _is_blank(path: Path) -> bool:
    """Whether this is a run folder in which no work has been done yet."""
    stored = path / "recipe.yaml"
    if not stored.exists() or not {entry.name for entry in path.iterdir()} <= {".lock", "recipe.yaml", *PRELIMINARY}:
        return False
    # Never replace a recipe that somebody wrote by hand: it differs from what _dump writes.
    return stored.read_text(encoding="utf-8") == _dump(_stored(stored))


def _clear(path: Path) -> None:
    """Delete the files of a blank run folder."""
    with writing(path):
        for name in PRELIMINARY:
            entry = path / name
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
        (path / "recipe.yaml").unlink()


def _stored(path: Path) -> dict[str, Any]:
    """The recipe stored in a run folder. Raises UserError where it cannot be read."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: a recipe must be a mapping of fields, but this is a {type(found).__name__}")
    return found


def _check_same(path: Path, stored: dict[str, Any], recipe: Section) -> None:
    """Raise UserError where the stored recipe differs from the given one in a field that may not change."""
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
            f"{field}: {now} is less than the {before} that {path} began with, but can only be raised; give at least that, or "
            "choose another --run"
        )
    changed = first_change(old, recipe)
    if changed:
        raise UserError(
            f"{path}: holds a run of another recipe (they differ in {changed}); choose another --run, or delete the folder"
        )
