"""Commands on several evaluations: check a budget curve with a direct run, compare two, show many as a grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aster.errors import UserError
from aster.evaluation.budgets import curve, require_within, under
from aster.evaluation.comparison import compare
from aster.evaluation.folder import EvaluationFolder
from aster.evaluation.metrics import accuracy
from aster.evaluation.outcomes import rewards_by_problem
from aster.evaluation.run import Request, evaluate
from aster.evaluation.settings import Settings, parse_tokens
from aster.report.evaluation import interval, percent, render_comparison, render_grid
from aster.seeds import derive
from aster.types import Problem


def check_budget(settings: Settings, problems: Sequence[Problem], request: Request, tokens: int) -> str:
    """Run a smaller token budget directly, in a subfolder of the evaluation, and report how it agrees with the cut-off
    attempts."""
    whole = EvaluationFolder.load(request.folder).outcomes()
    left = under(whole, context_tokens=tokens)
    smaller = settings.model_copy(update={"context_tokens": tokens})
    folder = request.folder / f"check_{tokens}"
    evaluate(smaller, problems, dataclasses.replace(request, folder=folder))
    direct = EvaluationFolder.load(folder).outcomes()
    differing = sum(
        (one.stop_reason, one.reward, one.answer) != (two.stop_reason, two.reward, two.answer)
        for one, two in zip(left, direct, strict=True)
    )
    cut, run = (accuracy(each, settings.seed) for each in (left, direct))
    within = run["low"] <= cut["accuracy"] <= run["high"]
    verdict = "all attempts end the same way" if not differing else f"{differing} of {len(left)} attempts end differently"
    return (
        f"budget {tokens:,}: cut off {percent(cut['accuracy'])}, run directly {percent(run['accuracy'])} {interval(run)}; "
        f"{verdict}; the cut-off accuracy is {'within' if within else 'OUTSIDE'} the direct run's interval"
    )


def compare_folders(first: Path, second: Path) -> str:
    """Compare two finished evaluations. Raises UserError where they have different problems."""
    folders = [EvaluationFolder.load(path) for path in (first, second)]
    outcomes = [folder.outcomes() for folder in folders]
    one, two = (folder.settings for folder in folders)
    rewards = [rewards_by_problem(each) for each in outcomes]
    if one.checksum != two.checksum or rewards[0].keys() != rewards[1].keys():
        raise UserError(
            f"{second}: its problems are not those of {first} ({two.benchmark}, {two.problems} problems, shard {two.shard}; "
            f"{one.benchmark}, {one.problems} problems, shard {one.shard}); only results on the same problems can be compared"
        )
    found = compare(rewards[0], rewards[1], derive(one.seed, "compare"))
    summaries = [folder.summary() or {} for folder in folders]
    return render_comparison(_names(folders), summaries, found, _differing(one, two))


def grid(folders: Sequence[Path], at: str | None, calls: str | None) -> str:
    """The accuracy of each evaluation at each budget, from its attempts. Cells above an evaluation's own budget stay empty."""
    # A shell's RUN/evaluate/* has the stage's summary.json among the folders.
    loaded = [EvaluationFolder.load(path) for path in [path for path in folders if not path.is_file()] or folders]
    most = max(folder.settings.context_tokens for folder in loaded)
    if calls:
        budgets = sorted({_calls(text) for text in calls.split(",")})
        require_within(budgets, max(folder.settings.tool_calls for folder in loaded), "--calls")
    else:
        budgets = sorted({parse_tokens(text) for text in at.split(",")} if at else {most // 4, most // 2, most * 3 // 4, most})
        require_within(budgets, most, "--at")
    rows = []
    for folder, name in zip(loaded, _names(loaded), strict=True):
        outcomes, settings = folder.outcomes(), folder.settings
        own = settings.tool_calls if calls else settings.context_tokens
        if not calls and any(each.prompt_tokens is None for each in outcomes):
            raise UserError(f"{folder.path}: its server gave only text, so the numbers of tokens are not known; use --calls")
        kept = [budget for budget in budgets if budget <= own]
        points = curve(outcomes, settings.seed, **{"calls" if calls else "tokens": kept})
        cells = [points[kept.index(budget)] if budget in kept else None for budget in budgets]
        rows.append((name, _trained(folder.about()["notes"]), cells))
    return render_grid(budgets, rows, "calls" if calls else "tokens")


def _calls(text: str) -> int:
    if not text.strip().isdecimal():
        raise UserError(f"--calls {text}: not a whole number")
    return int(text)


def _names(folders: Sequence[EvaluationFolder]) -> list[str]:
    """Their labels or the names of their folders. Two that would have the same name, as in two runs, have their paths."""
    names = [folder.about()["notes"].get("label") or folder.path.name for folder in folders]
    return [name if names.count(name) == 1 else str(folder.path) for folder, name in zip(folders, names, strict=True)]


def _trained(notes: dict[str, Any]) -> str:
    """The training budget stored in the policy's run folder, as text."""
    training = notes.get("training")
    if not training:
        return "-"
    if "context_tokens" in training:
        return f"{training['stage']}: {training['context_tokens']:,} tokens, {training['tool_calls']} calls"
    return str(training["stage"])


def _differing(one: Settings, two: Settings) -> list[str]:
    """The names of the settings in which two evaluations differ."""
    first, second = one.identity(), two.identity()
    return [name for name in first if first[name] != second[name]]
