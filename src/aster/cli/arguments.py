"""Shared code of the commands that take ``[RECIPE] [FIELD=VALUE ...]``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from aster.recipes import locate, shipped_names

if TYPE_CHECKING:
    from aster.config.comments import Comments
    from aster.config.recipe import Recipe


Command = TypeVar("Command", bound=Callable[..., Any])
RECIPES_HELP = f"RECIPE is a YAML file, or the name of a recipe that comes with ASTER: {', '.join(shipped_names())}."
FOLDER_HELP = "The run folder. Default: runs/NAME-COLD_START-sSEED, from the recipe."


def folder_option(command: Command) -> Command:
    """Add the option ``--run DIR`` to a command."""
    return click.option("--run", "folder", type=click.Path(path_type=Path), metavar="DIR", help=FOLDER_HELP)(command)


def default_folder(recipe: Recipe) -> Path:
    """The default run folder of a recipe."""
    from aster.config import cold_start_name

    return Path("runs") / f"{recipe.name}-{cold_start_name(recipe.cold_start)}-s{recipe.seed}"


def run_one_stage(
    name: str, recipe: str, overrides: tuple[str, ...], folder: Path | None, *, retry_faults: bool = False
) -> None:
    """Run one stage of a recipe. ``retry_faults``: a finished evaluation repeats its faulty attempts."""
    from aster.config.file import load_recipe
    from aster.run import RunFolder

    resolved = load_recipe(recipe, overrides)
    with RunFolder.open(folder or default_folder(resolved), resolved) as run:
        from aster.pipeline import run_stage

        if retry_faults:
            from aster.evaluate import reopen_faulty

            reopen_faulty(run)
        run_stage(name, resolved, run)


def split_arguments(arguments: tuple[str, ...]) -> tuple[str | None, tuple[str, ...]]:
    """Split ``[RECIPE] [FIELD=VALUE ...]`` into (recipe or None, overrides)."""
    if arguments and "=" not in arguments[0]:
        return arguments[0], arguments[1:]
    return None, arguments


def recipe_or_defaults(arguments: tuple[str, ...], base: dict[str, Any] | None = None) -> Recipe:
    """The recipe of ``[RECIPE] [FIELD=VALUE ...]``. Without RECIPE, the overrides are applied to ``base``, or to the defaults.
    Raises UserError."""
    from aster.config.file import apply_override, load_recipe, validate_recipe

    path, overrides = split_arguments(arguments)
    if path is not None:
        return load_recipe(path, overrides)
    data: dict[str, Any] = copy.deepcopy(base) if base is not None else {}
    for text in overrides:
        apply_override(data, text)
    return validate_recipe(data, "overrides")


def recipe_comments(arguments: tuple[str, ...]) -> Comments:
    """The comments in the file of ``[RECIPE] [FIELD=VALUE ...]``, without those at fields that the overrides change. Raises
    UserError."""
    from aster.config.comments import Comments, read_comments
    from aster.config.file import read_recipe

    path, overrides = split_arguments(arguments)
    if path is None:
        return Comments()
    return read_comments(read_recipe(locate(path))).without([text.partition("=")[0] for text in overrides])
