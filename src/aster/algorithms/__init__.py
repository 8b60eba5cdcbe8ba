"""The algorithm of RL: advantages, losses and the choice of prompts, as pure functions.

Importing this package imports no torch; :mod:`aster.algorithms.losses` does.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from aster.algorithms.base import Algorithm, Group, Loss, is_equal, to_samples
from aster.algorithms.grpo import Grpo
from aster.algorithms.tokens import LossFunction, LossTokens
from aster.doors import build, load
from aster.errors import UserError

ALGORITHMS = {
    "grpo": "aster.algorithms.grpo:Grpo",
    "gspo": "aster.algorithms.gspo:Gspo",
    "cispo": "aster.algorithms.cispo:Cispo",
}
"""The algorithms that come with ASTER."""


def make_algorithm(use: str, arguments: Mapping[str, Any], fields: Mapping[str, Any], defaults: Mapping[str, Any]) -> Algorithm:
    """The algorithm of a recipe's ``rl.algorithm``.

    ``fields``: the recipe's fields ``rl.clip_low`` to ``rl.normalize_std``, of which a class gets those that its
    ``recipe_fields`` name; ``defaults`` are their defaults. UserError where a field was set that the algorithm does not read,
    or the thing is no algorithm."""
    target = load(use, ALGORITHMS, "rl.algorithm.use")
    if inspect.isfunction(target):
        # A loss of the user's, with GRPO's advantages.
        return Grpo(normalize_std=fields["normalize_std"], loss=Loss(target.__name__, dict(arguments), target))
    taken = inspect.signature(target).parameters if inspect.isclass(target) else {}
    read = [name for name in getattr(target, "recipe_fields", ()) if name in taken]
    ignored = next((name for name, value in fields.items() if name not in read and value != defaults[name]), None)
    if ignored is not None:
        raise UserError(f"rl.{ignored}: the algorithm {use} does not read it; give its own settings in rl.algorithm.arguments")
    found = build(target, {**{name: fields[name] for name in read}, **arguments}, "rl.algorithm")
    if not (callable(getattr(found, "advantages", None)) and isinstance(getattr(found, "loss", None), Loss)):
        raise UserError(
            f"rl.algorithm.use: {use} has not what an algorithm needs: a method advantages(group), and a Loss as loss"
        )
    return found


__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "Group",
    "Grpo",
    "Loss",
    "LossFunction",
    "LossTokens",
    "is_equal",
    "make_algorithm",
    "to_samples",
]
