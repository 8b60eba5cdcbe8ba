"""Present sets of trajectories: their statistics side by side, and the funnel of a curation, as text and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from aster.data.curation.chain import Funnel
from aster.data.curation.contamination import Hit
from aster.report.html import write_html
from aster.terminal import aligned

ROWS: tuple[tuple[str, str, str], ...] = (
    ("trajectories", "trajectories", "{:,}"),
    ("copies", "copies of earlier ones", "{:,}"),
    ("problems", "problems", "{:,}"),
    ("verified", "verified right", "{:.1%}"),
    ("unverified", "not verified", "{:.1%}"),
    ("calls_mean", "tool calls, mean", "{:.2f}"),
    ("calls_median", "tool calls, median", "{:g}"),
    ("sparse", "fewer than 3 calls", "{:.1%}"),
    ("call_success", "calls without error", "{:.1%}"),
    ("malformed", "malformed calls", "{:.1%}"),
    ("causal", "later calls that use earlier results", "{:.1%}"),
    ("rechecks", "calls after the answer is known", "{:.1%}"),
    ("only_rechecks", "trajectories that only re-check", "{:.1%}"),
    ("unit", "unit of lengths", "{}"),
    ("thinking_per_call", "thinking per call, mean", "{:,.0f}"),
    ("tokens_mean", "length, mean", "{:,.0f}"),
    ("tokens_median", "length, median", "{:,.0f}"),
    ("tokens_p95", "length, 95th percentile", "{:,.0f}"),
)
"""Key, label and format of each row."""


def statistics_table(results: Sequence[dict[str, Any]]) -> str:
    """Return a table with a column per set, then the distributions of calls and of their places, then each set's verdict."""
    cells = [(label, *(_cell(result[key], form) for result in results)) for key, label, form in ROWS]
    lines = aligned([("", *(result["name"] for result in results)), *cells])
    lines += ["", "share of trajectories by tool calls"]
    lines += aligned([("calls", *(result["name"] for result in results)), *_distribution(results)])
    lines += ["", "share of calls by place in the thinking"]
    places = [
        (f"{10 * place}-{10 * place + 10}%", *(_cell(result["call_places"][place], "{:.1%}") for result in results))
        for place in range(10)
    ]
    lines += aligned([("thinking", *(result["name"] for result in results)), *places])
    lines += ["", *(f"{result['name']}: {result['verdict']}" for result in results), *_copies_of(results)]
    return "\n".join(lines)


def copies_lines(copies: Mapping[tuple[str, str], int]) -> list[str]:
    """Return a line for each (set of the copies, set of the originals) with the number of copies."""
    lines = []
    for (copy, of), count in copies.items():
        what = "1 trajectory is a copy" if count == 1 else f"{count:,} trajectories are copies"
        lines.append(f"{copy}: {what} of {'others in it' if copy == of else f'those in {of}'}")
    return lines


def _copies_of(results: Sequence[dict[str, Any]]) -> list[str]:
    return copies_lines({(result["name"], of): count for result in results for of, count in result["copies_of"].items()})


def funnel_table(funnel: Sequence[Funnel]) -> str:
    """Return the funnel as a table: the number left after each filter, as a share of its input and of the first number."""
    first = funnel[0].kept
    rows = []
    before = first
    for step in funnel:
        rows.append((step.filter, f"{step.kept:,}", _percent(step.kept, before), _percent(step.kept, first)))
        before = step.kept
    return "\n".join(aligned([("filter", "kept", "of those before", "of all"), *rows]))


def contamination_table(hits: Sequence[Hit]) -> str:
    """Return a table of the contaminated problems, with the beginnings of both texts below each row."""
    rows = [
        (hit.problem_id, f"{hit.benchmark}: {hit.benchmark_id}", hit.method, f"{hit.overlap:.0%}", f"{hit.similarity:.0f}")
        for hit in hits
    ]
    table = aligned([("problem", "is of", "found by", "overlap", "similarity"), *rows])
    lines = table[:2]
    for row, hit in zip(table[2:], hits, strict=True):
        lines += [row, f"    {_beginning(hit.prompt)}", f"    {_beginning(hit.benchmark_prompt)}"]
    return "\n".join(lines)


def write_sets_page(
    path: Path, title: str, *, results: Sequence[dict[str, Any]] = (), funnel: Sequence[Funnel] = (), notes: Sequence[str] = ()
) -> None:
    """Write an HTML page with the statistics, the funnel, or both. ``notes`` are lines below the funnel."""
    # Imported here because matplotlib takes half a second, and the text tables do not need it.
    from aster.report import charts

    drawn = [Markup(charts.funnel_chart("Left after each filter", funnel))] if funnel else []
    if results:
        calls = {result["name"]: result["calls_histogram"] for result in results}
        lengths = {result["name"]: result["tokens_histogram"] for result in results}
        places = [
            (result["name"], [10 * place + 5 for place in range(10)], [share or 0.0 for share in result["call_places"]])
            for result in results
        ]
        drawn += [
            Markup(charts.histogram_chart("Tool calls per trajectory (share of trajectories)", "tool calls", calls)),
            Markup(charts.line_chart("Share of calls by place in the thinking", "% of the thinking done", places)),
            Markup(charts.histogram_chart("Length (share of trajectories)", "thousands of tokens or words written", lengths)),
        ]
    write_html(
        path,
        "sets",
        title=title,
        charts=drawn,
        funnel=funnel,
        notes=notes,
        names=[result["name"] for result in results],
        rows=[(label, [_cell(result[key], form) for result in results]) for key, label, form in ROWS],
        verdicts=[(result["name"], result["verdict"]) for result in results],
        copies=_copies_of(results),
    )


def _beginning(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 110 else line[:109] + "…"


def _cell(value: Any, form: str) -> str:
    return "-" if value is None else form.format(value)


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _distribution(results: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return the share of trajectories for 0 to 12 calls each, then for ranges of ten."""
    longest = max((len(result["calls_histogram"]) for result in results), default=0)
    edges = [*range(min(13, longest)), *range(13, longest, 10)]
    rows = []
    # Without trajectories there are no edges, but the second list still has one item.
    for low, high in zip(edges, [*edges[1:], longest], strict=False):
        label = str(low) if high - low <= 1 else f"{low}-{high - 1}"
        shares = (_percent(sum(result["calls_histogram"][low:high]), sum(result["calls_histogram"])) for result in results)
        rows.append((label, *shares))
    return rows
