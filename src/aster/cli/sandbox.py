"""``aster sandbox``: the sandbox by itself, for other programs and for a person."""

from __future__ import annotations

import click

from aster.cli.arguments import recipe_or_defaults
from aster_sandbox import make_commands


@click.group("sandbox")
def sandbox_group() -> None:
    """The Python sandbox by itself: a service, a prompt."""


for _command in make_commands(
    lambda arguments: recipe_or_defaults(arguments).sandbox,
    "[RECIPE] [FIELD=VALUE ...]",
    "The recipe's section `sandbox` says what a session may do.",
):
    sandbox_group.add_command(_command)
