"""``aster data curate`` and ``aster data stats``: filter and compare data sets of trajectories."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from aster.config.recipe import Recipe
    from aster.data.curation.measures import CountTokens


@click.command("curate")
@click.argument("arguments", nargs=-1, required=True, metavar="SET... [FIELD=VALUE ...]")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, metavar="SET", help="The file to write the kept trajectories to."
)
@click.option(
    "--recipe",
    metavar="RECIPE",
    help="Use this recipe's section curate: a file, or the name of a recipe that comes with ASTER.",
)
@click.option(
    "--dropped",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a list (.jsonl) of the dropped trajectories and the filter of each.",
)
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write the counts as an HTML page.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), metavar="FILE", help="Write the counts as JSON.")
def curate_command(
    arguments: tuple[str, ...],
    out: Path,
    recipe: str | None,
    dropped: Path | None,
    html: Path | None,
    json_path: Path | None,
) -> None:
    """Filter data sets of trajectories and choose from them.

    SET is a .jsonl or .jsonl.gz file of transcripts, a run folder, or a stage's folder in it. FIELD=VALUE sets seed or a field
    of the recipe's section curate, for instance density.min=10 or size=4000. A trajectory that is in several sets is kept once.
    The command prints how many trajectories each filter keeps.
    """
    import contextlib
    import dataclasses
    import json
    from collections import Counter

    from aster.data.curation import Chain, Dropped, choose
    from aster.data.curation.judging import judge_sources
    from aster.data.curation.sources import Source
    from aster.data.sets import require_set_name, write_lines
    from aster.errors import UserError
    from aster.report.sets import copies_lines, funnel_table, write_sets_page
    from aster.run import replacing, write_json
    from aster.seeds import derive

    require_set_name("--out", out)
    paths, overrides = _split(arguments)
    settings = _recipe(recipe, overrides)
    sources = [Source(path) for path in paths]
    judged = judge_sources(sources, settings.curate, settings.cold_start)
    with contextlib.ExitStack() as stack:
        stream = None
        if dropped is not None:
            stream = stack.enter_context(open(stack.enter_context(replacing(dropped)), "w", encoding="utf-8"))

        def note(each: Dropped) -> None:
            if stream is not None:
                stream.write(json.dumps(dataclasses.asdict(each)) + "\n")

        chain = Chain(settings.curate, settings.cold_start, sources=len(sources))
        selection = choose(judged, chain, derive(settings.seed, "curate"), note)
    kept = set(selection.kept)
    if kept:
        lines = (line for source in sources for _, line in source.lines())
        write_lines(out, (line for place, line in enumerate(lines) if place in kept))
    copies: Counter[tuple[str, str]] = Counter()
    for (copy, of), count in sorted(selection.copies.items()):
        copies[str(paths[copy]), str(paths[of])] += count
    if json_path is not None:
        found = [{"in": copy, "of": of, "trajectories": count} for (copy, of), count in copies.items()]
        write_json(json_path, {"funnel": [dataclasses.asdict(step) for step in selection.funnel], "copies": found})
    if html is not None:
        title = f"Curation of {', '.join(map(str, paths))}"
        write_sets_page(html, title, funnel=selection.funnel, notes=copies_lines(copies))
    click.echo("\n".join([funnel_table(selection.funnel), *copies_lines(copies)]))
    if not kept:
        # An existing set is not replaced by an empty one.
        raise UserError(f"no trajectory is left, and {out} was not written; relax the filters, or give more trajectories")
    click.echo(f"\nset: {out}")


@click.command("stats")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="SET...")
@click.option(
    "--tokenizer", type=click.Path(path_type=Path), metavar="DIR", help="Count tokens with this tokenizer (a folder or file)."
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), metavar="FILE", help="Write the numbers as JSON.")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write a page with charts.")
def stats_command(paths: tuple[Path, ...], tokenizer: Path | None, json_path: Path | None, html: Path | None) -> None:
    """Compare how data sets use the tool.

    SET is a .jsonl or .jsonl.gz file of transcripts, a run folder, or a stage's folder in it. Lengths are in tokens where the
    set contains token counts or --tokenizer is given, and in words otherwise.
    """
    from aster.data.curation.copies import Contents
    from aster.data.curation.sources import Source
    from aster.data.curation.statistics import statistics_of
    from aster.report.sets import statistics_table, write_sets_page
    from aster.run import write_json

    count = _counter(tokenizer) if tokenizer is not None else None
    unit = f"tokens of {tokenizer}" if tokenizer is not None else None
    sources = [Source(path) for path in paths]
    contents = Contents()
    results = [statistics_of(str(source.path), source, count, unit, contents) for source in sources]
    if json_path is not None:
        write_json(json_path, results)
    if html is not None:
        write_sets_page(html, "Sets side by side", results=results)
    click.echo(statistics_table(results))


def _split(arguments: tuple[str, ...]) -> tuple[list[Path], list[str]]:
    """Split ``SET... [FIELD=VALUE ...]`` into paths and overrides. The name of an existing file may contain ``=``."""
    paths = [Path(text) for text in arguments if "=" not in text or Path(text).exists()]
    overrides = [text for text in arguments if "=" in text and not Path(text).exists()]
    if not paths:
        raise click.UsageError("give at least one SET")
    return paths, overrides


def _recipe(recipe: str | None, overrides: list[str]) -> Recipe:
    """The recipe with overrides, which may set only its seed, its cold_start and its section curate."""
    from aster.cli.arguments import recipe_or_defaults

    full = tuple(text if text.startswith(("seed=", "curate.", "cold_start=")) else f"curate.{text}" for text in overrides)
    return recipe_or_defaults(full if recipe is None else (recipe, *full))


def _counter(path: Path) -> CountTokens:
    """A function that counts tokens with a ``tokenizer.json``; ``path`` is the file or its folder."""
    from aster.data.text import load_tokenizer_file

    tokenizer = load_tokenizer_file(path / "tokenizer.json" if path.is_dir() else path)
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
