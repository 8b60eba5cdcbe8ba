"""``aster data``: the commands on problems and on data sets of trajectories."""

from __future__ import annotations

import click

from aster.cli.data_problems import problems_command
from aster.cli.data_sets import curate_command, stats_command


@click.group("data")
def data_group() -> None:
    """Filter, compare, import and export the problems and trajectories of a cold start."""


data_group.add_command(problems_command)
data_group.add_command(curate_command)
data_group.add_command(stats_command)
