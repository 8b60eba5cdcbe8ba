"""What ``sandbox.py`` measured: values by round, their medians and ratios, as a tree and as tables."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Result:
    """A value a round, by a path of names."""

    rounds: dict[tuple[str, ...], list[float]] = field(default_factory=lambda: defaultdict(list))
    ratios: dict[str, list[float]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def add(self, value: float, *path: str) -> None:
        """One more round's value."""
        self.rounds[path].append(value)

    def ratio(self, name: str, above: tuple[str, ...], below: tuple[str, ...]) -> None:
        """Keep the ratios of two values that were measured in the same rounds, if both were."""
        if above in self.rounds and below in self.rounds:
            self.ratios[name] = [a / b for a, b in zip(self.rounds[above], self.rounds[below], strict=True)]

    def as_json(self) -> dict[str, Any]:
        """Medians as a tree, ratios, their ranges, and what was left out."""
        medians: dict[str, Any] = {}
        for path, values in self.rounds.items():
            place = medians
            for name in path[:-1]:
                place = place.setdefault(name, {})
            place[path[-1]] = _rounded(statistics.median(values))
        return {
            "medians": medians,
            "ratios": {name: _rounded(statistics.median(values)) for name, values in self.ratios.items()},
            "ranges": {name: [_rounded(min(values)), _rounded(max(values))] for name, values in self.ratios.items()},
            "skipped": self.skipped,
        }


def print_tables(result: dict[str, Any]) -> None:
    """The result for people."""
    medians = result["medians"]
    tables = [
        ("start, ms", medians["start_ms"]),
        ("cell, ms", medians["cell_ms"]),
        *((f"cells/s at {count}", rows) for count, rows in medians["cells_per_second"].items()),
        ("memory a session, MiB", medians.get("memory_mib", {})),
        ("density, MiB a session", medians.get("density_mib", {})),
        ("recovery, ms", medians["recovery_ms"]),
        ("idle", {"aster": medians["idle"]} if "idle" in medians else {}),
    ]
    for title, rows in tables:
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        print(f"\n{title:26s}" + "".join(f"{column:>20s}" for column in columns))
        for name, row in rows.items():
            print(f"  {name:24s}" + "".join(f"{row[column]:20,.5g}" if column in row else " " * 20 for column in columns))
    print("\nratios")
    for name, ratio in result["ratios"].items():
        low, high = result["ranges"][name]
        print(f"  {name:24s}{ratio:20.3g}   ({low:.3g} to {high:.3g})")
    for name, why in result["skipped"].items():
        print(f"  left out: {name}: {why}")


def _rounded(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")
