"""Present results to people: HTML reports, tables for the terminal, one trajectory as text. Nothing here imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aster.report.table import render_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from aster.run import RunFolder


def write_report(run: RunFolder, others: Sequence[RunFolder] = ()) -> Path:
    """Write ``report.html`` in the run's folder and return its path. The RL charts also show the curves of ``others``.

    The page names stages that are missing. Raises UserError if a file is broken or cannot be written.
    """
    # Imported here because matplotlib takes half a second, and the terminal's table does not need it.
    from aster.report.page import write_page

    return write_page(run, others)


__all__ = ["render_table", "write_report"]
