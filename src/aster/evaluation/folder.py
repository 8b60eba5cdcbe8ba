"""The folder of one evaluation.

    evaluation.json          settings, versions, machine, commands, notes (label, prices)
    problems.jsonl           every problem as it was asked
    tokenizer/               the policy's tokenizer, where attempts are tokens
    attempts/part_00001.jsonl.gz  every attempt, in the order of finishing; the last of a repeated one counts
    outcomes.jsonl           one line per attempt, without tokens, for tables, curves and comparisons
    summary.json             written last; if it exists, the evaluation is finished
    report.html

Files are written under a temporary name and renamed, as in a run folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from aster.config.changes import first_difference
from aster.data.sets import iterate_set, latest, write_set
from aster.errors import UserError
from aster.evaluation.outcomes import Outcome
from aster.evaluation.settings import Settings
from aster.rollout.attempts import Attempt, next_part, part_files
from aster.run import (
    iterate_trajectories,
    read_json,
    read_json_lines,
    replacing,
    versions,
    write_json,
    write_trajectories,
    writing,
)
from aster.transcript import Transcript
from aster.types import Problem, Trajectory


class EvaluationFolder:
    """The folder of one evaluation. Only one process at a time can have it open for writing."""

    def __init__(self, path: Path, settings: Settings, lock: IO[str] | None = None) -> None:
        self.path, self.settings = path, settings
        self._lock = lock

    @classmethod
    def open(cls, path: Path, settings: Settings) -> EvaluationFolder:
        """Create the folder, or open it to resume. Raises UserError where it contains something else, or another process uses
        it."""
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            # Names that begin with a dot are ours: the lock, and files that a killed process left.
            if not (path / "evaluation.json").exists() and any(not each.name.startswith(".") for each in path.iterdir()):
                raise UserError(f"{path}: contains files that are not an evaluation; choose another folder, or delete it")
            lock = open(path / ".lock", "a")  # noqa: SIM115 - held until close
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{path}: another process is working in this folder; wait for it or choose another --out"
                ) from None
            folder = cls(path, settings, lock)
            if folder.parts():
                folder._check()
        except BaseException:
            lock.close()
            raise
        return folder

    @classmethod
    def load(cls, path: Path) -> EvaluationFolder:
        """Open a folder for reading. Raises UserError where it is not that of an evaluation."""
        if not (path / "evaluation.json").exists():
            refuse_former_layout(path)
            raise UserError(f"{path}: not the folder of an evaluation: it has no evaluation.json; give a folder that has one")
        stored = read_json(path / "evaluation.json")
        try:
            return cls(path, Settings.model_validate(stored["settings"]))
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{path / 'evaluation.json'}: its settings cannot be read: {str(error).splitlines()[0]}") from None

    def _check(self) -> None:
        stored = EvaluationFolder.load(self.path).settings
        changed = first_difference(stored.identity(), self.settings.identity())
        if changed:
            old, new = (_at(each.identity(), changed) for each in (stored, self.settings))
            raise UserError(
                f"{self.path}: holds an evaluation with other settings: {changed} is {old!r} there and {new!r} here; "
                "choose another --out, or delete the folder"
            )

    def close(self) -> None:
        """Release the folder's lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> EvaluationFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- what it is

    def begin(self, problems: Sequence[Problem], notes: dict[str, Any]) -> None:
        """Write settings, versions, machine, command and problems. ``notes``: data that does not affect the results."""
        path = self.path / "evaluation.json"
        about = read_json(path) if path.exists() and self.parts() else {"commands": []}
        about |= {
            "settings": self.settings.model_dump(mode="json"),
            "notes": {**about.get("notes", {}), **{key: value for key, value in notes.items() if value is not None}},
            "versions": versions(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        }
        about["commands"].append(sys.argv)
        write_json(path, about)
        with replacing(self.path / "problems.jsonl") as partial, open(partial, "w", encoding="utf-8") as stream:
            for each in problems:
                record = {"id": each.id, "prompt": each.prompt, "answer": each.answer, "source": each.source}
                stream.write(json.dumps(record) + "\n")

    def note(self, **notes: Any) -> None:
        """Add notes to evaluation.json."""
        about = self.about()
        write_json(self.path / "evaluation.json", {**about, "notes": {**about["notes"], **notes}})

    def about(self) -> dict[str, Any]:
        """The content of evaluation.json."""
        found: dict[str, Any] = read_json(self.path / "evaluation.json")
        return found

    @property
    def title(self) -> str:
        """The start of messages about the evaluation."""
        label = self.about()["notes"].get("label")
        return f"evaluate {label}" if label else "evaluate"

    def problems(self) -> dict[str, dict[str, str]]:
        """The problems by id."""
        return {record["id"]: record for record in read_json_lines(self.path / "problems.jsonl")}

    def keep_tokenizer(self, tokenizer: Any) -> None:
        """Save the policy's tokenizer, which turns tokens into text."""
        if not (self.path / "tokenizer").exists():
            with replacing(self.path / "tokenizer") as partial:
                tokenizer.save_pretrained(partial)

    # -- attempts

    def trajectory_file(self, stage: str, name: str) -> Path:  # noqa: ARG002 - as a run folder has it; there is one stage
        """The path of a file of attempts."""
        return self.path / "attempts" / f"{name}.jsonl.gz"

    def parts(self) -> list[Path]:
        """The files of attempts, oldest first."""
        return part_files(self.path / "attempts")

    def add(self, attempts: Sequence[Attempt]) -> None:
        """Write attempts to a new file."""
        path = next_part(self.path / "attempts")
        texts = [each for each in attempts if isinstance(each, Transcript)]
        if texts:
            write_set(path, texts)
        else:
            write_trajectories(path, [each for each in attempts if isinstance(each, Trajectory)])

    def attempts(self) -> Iterator[Attempt]:
        """All attempts on disk, one by one, in the order of finishing, repeated ones included."""
        for path in self.parts():
            yield from iterate_set(path) if self.settings.kind == "chat" else iterate_trajectories(path)

    def latest(self) -> Iterator[Attempt]:
        """The attempts that count, one by one: of a repeated attempt only the last."""
        return latest(self.attempts)

    # -- results

    def finish(self, outcomes: Sequence[Outcome], summary: dict[str, Any]) -> None:
        """Write the outcomes, and the summary last."""
        with replacing(self.path / "outcomes.jsonl") as partial, open(partial, "w", encoding="utf-8") as stream:
            for each in outcomes:
                stream.write(json.dumps(each.to_json()) + "\n")
        write_json(self.path / "summary.json", summary)

    def unfinish(self) -> None:
        """Mark a finished evaluation as unfinished, so that it can continue."""
        (self.path / "summary.json").unlink(missing_ok=True)

    def summary(self) -> dict[str, Any] | None:
        """The summary, or None where the evaluation is not finished."""
        path = self.path / "summary.json"
        return read_json(path) if path.exists() else None

    def outcomes(self) -> list[Outcome]:
        """The outcomes of a finished evaluation. Raises UserError where it is not finished."""
        if self.summary() is None:
            raise UserError(f"{self.path}: this evaluation is not finished; give its command again")
        return [Outcome.from_json(record) for record in read_json_lines(self.path / "outcomes.jsonl")]


def refuse_former_layout(path: Path) -> None:
    """Raise UserError where an earlier version made this evaluation of a run: it has trajectories, but no settings and no
    outcomes."""
    stage = path.absolute().parent
    if stage.name == "evaluate" and (path / "trajectories").is_dir():
        raise UserError(
            f"{path}: an earlier version made this evaluation and kept no settings and outcomes; delete {stage} and give the "
            "run's command again, which repeats its evaluations"
        )


def _at(value: Any, path: str) -> Any:
    for part in path.split("."):
        value = value[int(part)] if isinstance(value, list) else value.get(part) if isinstance(value, dict) else None
    return value
