"""The declared chain of filters, each with its count: the funnel.

Paper: correct answer, every tool call succeeded, more than nine calls, then 4,000 chosen.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from aster.core.types import CallStatus, Trajectory


@dataclass(frozen=True, slots=True)
class Funnel:
    """One filter and how many trajectories were left after it."""

    filter: str
    kept: int


def curate(
    trajectories: list[Trajectory], min_calls: int, max_calls: int | None, size: int | None, seed: int
) -> tuple[list[Trajectory], list[Funnel]]:
    """Apply the chain; the seeded choice at its end keeps the order. Same input and seed, same result."""
    band = f"at least {min_calls} tool calls" if max_calls is None else f"{min_calls} to {max_calls} tool calls"
    filters: list[tuple[str, Callable[[Trajectory], bool]]] = [
        ("answer verified", lambda t: t.reward == 1.0),
        ("every call succeeded", lambda t: all(call.status is CallStatus.OK for call in t.calls)),
        (band, lambda t: t.tool_calls >= min_calls and (max_calls is None or t.tool_calls <= max_calls)),
    ]
    funnel = [Funnel("attempts", len(trajectories))]
    kept = trajectories
    for name, passes in filters:
        kept = [trajectory for trajectory in kept if passes(trajectory)]
        funnel.append(Funnel(name, len(kept)))
    if size is not None and len(kept) > size:
        chosen = set(random.Random(seed).sample(range(len(kept)), size))
        kept = [trajectory for index, trajectory in enumerate(kept) if index in chosen]
        funnel.append(Funnel("chosen by seed", len(kept)))
    return kept, funnel
