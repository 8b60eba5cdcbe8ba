"""The routes of the service."""

from __future__ import annotations

import secrets
import time
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from starlette.routing import Route

from aster_sandbox import __version__
from aster_sandbox.service import fusion, notebook
from aster_sandbox.service.access import Account, Refused
from aster_sandbox.service.metrics import CONTENT_TYPE, Metrics
from aster_sandbox.service.middleware import PUBLIC_PATHS
from aster_sandbox.service.registry import Registry
from aster_sandbox.service.schemas import (
    ForkRequest,
    Health,
    Identifier,
    Opened,
    OpenRequest,
    Problem,
    RunCodeRequest,
    RunCodeResponse,
    RunJupyterRequest,
    RunJupyterResponse,
    RunReply,
    RunRequest,
    RunStatefulCodeRequest,
    RunStatefulCodeResponse,
    SeedRequest,
    SessionInfo,
    SessionList,
)

REASONS = {
    400: "The body is not valid JSON.",
    401: "The token is missing or wrong.",
    404: "There is no such session (`code` is `no_session`), or no such file (`no_file`).",
    408: "The body took too long to arrive.",
    409: "The id is already used for something else.",
    410: "The reply to this request is no longer kept. The cell ran once.",
    413: "The body, or the file, is too large.",
    422: "The request is invalid, or the session may not write the file.",
    424: "The sandbox itself failed, or the session's setup raised. Sending the request again will not help.",
    429: "The client has reached a limit. Retry-After says when to try again.",
    503: "The service is full, or is shutting down. Retry-After says when to try again.",
    504: "Means the same as 429 and 503: clients of this request repeat only 504. Retry-After says when to try again.",
}
DESCRIPTION = """Stateful Python sessions for agents. Send `Authorization: Bearer TOKEN`."""

SessionId = Annotated[str, Path(description="The session's id.")]
FilePath = Annotated[
    str,
    Path(description="Relative to the working directory, or absolute: `%2Ftmp%2Fx` or `/tmp/x` after the slash.", min_length=1),
]


BYTES = "application/octet-stream"
_BINARY = {"type": "string", "format": "binary"}


def _account(request: Request) -> Account:
    account = request.scope["account"]
    assert isinstance(account, Account)
    return account


Client = Annotated[Account, Depends(_account)]


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem, "description": REASONS[status]} for status in sorted({401, 408, 413, *statuses})}


_DEFAULTS, _FORK_DEFAULTS = OpenRequest.model_validate({}), ForkRequest.model_validate({})
"""Used for requests without a body."""
_OPENING = (400, 409, 422, 424, 429, 503)
_RUNNING = (400, 404, 409, 410, 422, 424, 429, 503)


def make_app(registry: Registry, metrics: Metrics, file_bytes: int) -> FastAPI:
    """The application, without the middleware. ``file_bytes``: size of the largest file that is sent."""
    app = FastAPI(title="ASTER sandbox", version=__version__, description=DESCRIPTION, redoc_url=None)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(405, _wrong_method)

    @app.get("/health", tags=["service"], responses={status: {"model": Problem} for status in (408, 413)})
    async def health() -> Health:
        """Whether the service accepts sessions, and how many are open."""
        status = "stopping" if registry.stopping else "ok"
        return Health.model_validate(
            {
                "status": status,
                "version": __version__,
                "sessions": registry.open_sessions,
                "limit": registry.settings.sessions,
            }
        )

    @app.get("/metrics", tags=["service"], response_class=Response, responses=_METRICS | _problems())
    async def show_metrics(_: Client) -> Response:
        """Counters in Prometheus' text format."""
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/v1/settings", tags=["service"], responses=_problems())
    async def settings(_: Client) -> dict[str, Any]:
        """The sandbox settings of the service, with the isolation level in use."""
        return registry.settings.model_dump(mode="json")

    @app.get("/v1/sessions", tags=["sessions"], responses=_problems())
    async def sessions(client: Client) -> SessionList:
        """The client's own sessions."""
        now = time.monotonic()
        return SessionList(
            sessions=[
                SessionInfo(id=entry.id, cells=entry.cells, idle_seconds=0.0 if entry.busy else round(now - entry.used, 3))
                for entry in registry.of(client)
            ]
        )

    @app.post("/v1/sessions", tags=["sessions"], status_code=201, responses=_AGAIN | _problems(*_OPENING))
    async def open_session(client: Client, response: Response, body: OpenRequest = _DEFAULTS) -> Opened:
        """Open a session. Without a body the service chooses the id, and the seed is 0."""
        session_id = body.id or secrets.token_hex(16)
        if not await registry.open(client, session_id, body.seed, body.setup, body.environment):
            response.status_code = 200
        return Opened(id=session_id)

    @app.post("/v1/sessions/{session_id}/run", tags=["sessions"], responses=_problems(*_RUNNING))
    async def run(client: Client, session_id: SessionId, body: RunRequest) -> RunReply:
        """Run one cell. The cells of a session run one at a time."""
        call = await registry.run(client, session_id, body.code, body.request_id)
        return RunReply.model_validate({"status": call.status.value, "output": call.output, "seconds": round(call.seconds, 6)})

    @app.post(
        "/v1/sessions/{session_id}/fork", tags=["sessions"], status_code=201, responses=_AGAIN | _problems(404, *_OPENING)
    )
    async def fork(client: Client, session_id: SessionId, response: Response, body: ForkRequest = _FORK_DEFAULTS) -> Opened:
        """Open a second, independent session with the same state."""
        child = body.id or secrets.token_hex(16)
        if not await registry.fork(client, session_id, child, body.seed):
            response.status_code = 200
        return Opened(id=child)

    @app.post("/v1/sessions/{session_id}/seed", tags=["sessions"], status_code=204, responses=_problems(*_RUNNING))
    async def seed(client: Client, session_id: SessionId, body: SeedRequest) -> None:
        """Seed a session's random generators again."""
        await registry.reseed(client, session_id, body.seed, body.request_id)

    @app.delete("/v1/sessions/{session_id}", tags=["sessions"], status_code=204, responses=_problems(404))
    async def close(client: Client, session_id: SessionId) -> None:
        """End a session, and the cell that runs in it."""
        await registry.close(client, session_id)

    @app.put(
        "/v1/sessions/{session_id}/files/{path:path}",
        tags=["sessions"],
        status_code=204,
        responses=_problems(*_RUNNING),
        openapi_extra={"requestBody": {"content": {BYTES: {"schema": _BINARY}}, "description": "The file's content."}},
    )
    async def upload(
        client: Client, session_id: SessionId, path: FilePath, request: Request, request_id: Identifier | None = None
    ) -> None:
        """Write a file in a session, replacing one that exists. Creates missing folders."""
        await registry.upload(client, session_id, path, await request.body(), request_id)

    @app.get(
        "/v1/sessions/{session_id}/files/{path:path}",
        tags=["sessions"],
        response_class=Response,
        responses=_FILE | _problems(404, 422, 424, 429),
    )
    async def download(client: Client, session_id: SessionId, path: FilePath) -> Response:
        """The content of a file in a session."""
        return Response(await registry.download(client, session_id, path, file_bytes), media_type=BYTES)

    @app.post("/run_code", tags=["SandboxFusion"], responses=_problems(400, 422, 504))
    async def run_code(client: Client, body: RunCodeRequest) -> RunCodeResponse:
        """Run a script. SandboxFusion's request."""
        return await fusion.run_code(registry, client, body)

    @app.post("/run_stateful_code", tags=["SandboxFusion"], responses=_problems(400, 409, 410, 422, 504))
    async def run_stateful_code(client: Client, body: RunStatefulCodeRequest) -> RunStatefulCodeResponse:
        """Run code in a session that keeps its state. The request of ASTER's community reproduction."""
        return await fusion.run_stateful_code(registry, client, body)

    @app.post("/run_jupyter", tags=["SandboxFusion"], responses=_problems(400, 422, 504))
    async def run_jupyter(client: Client, body: RunJupyterRequest) -> RunJupyterResponse:
        """Run a notebook's cells in order. SandboxFusion's request."""
        return await notebook.run_jupyter(registry, client, body)

    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


_FILE: dict[int | str, dict[str, Any]] = {200: {"content": {BYTES: {"schema": _BINARY}}, "description": "The file's content."}}
_METRICS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
_AGAIN: dict[int | str, dict[str, Any]] = {200: {"model": Opened, "description": "An earlier request opened it."}}


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refused)
    headers = {} if error.retry_seconds is None else {"Retry-After": str(error.retry_seconds)}
    body = {"detail": str(error)} | ({} if error.code is None else {"code": error.code})
    return JSONResponse(body, error.status, headers)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """Reply with the first error, in one line. It does not quote the request, which may be long or no valid text."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    text = f"{where}: {first['msg']}".encode("utf-8", "backslashreplace").decode()
    if first["loc"][0] == "body" and not _says_json(request):
        text = f"the body was not read as JSON; send the header Content-Type: application/json ({text})"
    return JSONResponse({"detail": text}, 422)


def _says_json(request: Request) -> bool:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


async def _wrong_method(request: Request, _: Exception) -> JSONResponse:
    """Reply with all methods of the path. (Starlette names only those of one route.)"""
    app = request.app
    routes = [route for route in app.routes if isinstance(route, Route) and route.path_regex.match(request.url.path)]
    allowed = sorted({method for route in routes for method in route.methods or ()})
    return JSONResponse({"detail": f"method not allowed here; use {', '.join(allowed)}"}, 405, {"Allow": ", ".join(allowed)})


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, including what the middleware does."""
    if app.openapi_schema is None:
        page = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schemes = {"bearer": {"type": "http", "scheme": "bearer"}, "basic": {"type": "http", "scheme": "basic"}}
        page.setdefault("components", {})["securitySchemes"] = schemes
        for path, operations in page["paths"].items():
            for operation in operations.values():
                if path not in PUBLIC_PATHS:
                    operation["security"] = [{name: []} for name in schemes]
                for status, reply in operation["responses"].items():
                    if status in ("429", "503", "504"):
                        reply["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
        app.openapi_schema = page
    return app.openapi_schema
