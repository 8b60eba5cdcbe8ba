"""Runs other cold starts at the same time as the main one, each in a process of its own, so that a comparison takes no extra
time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import yaml

from aster.config.recipe import Recipe
from aster.process import start
from aster.run import RunFolder, replacing, writing
from aster.terminal import say


class Beside:
    """The runs of ``recipe.beside``. As a context manager it starts them as far as cores are free, and interrupts those that
    still run when the main run ends."""

    def __init__(self, recipe: Recipe, folder: RunFolder) -> None:
        self.recipe, self.folder = recipe, folder
        self.running: list[tuple[str, subprocess.Popen[bytes], IO[bytes]]] = []

    @staticmethod
    def folders(recipe: Recipe, folder: RunFolder) -> list[tuple[str, Path]]:
        """The other cold starts and their run folders."""
        names = [name for name in dict.fromkeys(recipe.beside) if name != recipe.cold_start]
        return [(str(name), folder.path / "beside" / str(name)) for name in names]

    def __enter__(self) -> Beside:
        free = len(os.sched_getaffinity(0)) - 1
        for name, path in self.folders(self.recipe, self.folder):
            if len(self.running) >= free:
                say(f"beside: no core is free for cold start {name}; run it by itself with cold_start={name}")
                continue
            settings = self.recipe.model_dump(mode="json") | {"cold_start": name, "beside": []}
            file = path.with_suffix(".yaml")
            with replacing(file) as partial:
                partial.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
            command = [sys.executable, "-m", "aster", "run", str(file), "--run", str(path)]
            with writing(path):
                log = open(path.with_suffix(".log"), "ab")
            # Ctrl-C in the terminal is for the main run, which passes it on once. A killed main run takes this one
            # with it, because this one's folder must be free when the main run is started again.
            process = start(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            self.running.append((name, process, log))
            say(f"beside: cold start {name} runs in {path} (log: {path.with_suffix('.log')})")
        return self

    def wait(self) -> None:
        """Wait until they have ended. One that failed is reported and does not stop the main run."""
        for name, process, log in self.running:
            if process.poll() is None:
                say(f"beside: waiting for cold start {name}")
            code = process.wait()
            log.close()
            if code != 0:
                say(f"beside: cold start {name} failed (exit code {code}); its log says why: {log.name}")
        self.running = []

    def __exit__(self, *_: object) -> None:
        for _name, process, log in self.running:
            process.send_signal(signal.SIGINT)
            process.wait()
            log.close()
