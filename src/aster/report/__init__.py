"""What a run's folder says, for people: the HTML report, the terminal's table, one trajectory as text. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aster.report.table import render_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from aster.run import RunFolder


def write_report(run: RunFolder, others: Sequence[RunFolder] = ()) -> Path:
    """Write ``report.html`` in the run's folder and return its path; ``others`` are overlaid in the charts of RL.

    Stages that are missing are named in the page as missing. UserError where a file is broken or cannot be written.
    """
    # matplotlib takes half a second to import, which the terminal's table need not wait for.
    from aster.report.page import write_page

    return write_page(run, others)


__all__ = ["render_table", "write_report"]
