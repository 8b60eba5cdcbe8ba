"""What the tests of stages share: a recipe that takes seconds, real processes that start at once, and ways to kill them.

Importing torch takes seconds, so the commands run in children that a fork server with everything imported forks. They are real
processes of the real command line; a few tests start ``python -m aster`` itself.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import yaml

from aster.config.file import validate_recipe
from aster.config.recipe import Recipe
from aster.run import RunFolder, read_trajectories

LIMITS = {"context_tokens": 160, "turn_tokens": 48, "tool_calls": 2, "turns": 3}
SETTINGS: dict[str, Any] = {
    "name": "tiny",
    "model": {"threads": 1},
    "problems": {"teach": "lab", "levels": [1, 1]},
    "sandbox": {"preload": []},
    "rollout": {"slots": 16, "deterministic": True},
    "synthesize": {"problems": 96, "limits": {**LIMITS, "context_tokens": 400}},
    "curate": {"dense_calls": 1, "size": 16},
    "sft": {
        "stages": [
            {"epochs": 2, "batch": 8, "learning_rate": 1e-5},
            {"epochs": 1, "batch": 8, "learning_rate": 1e-5},
        ],
        "warmup_steps": 1,
    },
    "rl": {
        "prompts": 3,
        "samples": 4,
        "learning_rate": 1e-3,
        "stages": [{"steps": 3, "limits": LIMITS}, {"steps": 2, "drop_solved": True, "limits": LIMITS}],
    },
    "evaluate": {"problems": 3, "k": 2, "temperature": 1.0, "top_p": 1.0, "limits": LIMITS},
}
PRELOAD = (
    "torch",
    "transformers.models.qwen3.modeling_qwen3",
    "aster.cli",
    "aster.engines.local.engine",
    "aster.report.page",
    "aster.pipeline",
    "aster.curate",
    "aster.evaluate",
    "aster.rl",
    "aster.sft",
    "aster.synthesize",
)


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``base`` with dotted ``changes``."""
    result = json.loads(json.dumps(base))  # not deepcopy, which would keep sections shared that are one object in ``base``
    for key, value in changes.items():
        node = result
        *parts, last = key.split(".")
        for part in parts:
            node = node.setdefault(part, {})
        node[last] = value
    return result


@dataclass(frozen=True)
class Tiny:
    """The recipe of seconds, with its model and problems."""

    settings: dict[str, Any]

    def recipe(self, changes: dict[str, Any] | None = None) -> Recipe:
        """As a recipe; ``changes`` by dotted field."""
        return validate_recipe(merged(self.settings, changes or {}), "test")

    def file(self, path: Path, changes: dict[str, Any] | None = None) -> Path:
        """As a file."""
        path.write_text(yaml.safe_dump(merged(self.settings, changes or {})))
        return path


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str


def preload() -> None:
    """Tell the fork server what to import. Python has one a process, and whoever starts it first settles what it has imported:
    the package's own pools use it too, so this comes before every test."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(PRELOAD))


def _child(arguments: list[str], out: Path, err: Path, constants: Mapping[str, Any]) -> None:
    for path, number in ((out, 1), (err, 2)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
        os.close(descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name, value in constants.items():
        module, constant = name.rsplit(".", 1)
        setattr(importlib.import_module(module), constant, value)
    from aster.cli import main

    sys.argv = ["aster", *arguments]
    main(arguments)


class Commands:
    """Runs ``aster`` commands in forked processes."""

    def __init__(self, folder: Path, constants: Mapping[str, Any] | None = None) -> None:
        """``constants``: values of the package's constants, by dotted name, in every command."""
        self.folder = folder
        self.constants = constants or {}
        self.context = multiprocessing.get_context("forkserver")
        self.count = 0

    def start(self, *arguments: str | Path, constants: Mapping[str, Any] | None = None) -> tuple[BaseProcess, Path, Path]:
        """Start a command; returns the process and the files of its stdout and stderr."""
        self.count += 1
        out, err = self.folder / f"{self.count}.out", self.folder / f"{self.count}.err"
        given = {**self.constants, **(constants or {})}
        process = self.context.Process(target=_child, args=([str(a) for a in arguments], out, err, given))
        process.start()
        return process, out, err

    def run(self, *arguments: str | Path) -> Ended:
        """Run a command to its end."""
        process, out, err = self.start(*arguments)
        return self.ended(process, out, err)

    def killed(
        self,
        when: Callable[[], bool],
        *arguments: str | Path,
        constants: Mapping[str, Any] | None = None,
        number: int = signal.SIGKILL,
    ) -> Ended:
        """Run a command and send it a signal as soon as ``when`` holds."""
        process, out, err = self.start(*arguments, constants=constants)
        assert process.pid is not None
        while not when():
            assert process.is_alive(), f"it ended before it could be killed: {err.read_text()}"
            time.sleep(0.001)
        os.kill(process.pid, number)
        return self.ended(process, out, err)

    @staticmethod
    def ended(process: BaseProcess, out: Path, err: Path) -> Ended:
        """Wait for a command."""
        process.join(120)
        assert process.exitcode is not None, "it hangs"
        return Ended(process.exitcode, out.read_text(), err.read_text())


UNREPEATABLE = ("seconds", "tokens_per_second", "sample_seconds", "train_seconds", "step_seconds", "peak_memory_mb")


def lines(folder: Path, stage: str) -> list[dict[str, Any]]:
    """The metrics of a stage without what a clock decides."""
    found = RunFolder.load(folder).metrics(stage)
    return [{key: value for key, value in line.items() if key not in UNREPEATABLE} for line in found]


def steps(folder: Path, stage: str) -> int:
    """How many steps of a stage have been logged. Safe while the run goes on."""
    path = folder / "metrics.jsonl"
    return path.read_text().count(f'"stage": "{stage}"') if path.exists() else 0


def sampled(folder: Path) -> dict[str, list[tuple[str, int, int, list[int], float]]]:
    """What every trajectory of a run is, by file; of an evaluation, whose parts are cut by the clock, by folder and in
    order."""
    found: dict[str, list[tuple[str, int, int, list[int], float]]] = {}
    for file in sorted(folder.rglob("*.jsonl.gz")):
        parts = file.parent.name == "attempts"
        entries = found.setdefault(str((file.parent.parent if parts else file).relative_to(folder)), [])
        entries += [(t.problem_id, t.sample, t.seed, t.token_ids, t.reward) for t in read_trajectories(file)]
        if parts:
            entries.sort(key=lambda entry: entry[:2])
    return found


def weights(folder: Path, stage: str) -> str:
    """A digest of a stage's final weights."""
    path = RunFolder.load(folder).checkpoints(stage)[-1][1] / "model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file of a folder with its time of change and content."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def reported(err: str, who: str | Path, what: str) -> bool:
    """Whether a line that a command wrote to stderr is of this stage or folder and ends in ``what``, a regular expression,
    whatever its words before that. A line of progress, such as ``rl: 3/5 step``, is none."""
    return re.search(rf"^{re.escape(str(who))}: (?!\d+/).*\b(?:{what})$", err, re.MULTILINE) is not None
