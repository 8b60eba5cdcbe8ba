"""``aster evaluate`` and the commands on its results: ``compare``, ``budgets``, ``merge``, ``benchmarks``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from aster.cli.arguments import Command, folder_option, run_one_stage, split_arguments

FOLDER = click.Path(path_type=Path)
DATA_HELP = "Folder of local benchmark copies. Default: the environment variable ASTER_BENCHMARKS."
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
"""The paper's settings, and our own where the paper gives none. They are repeated here because the module of the settings takes
a second to import."""


def _options(command: Command) -> Command:
    """Add the options of ``aster evaluate --policy``, in the order of the help."""
    for option in reversed(
        (
            click.option("--policy", help="A model as in model.path, or an http://, chat:http:// or tinker:http:// address."),
            click.option("--benchmark", help="A name that `aster benchmarks` lists, a .parquet or .jsonl file, or lab."),
            click.option("--k", type=click.IntRange(min=1), default=DEFAULTS["k"], help="Samples per problem. [16]"),
            click.option("--budget", default=DEFAULTS["budget"], help="Most tokens (prompt, sampled, tool); k is 1,024. [30k]"),
            click.option(
                "--max-calls", type=click.IntRange(min=0), default=DEFAULTS["max_calls"], help="Most tool calls. [256]"
            ),
            click.option(
                "--temperature", type=click.FloatRange(min=0), default=DEFAULTS["temperature"], help="0: greedy. [0.6]"
            ),
            click.option(
                "--top-p", type=click.FloatRange(min=0, max=1, min_open=True), default=DEFAULTS["top_p"], help="[0.95]"
            ),
            click.option("--no-tools", is_flag=True, help="Offer no tool to the policy."),
            click.option("--out", type=FOLDER, metavar="DIR", help="Default: runs/evaluate/BENCHMARK-POLICY-BUDGET."),
            click.option("--seed", type=int, default=DEFAULTS["seed"], help="[1]"),
            click.option(
                "--problems", type=click.IntRange(min=1), help="Use this many problems, chosen by the seed. Default: all."
            ),
            click.option("--data", metavar="DIR", help=DATA_HELP),
            click.option("--model", "model_name", default="", help="The model's name on the server."),
            click.option("--tokenizer", default="", help="The tokenizer's folder, for a server that takes token ids."),
            click.option("--checkpoint", default="", metavar="DIR", help="A run's checkpoint of the policy (LoRA, Tinker)."),
            click.option("--turn-budget", default="", help="Most tokens of a turn. Default: the rest of the budget."),
            click.option(
                "--wall-seconds",
                type=click.FloatRange(min=0, min_open=True),
                default=DEFAULTS["wall_seconds"],
                help="Most seconds of an attempt. [3600]",
            ),
            click.option(
                "--concurrency",
                type=click.IntRange(min=1),
                default=DEFAULTS["concurrency"],
                help="Attempts at the same time. [32]",
            ),
            click.option(
                "--shard", default=DEFAULTS["shard"], metavar="I/N", help="Evaluate only part I of N of the problems."
            ),
            click.option(
                "--check-budget", default="", help="Also run this smaller budget, and report whether the curve agrees."
            ),
            click.option("--price-in", type=click.FloatRange(min=0), help="Price per million tokens read."),
            click.option("--price-out", type=click.FloatRange(min=0), help="Price per million tokens written."),
            click.option("--label", help="A name for this evaluation in tables, for instance the training budget."),
            click.option("--prompt-suffix", help="Text after each problem. Default: a request for \\boxed{}."),
            click.option(
                "--changed-benchmark", is_flag=True, help="Accept a benchmark copy that differs from the recorded one."
            ),
            click.option("--retry-faults", is_flag=True, help="Repeat the faulty attempts of a finished evaluation."),
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

    With RECIPE it runs the pipeline's stage, which measures the base, SFT and RL policies of a run.

    With --policy and --benchmark it measures any policy on any benchmark, with the paper's settings. FIELD=VALUE then changes
    fields of the sections model, policy, environment, tools, sandbox and rollout. To resume, give the same command again.
    """
    recipe, overrides = split_arguments(arguments)
    named = [
        parameter.opts[0]
        for parameter in ctx.command.params
        if parameter.name in given and ctx.get_parameter_source(parameter.name) is click.core.ParameterSource.COMMANDLINE
    ]
    if recipe is not None:
        refused = [name for name in named if name != "--retry-faults"]
        if refused:
            raise click.UsageError(
                f"RECIPE can be combined only with FIELD=VALUE, --run and --retry-faults, not with {', '.join(refused)}"
            )
        run_one_stage("evaluate", recipe, overrides, folder, retry_faults=given["retry_faults"])
        return
    if folder is not None:
        raise click.UsageError("--run needs a RECIPE; with --policy, give the folder as --out")
    if given["policy"] is None or given["benchmark"] is None:
        raise click.UsageError("give a RECIPE, or --policy and --benchmark")
    if (given["price_in"] is None) != (given["price_out"] is None):
        raise click.UsageError("--price-in and --price-out: give both or neither")
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

    It runs a paired permutation test over problems, and prints the interval of the difference.
    """
    from aster.cli.compare import compare_folders

    click.echo(compare_folders(first, second))


@click.command("budgets")
@click.argument("folders", nargs=-1, required=True, type=FOLDER, metavar="DIR...")
@click.option(
    "--at", "at", metavar="TOKENS,...", help="Token budgets, for instance 8k,16k,30k. Default: quarters of the largest."
)
@click.option("--calls", metavar="CALLS,...", help="Budgets of tool calls instead, for instance 0,8,64.")
def budgets_command(folders: tuple[Path, ...], at: str | None, calls: str | None) -> None:
    """Show the accuracy of evaluations under smaller budgets.

    The table has a row per evaluation and a column per budget. It uses the existing attempts; nothing is sampled.
    """
    from aster.cli.compare import grid

    if at and calls:
        raise click.UsageError("--at and --calls: give only one of them")
    click.echo(grid(folders, at, calls))


@click.command("merge")
@click.argument("target", type=FOLDER, metavar="OUT")
@click.argument("shards", nargs=-1, required=True, type=FOLDER, metavar="SHARD...")
def merge_command(target: Path, shards: tuple[Path, ...]) -> None:
    """Join the shards of an evaluation.

    It refuses shards that overlap, are incomplete or have different settings.
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
    """List the benchmarks, and where their local copies are.

    It reads each copy and compares it with the recorded checksum.
    """
    from aster.data.benchmarks import describe

    click.echo(describe(data))
