"""``aster data``: the commands on problems and sets of trajectories."""

from __future__ import annotations

import click


@click.group("data")
def data_group() -> None:
    """Problems and sets of trajectories: what a cold start is made of."""
