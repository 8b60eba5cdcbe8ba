"""Print evaluations as text: one result with its settings and curves over budgets, a comparison of two, a grid of many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aster.evaluation.published import BENCHMARKS, published_on
from aster.terminal import aligned

if TYPE_CHECKING:
    from aster.evaluation.comparison import Comparison

Summary = Mapping[str, Any]


def percent(value: float) -> str:
    """Format a share as percent with one decimal, without the sign."""
    return f"{100 * value:.1f}"


def interval(found: Mapping[str, float]) -> str:
    """Format the keys ``low`` and ``high`` as ``[low, high]`` in percent."""
    return f"[{percent(found['low'])}, {percent(found['high'])}]"


def render_result(summary: Summary) -> str:
    """Return the result of one evaluation: measures, costs, settings, and published results on the same benchmark."""
    return "\n".join(
        [
            *measures(summary),
            "",
            *costs(summary),
            "",
            *settings_lines(summary),
            *_curve_lines(summary),
            *_published(summary["settings"]["benchmark"]),
        ]
    )


def measures(summary: Summary) -> list[str]:
    """Return the lines with avg@k, pass@k and maj@k and their intervals."""
    rows = [("measure", "%", "95% interval"), (f"avg@{summary['k']}", percent(summary["accuracy"]), interval(summary))]
    for name, key in (("pass", "pass_at"), ("maj", "maj_at")):
        # With one sample, pass@1 and maj@1 are the same as avg@1.
        rows += [(f"{name}@{k}", percent(found["mean"]), interval(found)) for k, found in summary[key].items() if k != "1"]
    return aligned(rows)


def costs(summary: Summary) -> list[str]:
    """Return the lines with the cost of an attempt and the stop reasons."""
    totals = summary["totals"]
    rows = [
        ("cost", "per attempt", "total"),
        ("tool calls", f"{summary['tool_calls']:.2f}", f"{totals['tool_calls']:,}"),
        ("tokens written", f"{summary['sampled_tokens']:,.0f}", f"{totals['sampled_tokens']:,}"),
        ("tokens read", f"{summary['read_tokens']:,.0f}", f"{totals['read_tokens']:,}"),
        ("seconds", f"{summary['seconds']:.1f}", f"{totals['seconds']:,.1f}"),
    ]
    if "cost" in totals:
        rows.append(("money", f"{totals['cost'] / summary['attempts']:.4f}", f"{totals['cost']:.2f}"))
    reasons = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in summary["stop_reasons"].items())
    lines = [*aligned(rows), f"{summary['attempts']} attempts at {summary['problems']} problems ended: {reasons}"]
    return [*lines, *warnings(summary)]


def warnings(summary: Summary) -> list[str]:
    """Return a warning if attempts failed because of the engine, the sandbox or the environment, and one if rewards were
    clipped."""
    lines = []
    if summary["faults"]:
        lines.append(
            f"WARNING: {summary['faults']} attempts failed because of the engine, the sandbox or the environment "
            "and count as wrong; --retry-faults makes them again"
        )
    if summary.get("clipped"):
        lines.append(f"WARNING: {summary['clipped']} rewards are below 0 or above 1; accuracy counts them as 0 or 1")
    return lines


def settings_lines(summary: Summary) -> list[str]:
    """Return lines with every setting that affects the numbers, and the versions."""
    given = summary["settings"]
    return [
        f"policy {given['policy']}"
        + (f", serving {summary['notes']['served']}" if summary["notes"].get("served") else "")
        + "".join(
            f", {name.replace('_', ' ')} {given[name]}" for name in ("model_name", "checkpoint", "tokenizer") if given[name]
        ),
        f"benchmark {given['benchmark']}, {given['problems']} problems, sha256 {given['checksum']}"
        + (f", shard {given['shard']}" if given["shard"] != "1/1" else ""),
        f"k {given['k']}, temperature {given['temperature']:g}, top-p {given['top_p']:g}, seed {given['seed']}",
        f"budget {given['context_tokens']:,} tokens (prompt, sampled and tool tokens), "
        + (f"{given['turn_tokens']:,} a turn, " if given["turn_tokens"] else "")
        + f"{given['tool_calls']} calls, {given['wall_seconds']:g} s",
        sandbox_line(summary),
        "versions: "
        + ", ".join(f"{name} {number}" for name, number in summary["versions"].items())
        + f"; {summary['machine']}",
    ]


def sandbox_line(summary: Summary) -> str:
    """Describe the tool in one line."""
    given = summary["settings"]
    if not given["tools"]:
        return "no tool"
    sandbox = given["sandbox"]
    level = summary["notes"].get("isolation") or sandbox["isolation"]
    return (
        f"tool: stateful Python, {sandbox['cell_seconds']:g} s a cell, {sandbox['memory_mb']} MiB, "
        f"{sandbox['output_characters']} characters of output, isolation {level}"
    )


def _curve_lines(summary: Summary) -> list[str]:
    lines: list[str] = []
    for name, title in (("tokens", "token budget"), ("calls", "call budget")):
        points = _until_flat(summary["curves"][name])
        if len(points) > 1:
            rows = [(title, "avg@k %", "95% interval", "answered %")]
            rows += [(f"{p[name]:,}", percent(p["accuracy"]), interval(p), percent(p["answered"])) for p in points]
            lines += ["", *aligned(rows)]
    if lines:
        lines.append("smaller budgets: the same attempts, cut off at the end of the budget")
    return lines


def _until_flat(points: Sequence[Mapping[str, float]]) -> Sequence[Mapping[str, float]]:
    """Return the points up to the smallest budget that was enough for every attempt."""
    flat = [point["accuracy"] == points[-1]["accuracy"] and point["answered"] == points[-1]["answered"] for point in points]
    last = next((index for index in range(len(points)) if all(flat[index:])), len(points) - 1)
    return points[: last + 1]


def _published(benchmark: str) -> list[str]:
    found = published_on(benchmark)
    if not found:
        return []
    rows = [("published", f"{BENCHMARKS[benchmark]} %", "setting", "source")]
    rows += [(row.model, f"{score:.1f}", row.setting, row.source) for row, score in found]
    return ["", "Published by others (other graders, prompts and budgets; not measured here):", *aligned(rows)]


def render_comparison(names: Sequence[str], summaries: Sequence[Summary], found: Comparison, differing: Sequence[str]) -> str:
    """Return two results side by side, and whether they differ."""
    rows: list[Sequence[str]] = [("", *names)]
    rows.append(("avg@k %", *(percent(each["accuracy"]) for each in summaries)))
    rows.append(("95% interval", *(interval(each) for each in summaries)))
    rows.append(("k", *(str(each["k"]) for each in summaries)))
    for key, title, form in (
        ("tool_calls", "tool calls", "{:.2f}"),
        ("sampled_tokens", "tokens written", "{:,.0f}"),
        ("seconds", "seconds", "{:.1f}"),
    ):
        rows.append((title, *(form.format(each[key]) for each in summaries)))
    test = "exact" if found.exact else "drawn"
    lines = [
        *aligned(rows),
        "",
        f"difference (first minus second) {100 * found.difference:+.1f} points, 95% interval "
        f"[{100 * found.low:+.1f}, {100 * found.high:+.1f}]",
        f"paired permutation test over {found.problems} problems ({test}): p = {found.p_value:.4f}; "
        f"better on {found.better}, worse on {found.worse}",
    ]
    if differing:
        lines.append(f"their settings differ in {', '.join(differing)}")
    return "\n".join(lines)


def render_grid(
    columns: Sequence[int], rows: Sequence[tuple[str, str, Sequence[Mapping[str, float] | None]]], unit: str
) -> str:
    """Return a table with a row for each (policy, training budget) and a column for each inference budget."""
    table: list[Sequence[str]] = [("policy", "trained with", *(f"{column:,} {unit}" for column in columns))]
    for name, trained, cells in rows:
        table.append((name, trained, *(f"{percent(c['accuracy'])} {interval(c)}" if c is not None else "-" for c in cells)))
    return "\n".join(aligned(table))
