"""``report.html`` of an evaluation: the result, its settings, the curves over budgets, the problems."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from aster.evaluation.folder import EvaluationFolder
from aster.evaluation.published import BENCHMARKS, published_on
from aster.report import charts
from aster.report.evaluation import settings_lines, warnings
from aster.report.html import write_html


def write_evaluation_page(folder: EvaluationFolder) -> Path:
    """Write the page of a finished evaluation and return its path."""
    summary = folder.summary()
    assert summary is not None
    benchmark = summary["settings"]["benchmark"]
    path = folder.path / "report.html"
    write_html(
        path,
        "evaluation",
        title=summary["notes"].get("label") or summary["settings"]["policy"],
        summary=summary,
        warnings=warnings(summary),
        settings=settings_lines(summary),
        commands=folder.about()["commands"],
        curves=_curves(summary),
        problems=_problems(folder, summary),
        published=published_on(benchmark),
        benchmark=BENCHMARKS.get(benchmark, benchmark),
    )
    return path


def _curves(summary: dict[str, Any]) -> list[Markup]:
    drawn = []
    for name, title, label in (
        ("tokens", "Accuracy under smaller token budgets", "tokens: prompt, sampled and tool tokens"),
        ("calls", "Accuracy under smaller call budgets", "tool calls"),
    ):
        points = [(p[name], p["accuracy"], p["low"], p["high"]) for p in summary["curves"][name]]
        if len(points) > 1:
            drawn.append(Markup(charts.band_chart(title, label, points)))
    return drawn


def _problems(folder: EvaluationFolder, summary: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Return the id, answer and numbers of each problem, hardest first."""
    known = folder.problems()
    found = [(name, known.get(name, {}).get("answer", ""), numbers) for name, numbers in summary["by_problem"].items()]
    return sorted(found, key=lambda row: row[2]["accuracy"])
