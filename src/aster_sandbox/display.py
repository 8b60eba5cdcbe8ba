"""The builtin ``display`` of cells."""

from __future__ import annotations

import sys
from typing import Any

from aster_sandbox import shown


def display(*values: Any, **_options: Any) -> None:
    """Show values, each as the echo shows it; a matplotlib figure is saved and described in one line."""
    figures = sys.modules.get("matplotlib.figure")
    for value in values:
        if figures is not None and isinstance(value, figures.Figure):
            from aster_sandbox.figures import show_figure

            show_figure(value)
        else:
            shown.write(shown.text_of(value))
