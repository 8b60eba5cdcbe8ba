"""``aster data problems``: filters the problems for the teacher and for RL."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("problems")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, metavar="FILE", help="The file to write the problems to (.jsonl)."
)
@click.option(
    "--against",
    multiple=True,
    metavar="BENCHMARKS",
    help="Drop problems of these benchmarks: names or files with commas between, or all.",
)
@click.option(
    "--columns", multiple=True, metavar="FIELD=COLUMN", help="Columns of your own layout, for instance answer=final_answer."
)
@click.option("--prompt-suffix", default="", help="Text to append to every prompt.")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after this many problems.")
@click.option("--any-language", is_flag=True, help="Keep problems that are not in English.")
@click.option(
    "--keep-duplicates", type=click.Choice(["near", "all"]), help="near: keep near duplicates. all: keep exact ones too."
)
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), metavar="FILE", help="Write the counts and the pairs as JSON."
)
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write the counts as an HTML page.")
def problems_command(
    sources: tuple[str, ...],
    out: Path,
    against: tuple[str, ...],
    columns: tuple[str, ...],
    prompt_suffix: str,
    limit: int | None,
    any_language: bool,
    keep_duplicates: str | None,
    json_path: Path | None,
    html: Path | None,
) -> None:
    """Filter problems and write them as JSON lines.

    SOURCE is a .jsonl or .parquet file or a data set of the Hugging Face hub, hf:OWNER/NAME[@CONFIG][:SPLIT]. The
    command drops problems that are not in English, duplicates, and problems of the benchmarks in --against. It prints how many
    problems each filter keeps, and the pairs of problems that match a benchmark.
    """
    import dataclasses
    import itertools

    from aster.data.curation.contamination import Contamination
    from aster.data.curation.duplicates import Duplicates
    from aster.data.curation.questions import Questions, load_benchmarks, problem_line
    from aster.errors import UserError
    from aster.report.sets import contamination_table, funnel_table, write_sets_page
    from aster.run import replacing, write_json

    if out.suffix != ".jsonl":
        raise UserError(f"--out {out}: the file's name must end in .jsonl")
    mapped = {}
    for text in columns:
        name, equals, column = text.partition("=")
        if not equals or not column:
            raise UserError(f"--columns {text}: write it as FIELD=COLUMN, for instance answer=final_answer")
        mapped[name] = column
    names = [name.strip() for text in against for name in text.split(",") if name.strip()]
    if against and not names:
        # For instance an unset variable in a script. Unfiltered problems would look filtered.
        raise UserError("--against: it names no benchmark; write names or files with commas between, or all")
    questions = Questions(
        english=not any_language,
        duplicates=None if keep_duplicates == "all" else Duplicates(near=keep_duplicates is None),
        contamination=Contamination(load_benchmarks(names)) if names else None,
    )
    selected = itertools.islice(questions.select(sources, prompt_suffix, mapped), limit)
    first = next(selected, None)
    if first is not None:
        with replacing(out) as partial, open(partial, "w", encoding="utf-8") as stream:
            stream.writelines(map(problem_line, itertools.chain([first], selected)))
    if json_path is not None:
        write_json(
            json_path,
            {
                "funnel": [dataclasses.asdict(step) for step in questions.funnel],
                "contaminated": [dataclasses.asdict(hit) for hit in questions.hits],
                "duplicates_with_another_answer": questions.answers_differ,
                "unreadable": questions.faults,
            },
        )
    if html is not None:
        write_sets_page(html, f"Problems of {', '.join(sources)}", funnel=questions.funnel)
    click.echo(funnel_table(questions.funnel))
    if questions.answers_differ:
        click.echo(f"\n{questions.answers_differ} duplicates have a different answer from the problem that was kept")
    if questions.faults:
        click.echo(f"\n{questions.unreadable} rows have no problem or no answer; the first: {questions.faults[0]}")
    if questions.hits:
        click.echo(f"\n{contamination_table(questions.hits)}")
    if first is None:
        # An existing file is not replaced by an empty one.
        raise UserError(f"{', '.join(sources)}: no problem is left, and {out} was not written")
    click.echo(f"\nproblems: {out}")
