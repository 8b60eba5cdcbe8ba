"""The command line: ``python -m aster_sandbox serve | run | doctor``. Large packages are imported only when a command runs.

Another program's command line can take ``serve`` and ``run`` from :func:`make_commands` and read the settings in its own way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aster_sandbox.errors import SettingsError

if TYPE_CHECKING:
    from aster_sandbox.settings import Settings

FIELDS = "[FIELD=VALUE ...]"
SERVICE_PACKAGES = ("fastapi", "prometheus-client", "uvicorn")
"""What the service needs beyond what sessions need."""
SOURCE = "FIELD=VALUE arguments are settings of the sandbox, for instance cell_seconds=5."


def make_commands(
    read_settings: Callable[[tuple[str, ...]], Settings], metavar: str = FIELDS, source: str = SOURCE
) -> list[click.Command]:
    """Make the commands ``serve`` and ``run``.

    ``read_settings`` turns their arguments into settings; ``metavar`` and ``source`` describe the arguments in the help. The
    commands raise SettingsError, with a message of one line, for errors of the user; the caller's group should print it.
    """

    @click.command(
        "serve", help=f"Serve sessions over HTTP until Ctrl-C or SIGTERM.\n\n{source} All requests are documented at /docs."
    )
    @click.argument("arguments", nargs=-1, metavar=metavar)
    @click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
    @click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 picks a free port.")
    @click.option(
        "--token-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="The clients' tokens, one per line: TOKEN or NAME TOKEN. Default: the variable ASTER_SANDBOX_TOKENS.",
    )
    @click.option("--no-tokens", is_flag=True, help="Serve everybody who can reach the address.")
    @click.option("--client-sessions", type=click.IntRange(1), help="Sessions that a client may have open. Default: all.")
    @click.option(
        "--client-cells", type=click.IntRange(1), default=256, show_default=True, help="Cells that a client may run at once."
    )
    @click.option(
        "--client-queue",
        type=click.IntRange(0),
        default=1024,
        show_default=True,
        help="Further cells that may wait.",
    )
    @click.option("--queue-seconds", type=_Seconds(0), default=5.0, show_default=True, help="Longest wait for a session.")
    @click.option(
        "--idle-seconds", type=_Seconds(1), default=3600.0, show_default=True, help="Close sessions unused for so long."
    )
    @click.option(
        "--body-mb", type=click.IntRange(1, 1024), default=8, show_default=True, help="Largest request or file, in MiB."
    )
    def serve_command(arguments: tuple[str, ...], **options: Any) -> None:
        _serve(read_settings(arguments), **options)

    @click.command(
        "run", help=f"Run a Python prompt in a session.\n\n{source} Input may be piped. :help lists the prompt's commands."
    )
    @click.argument("arguments", nargs=-1, metavar=metavar)
    @click.option("--setup", type=click.Path(path_type=Path), metavar="FILE", help="Python that runs before the first cell.")
    def run_command(arguments: tuple[str, ...], setup: Path | None) -> None:
        from aster_sandbox.repl import run_repl

        run_repl(read_settings(arguments), _read_setup(setup))

    return [serve_command, run_command]


class _Seconds(click.FloatRange):
    """A number of seconds. Refuses NaN, which click accepts in every range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Convert the option's text to a number, or fail with click's error."""
        seconds: float = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        return seconds


def _serve(
    settings: Settings,
    host: str,
    port: int,
    token_file: Path | None,
    no_tokens: bool,
    client_sessions: int | None,
    client_cells: int,
    client_queue: int,
    queue_seconds: float,
    idle_seconds: float,
    body_mb: int,
) -> None:
    if settings.addresses:
        raise SettingsError("sandbox.addresses must be empty for `serve`: a service runs its sessions on this machine")
    try:
        from aster_sandbox.service.access import VARIABLE, read_tokens
        from aster_sandbox.service.server import ServiceSettings, is_loopback, serve
    except ModuleNotFoundError as error:
        missing = f"the service needs the package {error.name}, which is not installed"
        raise SettingsError(f"{missing}; install what it needs (pip install {' '.join(SERVICE_PACKAGES)})") from None
    tokens = {} if no_tokens else read_tokens(token_file)
    if not tokens and not no_tokens and not is_loopback(host):
        raise SettingsError(
            f"--host {host}: other machines can reach this address; use --token-file, set {VARIABLE}, or use --no-tokens"
        )
    service = ServiceSettings(
        host=host,
        port=port,
        client_sessions=client_sessions,
        client_cells=client_cells,
        client_queue=client_queue,
        queue_seconds=queue_seconds,
        idle_seconds=idle_seconds,
        body_bytes=body_mb << 20,
    )
    serve(service, settings, tokens, click.echo)


def _read_setup(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--setup {path}: cannot read the file: {error}") from None


def read_fields(arguments: tuple[str, ...]) -> Settings:
    """Settings from FIELD=VALUE arguments; values are YAML. Raises SettingsError, in one line, for an invalid argument."""
    import difflib

    import yaml

    from aster_sandbox.settings import Settings
    from aster_sandbox.supervisor import make_settings

    fields: dict[str, Any] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals:
            raise SettingsError(f"{argument!r}: write it as FIELD=VALUE, for instance cell_seconds=5")
        name = name.removeprefix("sandbox.")  # recipes and messages write it so
        if name not in Settings.model_fields:
            nearest = difflib.get_close_matches(name, Settings.model_fields, n=1, cutoff=0.0)[0]
            raise SettingsError(f"unknown field {name!r}; the nearest valid name is {nearest!r}")
        try:
            fields[name] = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError):
            raise SettingsError(f"{argument!r}: the value is not valid YAML") from None
    return make_settings(**fields)


class _Commands(click.Group):
    """Prints one line for errors of the user and for Ctrl-C. Any other exception is a bug and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Exits with 2 on a SettingsError and with 130 on Ctrl-C."""
        try:
            return super().invoke(ctx)
        except SettingsError as error:
            click.echo(f"aster_sandbox: error: {' '.join(str(error).split())}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            click.echo("aster_sandbox: interrupted", err=True)
            ctx.exit(130)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """Stateful, isolated Python sessions: at a prompt or over HTTP.

    From Python: `from aster_sandbox import Sandbox`.
    """


for _command in make_commands(read_fields):
    main.add_command(_command)


@main.command("doctor")
def doctor_command() -> None:
    """Show how well this machine can isolate sessions.

    Lists every mechanism, the resulting isolation level, what is missing and what the level does not cover.
    """
    from aster_sandbox.isolation.doctor import describe_machine

    click.echo(describe_machine())
