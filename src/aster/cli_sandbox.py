"""``aster sandbox``: the sandbox by itself, for other programs and for a person. Weight is imported in the commands."""

from __future__ import annotations

from pathlib import Path

import click

from aster.cli_arguments import recipe_or_defaults


@click.group("sandbox")
def sandbox_group() -> None:
    """The Python sandbox by itself: a service, a prompt."""


@sandbox_group.command("serve")
@click.argument("arguments", nargs=-1, metavar="[RECIPE] [FIELD=VALUE ...]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free one.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Tokens of the clients, one a line: TOKEN or NAME TOKEN. Default: the variable ASTER_SANDBOX_TOKENS.",
)
@click.option("--no-tokens", is_flag=True, help="Let everybody in who can reach the address.")
@click.option("--client-sessions", type=click.IntRange(1), help="Sessions a client may have open. Default: all.")
@click.option("--client-cells", type=click.IntRange(1), default=256, show_default=True, help="Cells a client may run at once.")
@click.option(
    "--client-queue", type=click.IntRange(0), default=1024, show_default=True, help="Cells that may wait beyond those."
)
@click.option("--queue-seconds", type=click.FloatRange(0), default=5.0, show_default=True, help="Longest wait for a session.")
@click.option("--idle-seconds", type=click.FloatRange(1), default=3600.0, show_default=True, help="Unused sessions are closed.")
@click.option("--body-mb", type=click.IntRange(1, 1024), default=8, show_default=True, help="Largest request, in MiB.")
def serve_command(
    arguments: tuple[str, ...],
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
    """Serve sessions over HTTP until Ctrl-C or SIGTERM.

    The recipe's section `sandbox` says what a session may do. /docs is the page of all requests.
    """
    from aster.core.errors import UserError

    settings = recipe_or_defaults(arguments).sandbox
    if settings.addresses:
        raise UserError("sandbox.addresses: a service runs its sessions itself; leave this empty")
    try:
        from aster_sandbox.service.access import VARIABLE, read_tokens
        from aster_sandbox.service.server import ServiceSettings, is_loopback, serve
    except ModuleNotFoundError as error:
        raise UserError(f"the service needs the package {error.name!r}: pip install 'aster-tir[serve]'") from None
    tokens = {} if no_tokens else read_tokens(token_file)
    if not tokens and not no_tokens and not is_loopback(host):
        raise UserError(f"--host {host}: others can reach this; give --token-file or set {VARIABLE}, or say --no-tokens")
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


@sandbox_group.command("run")
@click.argument("arguments", nargs=-1, metavar="[RECIPE] [FIELD=VALUE ...]")
@click.option("--setup", type=click.Path(path_type=Path), metavar="FILE", help="Python that runs before the first cell.")
def run_command(arguments: tuple[str, ...], setup: Path | None) -> None:
    """Type Python into a session.

    Reads a pipe too. :help lists the commands of the prompt.
    """
    from aster.core.errors import UserError
    from aster_sandbox.repl import run_repl

    source = ""
    if setup is not None:
        try:
            source = setup.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--setup {setup}: cannot be read: {error}") from None
    run_repl(recipe_or_defaults(arguments).sandbox, source)
