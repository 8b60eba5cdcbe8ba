"""``aster evaluate`` and what goes with it: ``compare``, ``budgets``, ``merge``, ``benchmarks``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from aster.cli.arguments import Command, folder_option, run_one_stage, split_arguments

FOLDER = click.Path(path_type=Path)
DATA_HELP = "Folder with local copies of benchmarks. Default: the environment variable ASTER_BENCHMARKS."
DEFAULTS: dict[str, Any] = {
    "k": 16,
    "budget": "30k",
    "max_calls": 256,
    "temperature": 0.6,
    "top_p": 0.95,
    "seed": 1,
    "concurrency": 32,
    "shard": "1/1",
    "wall_seconds": 3600.0,
}
"""The paper's preset, and ours where it has none. Here, because the settings' own module takes a second to import."""


def _options(command: Command) -> Command:
    """The options of an evaluation by benchmark, in the order of the help."""
    for option in reversed(
        (
            click.option("--policy", help="A model (as model.path has it), http://, chat:http:// or tinker:http:// address."),
            click.option("--benchmark", help="A name that `aster benchmarks` lists, a .parquet or .jsonl file, or lab."),
            click.option("--k", type=click.IntRange(min=1), default=DEFAULTS["k"], help="Samples a problem. [16]"),
            click.option("--budget", default=DEFAULTS["budget"], help="Tokens: prompt, sampled, tool. k is 1,024. [30k]"),
            click.option("--max-calls", type=click.IntRange(min=0), default=DEFAULTS["max_calls"], help="Tool calls. [256]"),
            click.option(
                "--temperature", type=click.FloatRange(min=0), default=DEFAULTS["temperature"], help="0: greedy. [0.6]"
            ),
            click.option(
                "--top-p", type=click.FloatRange(min=0, max=1, min_open=True), default=DEFAULTS["top_p"], help="[0.95]"
            ),
            click.option("--no-tools", is_flag=True, help="No tool: neither in the prompt nor to run."),
            click.option("--out", type=FOLDER, metavar="DIR", help="Default: runs/evaluate/BENCHMARK-POLICY-BUDGET."),
            click.option("--seed", type=int, default=DEFAULTS["seed"], help="[1]"),
            click.option("--problems", type=click.IntRange(min=1), help="A seeded choice of so many problems. Default: all."),
            click.option("--data", metavar="DIR", help=DATA_HELP),
            click.option("--model", "model_name", default="", help="The name under which a server serves the model."),
            click.option("--tokenizer", default="", help="The tokenizer's folder, for a server that takes token ids."),
            click.option("--checkpoint", default="", metavar="DIR", help="A run's checkpoint of the policy (LoRA, Tinker)."),
            click.option("--turn-budget", default="", help="Tokens of one turn. Default: what the budget leaves."),
            click.option(
                "--wall-seconds",
                type=click.FloatRange(min=0, min_open=True),
                default=DEFAULTS["wall_seconds"],
                help="Time of one attempt. [3600]",
            ),
            click.option(
                "--concurrency", type=click.IntRange(min=1), default=DEFAULTS["concurrency"], help="Attempts under way. [32]"
            ),
            click.option("--shard", default=DEFAULTS["shard"], metavar="I/N", help="This part of the problems alone."),
            click.option("--check-budget", default="", help="Also run this smaller budget, and say whether the curve agrees."),
            click.option("--price-in", type=click.FloatRange(min=0), help="Money per million tokens read."),
            click.option("--price-out", type=click.FloatRange(min=0), help="Money per million tokens written."),
            click.option("--label", help="A name for tables, for instance the training budget."),
            click.option("--prompt-suffix", help="Text after each problem. Default: the request for a box."),
            click.option("--changed-benchmark", is_flag=True, help="Go on where a copy is not the benchmark on record."),
            click.option("--retry-faults", is_flag=True, help="Make the faulty attempts of a finished evaluation anew."),
        )
    ):
        command = option(command)
    return command


@click.command("evaluate")
@click.argument("arguments", nargs=-1, metavar="[RECIPE] [FIELD=VALUE ...]")
@folder_option
@_options
@click.pass_context
def evaluate_command(ctx: click.Context, arguments: tuple[str, ...], folder: Path | None, **given: Any) -> None:
    """Measure avg@k.

    With RECIPE: the pipeline's stage, which measures the base, SFT and RL policies of a run.

    With --policy and --benchmark: any policy on any benchmark, under the paper's preset. FIELD=VALUE then changes fields of the
    sections model, policy, sandbox and rollout. Interrupted, the same command goes on.
    """
    recipe, overrides = split_arguments(arguments)
    named = [
        parameter.opts[0]
        for parameter in ctx.command.params
        if parameter.name in given and ctx.get_parameter_source(parameter.name) is click.core.ParameterSource.COMMANDLINE
    ]
    if recipe is not None:
        if named:
            raise click.UsageError(f"RECIPE goes with FIELD=VALUE and --run alone, not with {', '.join(named)}")
        run_one_stage("evaluate", recipe, overrides, folder)
        return
    if folder is not None:
        raise click.UsageError("--run goes with RECIPE; with --policy the folder is --out")
    if given["policy"] is None or given["benchmark"] is None:
        raise click.UsageError("give a RECIPE, or --policy and --benchmark")
    if (given["price_in"] is None) != (given["price_out"] is None):
        raise click.UsageError("--price-in and --price-out go together")
    _evaluate(overrides, given)


def _evaluate(overrides: tuple[str, ...], given: dict[str, Any]) -> None:
    from aster.cli.compare import check_budget
    from aster.cli.request import make_request
    from aster.evaluation.folder import EvaluationFolder
    from aster.evaluation.run import evaluate
    from aster.evaluation.settings import parse_tokens
    from aster.money import Prices
    from aster.report.evaluation import render_result
    from aster.report.evaluation_page import write_evaluation_page

    prices = None if given["price_in"] is None else Prices(given["price_in"], given["price_out"])
    smaller = parse_tokens(given["check_budget"]) if given["check_budget"] else None
    settings, problems, request = make_request(overrides, given, prices)
    if smaller is not None and smaller >= settings.context_tokens:
        raise click.UsageError(f"--check-budget {smaller}: must be below the budget of {settings.context_tokens}")
    summary = evaluate(settings, problems, request)
    page = write_evaluation_page(EvaluationFolder.load(request.folder))
    click.echo(render_result(summary))
    click.echo(f"\nattempts and numbers: {request.folder}; report: {page}")
    if smaller is not None:
        click.echo("\n" + check_budget(settings, problems, request, smaller))


@click.command("compare")
@click.argument("first", type=FOLDER, metavar="FIRST")
@click.argument("second", type=FOLDER, metavar="SECOND")
def compare_command(first: Path, second: Path) -> None:
    """Compare two evaluations on the same problems.

    A paired permutation test over problems, with the interval of the difference.
    """
    from aster.cli.compare import compare_folders

    click.echo(compare_folders(first, second))


@click.command("budgets")
@click.argument("folders", nargs=-1, required=True, type=FOLDER, metavar="DIR...")
@click.option("--at", "at", metavar="TOKENS,...", help="Token budgets, for instance 8k,16k,30k. Default: quarters.")
@click.option("--calls", metavar="CALLS,...", help="Call budgets instead, for instance 0,8,64.")
def budgets_command(folders: tuple[Path, ...], at: str | None, calls: str | None) -> None:
    """Show training budget against inference budget.

    One row an evaluation, one column a budget, all from attempts that are there.
    """
    from aster.cli.compare import grid

    if at and calls:
        raise click.UsageError("--at and --calls do not go together")
    click.echo(grid(folders, at, calls))


@click.command("merge")
@click.argument("target", type=FOLDER, metavar="OUT")
@click.argument("shards", nargs=-1, required=True, type=FOLDER, metavar="SHARD...")
def merge_command(target: Path, shards: tuple[Path, ...]) -> None:
    """Join the shards of an evaluation.

    Overlaps, gaps and differing settings are refused.
    """
    from aster.evaluation.folder import EvaluationFolder
    from aster.evaluation.merging import merge
    from aster.report.evaluation import render_result
    from aster.report.evaluation_page import write_evaluation_page

    click.echo(render_result(merge(target, shards)))
    click.echo(f"\nreport: {write_evaluation_page(EvaluationFolder.load(target))}")


@click.command("benchmarks")
@click.option("--data", metavar="DIR", help=DATA_HELP)
def benchmarks_command(data: str | None) -> None:
    """List the benchmarks, and where copies of them are.

    A copy is read and compared with the record.
    """
    from aster.data.benchmarks import describe

    click.echo(describe(data))
