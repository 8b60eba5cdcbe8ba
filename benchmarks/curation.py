"""Curation at scale: from 45,000 candidates to 4,000, and how time and memory grow.

    python benchmarks/curation.py [--sizes 22500 45000 90000] [--json]

Runs ``aster data curate`` with every filter on, as a process, on generated sets (``_transcripts.py``: 10 to 20 calls of real
Python a trajectory; nearly all of them pass the cheap filters, so that the slow ones see nearly all). In the time: start of
Python, reading, all filters, the choice, writing the chosen ones. Not in it: generating the sets. CPU seconds and memory
(each page once): of the process and all it starts, looked at every 0.2 s.

Wanted: 45,000 to 4,000 in 120 s and 2,048 MiB on two cores, and a time that grows as the number does.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _machine import facts, print_json
from _memory import processes_below, pss_below
from _transcripts import transcripts

from aster.data.sets import write_lines

FILTERS = (
    "tokens.max=32768",
    "thinking_per_call.max=2000",
    "repeated_cells=0.3",
    "repeated_text=0.9",
    "rechecks=0.9",
    "causal=0.1",
    "per_problem=2",
    "size=4000",
)


def measure(folder: Path, size: int) -> dict[str, Any]:
    """Generate a set, curate it, delete it."""
    path, out = folder / f"{size}.jsonl.gz", folder / "kept.jsonl.gz"
    write_lines(path, transcripts(size, seed=1))
    command = [sys.executable, "-m", "aster", "data", "curate", str(path), "--out", str(out), *FILTERS]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = 0.0
    cpu: dict[int, float] = {}
    while process.poll() is None:
        peak = max(peak, pss_below())
        cpu |= {each: used for each in processes_below() if (used := cpu_seconds(each))}
        time.sleep(0.2)
    seconds = time.perf_counter() - began
    assert process.stdout is not None
    funnel = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"curation failed:\n{funnel}")
    megabytes = path.stat().st_size / 1e6
    path.unlink()
    return {
        "candidates": size,
        "seconds": seconds,
        "cpu_seconds": sum(cpu.values()),
        "peak_mib": peak,
        "megabytes_compressed": megabytes,
        "funnel": funnel,
    }


def cpu_seconds(process: int) -> float:
    """What a process has used so far; 0 where it has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{process}/stat") as file:
        user, system = file.read().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return 0.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[22500, 45000, 90000])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    print(f"{len(os.sched_getaffinity(0))} cores")
    print("| candidates | seconds | CPU seconds | CPU ms a candidate | peak MiB |\n|---|---|---|---|---|")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for size in arguments.sizes:
            results.append(result := measure(Path(folder), size))
            each = 1000 * result["cpu_seconds"] / size
            numbers = f"{result['seconds']:.1f} | {result['cpu_seconds']:.1f} | {each:.2f} | {result['peak_mib']:.0f}"
            print(f"| {size:,} | {numbers} |", flush=True)
    print(f"\n{results[-1]['funnel']}")
    if arguments.json:
        print_json({"machine": facts("numpy"), "results": results})


if __name__ == "__main__":
    main()
