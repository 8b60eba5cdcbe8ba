"""What commands share that take ``[RECIPE] [FIELD=VALUE ...]``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aster.core.recipe import Recipe


def split_arguments(arguments: tuple[str, ...]) -> tuple[str | None, tuple[str, ...]]:
    """[RECIPE] [FIELD=VALUE ...] as (recipe or None, overrides)."""
    if arguments and "=" not in arguments[0]:
        return arguments[0], arguments[1:]
    return None, arguments


def recipe_or_defaults(arguments: tuple[str, ...]) -> Recipe:
    """The recipe of [RECIPE] [FIELD=VALUE ...]; without RECIPE, the overrides over the defaults. May raise UserError."""
    from aster.core.recipe_file import apply_override, load_recipe, validate_recipe

    path, overrides = split_arguments(arguments)
    if path is not None:
        return load_recipe(path, overrides)
    data: dict[str, object] = {}
    for text in overrides:
        apply_override(data, text)
    return validate_recipe(data, "overrides")
