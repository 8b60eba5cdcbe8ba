"""The recipes that come with ASTER, and how a recipe is found: by the name of one of them, or by a path.

Imports nothing of weight: the command line's help lists the names.
"""

from __future__ import annotations

import os
from pathlib import Path

from aster.errors import UserError

FOLDER = Path(__file__).parent


def shipped_names() -> list[str]:
    """The names of the recipes in this folder, in alphabetical order."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def locate(recipe: str | Path) -> Path:
    """The file of a recipe.

    A Path is a path. So is a text with a ``/`` or with the ending ``.yaml``, and one that names a file of the current folder.
    Any other text is the name of a shipped recipe. UserError, with the names there are, where it names none or the path leads
    to nothing.
    """
    is_name = isinstance(recipe, str) and "/" not in recipe and not recipe.endswith(".yaml")
    # os.path answers where pathlib raises: for a text too long to be a path, say.
    if os.path.exists(recipe) and not (is_name and os.path.isdir(recipe)):
        return Path(recipe)
    if is_name and recipe in shipped_names():
        return FOLDER / f"{recipe}.yaml"
    raise UserError(
        f"{recipe}: no such recipe; give the path of a file, or the name of one that comes with ASTER: "
        f"{', '.join(shipped_names())}"
    )
