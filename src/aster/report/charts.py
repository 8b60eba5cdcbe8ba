"""Draw charts as inline SVG. Uses matplotlib without pyplot, which would keep global state."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from aster.data.curation.chain import Funnel
from aster.telemetry import smooth

COLOURS = ("#1f5fa8", "#c2571a", "#2e8b57", "#8a4fa3", "#7a7a7a", "#b8860b", "#333333")

_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names of runs may contain dollar signs
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
}

Series = tuple[str, Sequence[float], Sequence[float]]
"""Name, x, y."""


def line_chart(
    title: str, x_label: str, series: Sequence[Series], boundaries: Sequence[float] = (), smoothed: bool = False
) -> str:
    """Draw lines over a common x axis as an SVG element.

    ``boundaries`` are x values of dotted vertical lines (the beginnings of later stages). ``smoothed`` draws the trailing mean
    of each series, and the series itself as a thin line.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _canvas(title, x_label)
        for index, (name, x, y) in enumerate(series):
            colour = COLOURS[index % len(COLOURS)]
            if smoothed:
                axes.plot(x, y, color=colour, linewidth=0.7, alpha=0.35)
                y = smooth(y)
            axes.plot(x, y, color=colour, linewidth=1.6, label=name, marker="o" if len(x) == 1 else None)
        for boundary in boundaries:
            axes.axvline(boundary, color="#555555", linewidth=0.8, linestyle=":")
        if all(value >= 0 for _, _, y in series for value in y):
            axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(series) > 1:
            axes.legend(frameon=False)
        return _svg(figure, title)


def band_chart(title: str, x_label: str, points: Sequence[tuple[float, float, float, float]]) -> str:
    """Draw one line with a band around it as an SVG element. ``points`` are (x, y, low, high) with y from 0 to 1."""
    x, y, low, high = (list(column) for column in zip(*points, strict=True))
    with matplotlib.rc_context(_STYLE):
        figure, axes = _canvas(title, x_label)
        axes.fill_between(x, low, high, color=COLOURS[0], alpha=0.18, linewidth=0)
        axes.plot(x, y, color=COLOURS[0], linewidth=1.6, marker="o", markersize=3)
        axes.set_ylim(0, 1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return _svg(figure, title)


def histogram_chart(title: str, x_label: str, groups: Mapping[str, Sequence[int]]) -> str:
    """Draw distributions of whole numbers side by side as an SVG element.

    ``groups`` maps each name to the counts of 0, 1, 2, ... They are drawn as shares. With more than 25 numbers, each bin holds
    several.
    """
    longest = max((len(counts) for counts in groups.values()), default=0)
    width = max(1, -(-longest // 25))
    with matplotlib.rc_context(_STYLE):
        figure, axes = _canvas(title, x_label, foot=0.17 if width == 1 else 0.27)
        bins = -(-longest // width)
        bar = 0.8 / max(1, len(groups))
        for index, (name, counts) in enumerate(groups.items()):
            shares = [sum(counts[start : start + width]) / max(1, sum(counts)) for start in range(0, bins * width, width)]
            places = [position + (index - (len(groups) - 1) / 2) * bar for position in range(bins)]
            axes.bar(places, shares, width=bar, color=COLOURS[index % len(COLOURS)], label=name)
        labels = [str(start) if width == 1 else f"{start}-{start + width - 1}" for start in range(0, bins * width, width)]
        axes.set_xticks(range(bins), labels, rotation=0 if width == 1 else 60, fontsize=8)
        axes.grid(axis="x", visible=False)
        axes.legend(frameon=False)
        return _svg(figure, title)


def funnel_chart(title: str, steps: Sequence[Funnel]) -> str:
    """Draw the number left after each filter as horizontal bars, from the first filter to the last, as an SVG element."""
    with matplotlib.rc_context(_STYLE):
        # Names of filters are long, so they are above the bars and not beside them.
        figure = Figure(figsize=(5.4, 0.9 + 0.42 * len(steps)))
        axes = figure.add_axes((0.02, 0.02, 0.84, 1 - 0.5 / (0.9 + 0.42 * len(steps))))
        axes.set_title(title, fontsize=10, loc="left")
        axes.axis("off")
        most = max((step.kept for step in steps), default=0) or 1
        axes.barh(range(len(steps)), [step.kept / most for step in steps], height=0.45, color=COLOURS[0])
        for place, step in enumerate(steps):
            axes.text(0, place - 0.28, step.filter, fontsize=8, va="bottom")
            axes.text(step.kept / most, place, f" {step.kept:,}", fontsize=8, va="center")
        axes.set_xlim(0, 1)
        axes.set_ylim(len(steps) - 0.5, -0.8)
        return _svg(figure, title)


def stacked_chart(title: str, x_label: str, x: Sequence[float], shares: Mapping[str, Sequence[float]]) -> str:
    """Draw shares that sum to one at each x as a stacked area, as an SVG element."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _canvas(title, x_label, width=0.6)
        axes.stackplot(x, *shares.values(), labels=list(shares), colors=COLOURS, alpha=0.8)
        axes.set_ylim(0, 1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        return _svg(figure, title)


def _canvas(title: str, x_label: str, width: float = 0.88, foot: float = 0.17) -> tuple[Figure, matplotlib.axes.Axes]:
    """Return a figure and its axes. ``width`` of the axes and ``foot`` below them are fractions of the figure.

    The layout is fixed because matplotlib's layout engines take as long as the drawing.
    """
    figure = Figure(figsize=(5.4, 3.0))
    axes = figure.add_axes((0.1, foot, width, 0.9 - foot))
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x_label)
    return figure, axes


def _svg(figure: Figure, title: str) -> str:
    """Return the figure's ``<svg>`` element. Its ids are salted with the title so that charts of one page do not share ids."""
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": title}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    # matplotlib does not salt some ids (figure_1, axes_1, ...). Nothing refers to them, so they can be removed.
    return re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", text)
