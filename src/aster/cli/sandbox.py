"""``aster sandbox``: the sandbox without the rest of ASTER, as a service and as a prompt."""

from __future__ import annotations

import click

from aster.cli.arguments import recipe_or_defaults
from aster_sandbox import make_commands


@click.group("sandbox")
def sandbox_group() -> None:
    """Use the Python sandbox without training: as a service, or at a prompt."""


for _command in make_commands(
    lambda arguments: recipe_or_defaults(arguments).sandbox,
    "[RECIPE] [FIELD=VALUE ...]",
    "The recipe's section `sandbox` sets what a session may do.",
):
    sandbox_group.add_command(_command)
