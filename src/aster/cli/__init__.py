"""The command line. Slow imports happen inside the commands, so that ``aster --help`` answers at once and without torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import click

from aster import __version__
from aster.cli.arguments import (
    RECIPES_HELP,
    Command,
    default_folder,
    folder_option,
    recipe_comments,
    recipe_or_defaults,
    run_one_stage,
    split_arguments,
)
from aster.cli.data import data_group
from aster.cli.evaluate import benchmarks_command, budgets_command, compare_command, evaluate_command, merge_command
from aster.cli.exchange import replay_command
from aster.cli.sandbox import sandbox_group
from aster.errors import UserError, one_line
from aster.extras import install_command, packages_for
from aster_sandbox import SettingsError

STAGES = {
    "synthesize": "Have the teacher write trajectories for training problems.",
    "curate": "Keep the trajectories that pass the recipe's filters.",
    "sft": "Fine-tune the base model on the curated trajectories.",
    "rl": "Train with RL (GRPO by default) from the cold start.",
    "evaluate": "Measure avg@k.",
}


class Commands(click.Group):
    """A group that reports user errors, missing packages and Ctrl-C in one line. Every other exception is a bug and shows its
    traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The commands in the order of their definition, which is that of the pipeline."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Exit code 2 on a UserError or a missing package, 130 on Ctrl-C."""
        try:
            return super().invoke(ctx)
        except (UserError, SettingsError) as error:
            click.echo(f"aster: error: {one_line(error, None)}", err=True)
            ctx.exit(2)
        except ModuleNotFoundError as error:
            packages = packages_for(error.name)
            if not packages:
                raise
            missing = f"this needs the package {packages[0]}, which is not installed"
            click.echo(f"aster: error: {missing}; install it ({install_command(*packages)})", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            resumes = "; the same command resumes the run" if ctx.invoked_subcommand in {"run", *STAGES} else ""
            click.echo(f"aster: interrupted{resumes}", err=True)
            ctx.exit(130)


@click.group(
    cls=Commands, epilog=RECIPES_HELP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="aster")
def main() -> None:
    """Train a small language model to reason with a stateful Python tool.

    A run has a recipe and a folder. FIELD=VALUE arguments override the recipe's fields, for instance rl.steps=20.
    To resume a stopped run, give the same command again.
    """


def _recipe_arguments(command: Command) -> Command:
    """RECIPE [FIELD=VALUE ...] [--run DIR]."""
    command = folder_option(command)
    command = click.argument("overrides", nargs=-1, metavar="[FIELD=VALUE ...]")(command)
    return click.argument("recipe", metavar="RECIPE")(command)


@main.command("run", epilog=RECIPES_HELP)
@_recipe_arguments
def run_command(recipe: str, overrides: tuple[str, ...], folder: Path | None) -> None:
    """Run the whole pipeline, from synthesize to report."""
    from aster.config.file import load_recipe
    from aster.run import RunFolder

    resolved = load_recipe(recipe, overrides)
    with RunFolder.open(folder or default_folder(resolved), resolved) as run:
        from aster.pipeline import run_all

        run_all(resolved, run)


def _add_stage(name: str, help_text: str) -> None:
    def command(recipe: str, overrides: tuple[str, ...], folder: Path | None) -> None:
        run_one_stage(name, recipe, overrides, folder)

    main.command(name, help=help_text, epilog=RECIPES_HELP)(_recipe_arguments(command))


for _name, _help in STAGES.items():
    if _name == "evaluate":
        main.add_command(evaluate_command)
    else:
        _add_stage(_name, _help)
for _command in (compare_command, budgets_command, merge_command, benchmarks_command):
    main.add_command(_command)


@main.command("report")
@click.argument("arguments", nargs=-1, metavar="[RECIPE] [FIELD=VALUE ...]")
@folder_option
def report_command(arguments: tuple[str, ...], folder: Path | None) -> None:
    """Write the report.html of a run, finished or not.

    RECIPE may be left out if --run is given.
    """
    from aster.config.file import load_recipe
    from aster.run import RunFolder

    path, overrides = split_arguments(arguments)
    if path is None and (folder is None or overrides):
        raise click.UsageError("give a RECIPE, or only --run DIR")
    recipe = load_recipe(path, overrides) if path is not None else None
    if folder is None:
        assert recipe is not None
        folder = default_folder(recipe)
    # Reading needs no lock, so a report can be written during the run.
    run = RunFolder.load(folder, recipe)
    from aster.pipeline import run_stage

    run_stage("report", recipe or load_recipe(run.path / "recipe.yaml"), run)


@main.command("recipe", epilog=RECIPES_HELP)
@click.argument("arguments", nargs=-1, metavar="[RECIPE] [FIELD=VALUE ...]")
@click.option("--yaml", "as_yaml", is_flag=True, help="Print a file that can be edited and run, with the meanings as comments.")
def recipe_command(arguments: tuple[str, ...], as_yaml: bool) -> None:
    """Print a recipe's fields: value, type, default, meaning.

    Without RECIPE it prints the defaults. `aster recipe lab --yaml > my.yaml` writes your own recipe; `aster run my.yaml` runs
    it."""
    from aster.config.describe import describe, to_yaml

    recipe = recipe_or_defaults(arguments)
    click.echo(to_yaml(recipe, recipe_comments(arguments)) if as_yaml else describe(recipe), nl=not as_yaml)


@main.command("show")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--stage", default="rl", show_default=True, help="synthesize, curate, rl, evaluate/base, evaluate/sft, evaluate/rl."
)
@click.option("--name", help="A file of trajectories, for instance step_000001. Default: the stage's last file.")
@click.option(
    "--index", default=0, show_default=True, type=click.IntRange(min=0), help="Number of the trajectory in the file, from 0."
)
def show_command(folder: Path, stage: str, name: str | None, index: int) -> None:
    """Print one trajectory of a run or an evaluation.

    It shows turns, calls, outputs, stop reason and reward.
    """
    from aster.evaluation.folder import EvaluationFolder
    from aster.report.show import show
    from aster.run import RunFolder

    if (folder / stage / "evaluation.json").exists():
        folder = folder / stage  # an evaluation of a run
    if (folder / "evaluation.json").exists():
        click.echo(show(EvaluationFolder.load(folder), "attempts", name, index))
    else:
        click.echo(show(RunFolder.load(folder), stage, name, index))


@main.command("doctor")
def doctor_command() -> None:
    """Show how well this machine can isolate code that models write.

    It lists every mechanism, the isolation level they give, what is missing, and what the level does not cover.
    """
    from aster_sandbox import describe_machine

    click.echo(describe_machine())


main.add_command(replay_command)
main.add_command(data_group)
main.add_command(sandbox_group)


@main.group("lab")
def lab_group() -> None:
    """The lab: its problems and its base model, which ASTER includes."""


@lab_group.command("problems")
@click.option("--family", type=click.Choice(["chain", "hunt"]), default="chain", show_default=True)
@click.option("--split", type=click.Choice(["train", "validation", "test"]), default="train", show_default=True)
@click.option("--count", type=click.IntRange(min=1), default=10, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
def problems_command(family: str, split: Literal["train", "validation", "test"], count: int, seed: int) -> None:
    """Print lab problems as JSON lines."""
    import dataclasses
    import json

    from aster.config import Problems
    from aster.environments.lab import generate

    fewest, most = Problems().levels
    for problem in generate({family: 1.0}, (fewest, most), split, count, seed):
        click.echo(json.dumps(dataclasses.asdict(problem), ensure_ascii=False))


@lab_group.command("build-base")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The folder to write the model to.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--tokens", type=click.IntRange(min=1), default=5_000_000, show_default=True, help="Tokens to train on.")
def build_base_command(out: Path, seed: int, tokens: int) -> None:
    """Train the lab's base model from scratch."""
    from aster.lab.build import build_base

    build_base(out, seed, tokens)
    print(f"wrote {out}", file=sys.stderr)


if __name__ == "__main__":
    main()
