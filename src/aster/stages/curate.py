"""Curate: keep correct, clean, interaction-dense trajectories."""

from __future__ import annotations

import dataclasses

from aster.core.errors import UserError
from aster.core.recipe import Recipe
from aster.core.run import RunFolder, read_trajectories, write_trajectories
from aster.core.seeds import derive
from aster.curation import curate


def run(recipe: Recipe, folder: RunFolder) -> None:
    """Filter the synthesized trajectories."""
    files = sorted((folder.path / "synthesize" / "trajectories").glob("chunk_*.jsonl.gz"))
    trajectories = [trajectory for file in files for trajectory in read_trajectories(file)]
    fewest, most = recipe.curate.band(recipe.cold_start)
    kept, funnel = curate(trajectories, fewest, most, recipe.curate.size, derive(recipe.seed, "curate"))
    if not kept:
        counts = ", ".join(f"{step.filter}: {step.kept}" for step in funnel)
        raise UserError(f"curate: no trajectory is left ({counts}); synthesize more, or widen curate.min_calls and max_calls")
    write_trajectories(folder.trajectory_file("curate", "kept"), kept)
    folder.finish(
        "curate",
        {
            "kept": len(kept),
            "funnel": [dataclasses.asdict(step) for step in funnel],
            "tool_calls": sum(t.tool_calls for t in kept) / len(kept),
            "trained_tokens": sum(t.sampled_tokens for t in kept),
        },
    )
