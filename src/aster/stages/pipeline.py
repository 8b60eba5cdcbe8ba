"""The order of the stages, and what is done already."""

from __future__ import annotations

import importlib
import sys

from aster.core.errors import UserError
from aster.core.progress import say
from aster.core.recipe import ColdStart, Recipe
from aster.core.run import RunFolder, read_json
from aster.stages.beside import Beside

STAGES = ("synthesize", "curate", "sft", "rl", "evaluate", "report")
NEEDS = {"curate": "synthesize", "sft": "curate", "rl": "sft", "evaluate": "rl"}
COLD_START_STAGES = ("synthesize", "curate", "sft")


def stages_of(recipe: Recipe) -> list[str]:
    """The stages a recipe has: cold start zero has no cold start."""
    return [name for name in STAGES if recipe.cold_start is not ColdStart.ZERO or name not in COLD_START_STAGES]


def run_all(recipe: Recipe, folder: RunFolder) -> None:
    """Every stage that is not finished, then the table."""
    pending = [name for name in stages_of(recipe) if folder.summary(name) is None]
    if not pending:
        say(f"{folder.path}: this run is finished; nothing to do (delete the folder or choose another --run to run it again)")
    else:
        if pending != stages_of(recipe):
            say(f"{folder.path}: resuming at stage {pending[0]}")
        with Beside(recipe, folder) as beside:
            for name in pending:
                if name == "report":
                    beside.wait()
                run_one(name, recipe, folder)
    print_results(recipe, folder)


def run_stage(name: str, recipe: Recipe, folder: RunFolder) -> None:
    """One stage alone. UserError where the one before it has not finished."""
    if name not in stages_of(recipe):
        raise UserError(f"{name}: cold start {recipe.cold_start} has no such stage")
    needed = NEEDS.get(name)
    if needed in stages_of(recipe) and folder.summary(str(needed)) is None:
        if name != "evaluate":
            raise UserError(f"{name}: the stage {needed} has not finished in {folder.path}; run it first (aster {needed} ...)")
        say(f"evaluate: {needed} has not finished; evaluating what there is")
    if folder.summary(name) is not None and name != "report":
        say(f"{folder.path}: stage {name} is finished; nothing to do")
        return
    run_one(name, recipe, folder)
    if name in ("evaluate", "report"):
        print_results(recipe, folder)


def run_one(name: str, recipe: Recipe, folder: RunFolder) -> None:
    """Run a stage, importing it only now (torch comes with it)."""
    if name == "report":
        from aster.reporting import write_report

        others = [RunFolder.load(path) for _, path in Beside.folders(recipe, folder) if (path / "recipe.yaml").exists()]
        write_report(folder, others)
        folder.finish("report", {"path": "report.html"})
        return
    importlib.import_module(f"aster.stages.{name}").run(recipe, folder)


def print_results(recipe: Recipe, folder: RunFolder) -> None:
    """The table of this run and of those beside it, and where the report is; to stdout."""
    from aster.reporting import render_table

    shown = [(str(recipe.cold_start), folder.path), *Beside.folders(recipe, folder)]
    for name, path in shown:
        if (path / "summary.json").exists():
            print(f"\ncold start: {name}")
            print(render_table(read_json(path / "summary.json")))
    if (folder.path / "report.html").exists():
        print(f"\nreport: {folder.path / 'report.html'}")
    sys.stdout.flush()
