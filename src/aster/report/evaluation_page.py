"""``report.html`` of an evaluation: the result, its settings, the curves over budgets, the problems."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from aster import __version__
from aster.evaluation.folder import EvaluationFolder
from aster.evaluation.published import BENCHMARKS, published_on
from aster.report import charts
from aster.report.evaluation import interval, percent, settings_lines
from aster.run import replacing


def write_evaluation_page(folder: EvaluationFolder) -> Path:
    """Write the page of a finished evaluation and return its path."""
    summary = folder.summary()
    assert summary is not None
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "interval": interval}
    name = "templates/evaluation.html.j2"
    template = environment.from_string(importlib.resources.files("aster.report").joinpath(name).read_text(encoding="utf-8"))
    benchmark = summary["settings"]["benchmark"]
    html = template.render(
        version=__version__,
        title=summary["notes"].get("label") or summary["settings"]["policy"],
        summary=summary,
        settings=settings_lines(summary),
        commands=folder.about()["commands"],
        curves=_curves(summary),
        problems=_problems(folder, summary),
        published=published_on(benchmark),
        benchmark=BENCHMARKS.get(benchmark, benchmark),
    )
    path = folder.path / "report.html"
    with replacing(path) as partial:
        partial.write_text(html, encoding="utf-8", errors="replace")
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
    """Id, answer and numbers of each problem, hardest first."""
    known = folder.problems()
    found = [(name, known.get(name, {}).get("answer", ""), numbers) for name, numbers in summary["by_problem"].items()]
    return sorted(found, key=lambda row: row[2]["accuracy"])
