"""The commands that import and export data sets, and run their tool calls again."""

from __future__ import annotations

from pathlib import Path

import click

from aster.cli.arguments import recipe_or_defaults
from aster.cli.data import data_group

PATH = click.Path(path_type=Path)


@data_group.command("import")
@click.argument("source", type=PATH, metavar="SOURCE")
@click.option("--layout", required=True, help="messages, llamafactory, retool, tora or verl_rollout.")
@click.option("--out", type=PATH, required=True, metavar="SET", help="The set to write (.jsonl or .jsonl.gz).")
@click.option("--problems", type=PATH, metavar="FILE", help="Problems with answers, matched by id or prompt.")
@click.argument("arguments", nargs=-1, metavar="[RECIPE] [FIELD=VALUE ...]")
def import_command(source: Path, layout: str, out: Path, problems: Path | None, arguments: tuple[str, ...]) -> None:
    """Import a data set of another project (.jsonl, .json, .parquet).

    The environment of RECIPE checks and scores every attempt; FIELD=VALUE changes the recipe. The command prints how many rows
    could not be read, by reason.
    """
    from aster.data.formats.importing import describe, import_set
    from aster.environments import EnvironmentFailure, transcript_scorer
    from aster.environments.opening import make_environment
    from aster.errors import UserError

    recipe = recipe_or_defaults(arguments)
    score = transcript_scorer(make_environment(recipe.environment, recipe.tools, recipe.sandbox))
    try:
        click.echo(describe(import_set(source, layout, out, problems, score=score), source, layout))
    except EnvironmentFailure as error:
        raise UserError(f"environment: {error}") from error
    click.echo(f"wrote {out}")


@data_group.command("export")
@click.argument("source", type=PATH, metavar="SET")
@click.option("--layout", required=True, help="messages, llamafactory or verl_prompts.")
@click.option("--out", type=PATH, required=True, metavar="FILE", help="The file to write (.parquet, .jsonl or .json).")
def export_command(source: Path, layout: str, out: Path) -> None:
    """Export a data set, or a run folder's trajectories, for another trainer.

    The column `aster` holds the data that the layout has no place for, so that `aster data import` restores the set exactly.
    """
    from aster.data.curation.sources import Source
    from aster.data.formats.exporting import export_set

    count = export_set(source, Source(source), layout, out)
    click.echo(f"wrote {count} rows to {out}")


@click.command("replay")
@click.argument("source", type=PATH, metavar="SET")
@click.argument("arguments", nargs=-1, metavar="[RECIPE] [FIELD=VALUE ...]")
@click.option("--out", type=PATH, metavar="JSON", help="Write the report as JSON too.")
def replay_command(source: Path, arguments: tuple[str, ...], out: Path | None) -> None:
    """Run a data set's tool calls again and compare their outputs.

    SET is a data set, a run folder, or a stage's folder in it. The sandbox is that of RECIPE, or else the run's own;
    FIELD=VALUE changes it. The exit code is 1 if an output differs.
    """
    import asyncio

    from aster.data.curation.sources import Source
    from aster.data.replay import Replayed, describe, replay
    from aster.data.sets import read_lines
    from aster.errors import UserError
    from aster.run import write_json
    from aster.terminal import Progress
    from aster_sandbox import SandboxFailure, make_sandbox

    found = Source(source)
    settings = recipe_or_defaults(arguments, found.run.recipe if found.run is not None else None).sandbox

    total = sum(1 for file in found.files or [source] for _ in read_lines(file))
    if not total:
        raise UserError(f"{source}: it contains no trajectory, so there is nothing to run again")

    async def run() -> Replayed:
        with Progress("replay", total, "trajectory") as progress:
            async with make_sandbox(settings) as sandbox:
                return await replay(found, sandbox, min(32, settings.sessions), lambda: progress.advance())

    try:
        report = asyncio.run(run())
    except SandboxFailure as error:
        raise UserError(f"replay: {error}") from error
    click.echo(describe(report))
    if out is not None:
        write_json(out, report.to_json())
    if not report.clean:
        raise click.exceptions.Exit(1)
