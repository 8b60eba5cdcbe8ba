"""Published results of others, shown next to measured results and kept apart from them.

Figures are percentages as their sources give them, each with the source; None where none was found. They were made with other
graders, prompts, budgets and numbers of samples than ours, some with tools and some without.
"""

from __future__ import annotations

from dataclasses import dataclass

BENCHMARKS = {"aime24": "AIME 2024", "aime25": "AIME 2025", "hmmt25": "HMMT Feb 2025", "beyondaime": "BeyondAIME"}
"""The columns: benchmark names and titles."""


@dataclass(frozen=True)
class Published:
    """One row: the results of one model."""

    model: str
    setting: str
    """Measure and budget according to the source."""
    scores: tuple[float | None, float | None, float | None, float | None]
    """In the order of :data:`BENCHMARKS`."""
    source: str


_ASTER = "arXiv 2602.01204"

ROWS = (
    Published("OpenReasoning-Nemotron-7B", "pass@1, 64K tokens, no tool", (84.7, 78.2, 63.5, None), "its model card"),
    Published("Qwen3-235B-A22B-Thinking-2507", "no tool", (None, 92.3, 83.9, None), "its model card"),
    Published("POLARIS-4B", "pass@1, no tool", (81.2, 79.4, None, None), "hkunlp.github.io/blog/2025/Polaris"),
    Published("ReTool-32B", "Qwen2.5-32B-Instruct, tool", (67.0, 49.3, None, None), "arXiv 2504.11536"),
    Published("rStar2-Agent-14B", "pass@1, tool", (80.6, 69.8, 52.7, None), "arXiv 2508.20722"),
    Published("DemyAgent-4B", "tool", (72.6, 70.0, None, None), "arXiv 2510.11701, table 2"),
    Published("ASTER-1.7B-SFT", "avg@16, tool", (19.4, 19.0, 11.3, 6.4), _ASTER),
    Published("ASTER-1.7B", "avg@16, tool", (64.6, 59.6, 47.5, 26.3), _ASTER),
    Published("ASTER-4B-SFT", "avg@16, tool", (62.5, 54.6, 43.3, 27.4), _ASTER),
    Published("ASTER-4B", "avg@16, 30K tokens, tool", (82.3, 85.0, 73.3, 53.9), _ASTER),
    Published("ASTER-4B", "avg@16, 90K tokens, tool", (85.8, 90.0, 77.1, 61.7), _ASTER),
)


def published_on(benchmark: str) -> list[tuple[Published, float]]:
    """The rows that have a figure for a benchmark, each with its figure, best first."""
    if benchmark not in BENCHMARKS:
        return []
    column = list(BENCHMARKS).index(benchmark)
    found = [(row, score) for row in ROWS if (score := row.scores[column]) is not None]
    return sorted(found, key=lambda pair: -pair[1])
