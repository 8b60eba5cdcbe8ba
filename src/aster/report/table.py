"""Format results as a text table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aster.terminal import aligned

POLICIES = {"base": "base", "sft": "after SFT", "rl": "after RL"}
"""The policies of a run in order, and their names in tables."""


def render_table(summary: Mapping[str, Mapping[str, Any]], report: Path | None = None) -> str:
    """Return the table of ``summary.json`` for the terminal: avg@k with its 95% interval and tool calls per trajectory.

    A policy that was not evaluated has no row. ``report`` adds a line with the report's path.
    """
    rows = [(POLICIES[policy], *(_cells(summary[policy]))) for policy in POLICIES if policy in summary]
    if rows:
        ks = sorted({int(summary[policy]["k"]) for policy in POLICIES if policy in summary})
        measure = f"avg@{ks[0]}" if len(ks) == 1 else "avg@k"
        header = ("policy", measure, "95% interval", "problems", "tool calls")
        lines = aligned([header, *rows])
    else:
        lines = ["no policy has been evaluated"]
    if report is not None:
        lines.append(f"report: {report}")
    return "\n".join(lines)


def _cells(result: Mapping[str, Any]) -> tuple[str, str, str, str]:
    return (
        f"{100 * result['accuracy']:.1f}%",
        f"[{100 * result['low']:.1f}, {100 * result['high']:.1f}]",
        str(result["problems"]),
        f"{result['tool_calls']:.2f}",
    )
