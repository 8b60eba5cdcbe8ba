"""The bodies of requests and replies. Field names from ``RunCodeRequest`` on are those of SandboxFusion's protocol."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator

Identifier = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
"""An id of a session or a request, chosen by the client."""


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a string")
    return value


# Models sometimes write lone surrogates ("\ud800") into code; pydantic's str refuses them.
Text = Annotated[str, PlainValidator(_text, json_schema_input_type=str)]


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


# JSON Schema counts 1.0 as an integer. Nothing else is converted: neither "1" nor true.
Whole = Annotated[int, BeforeValidator(_whole)]


# The rules of ``interface.check_environment``, as patterns that the OpenAPI document can show.
Environment = dict[Annotated[str, Field(pattern=r"^[^=\x00]+$")], Annotated[str, Field(pattern=r"^[^\x00]*$")]]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Problem(BaseModel):
    """Why a request was not served."""

    detail: str
    code: Literal["no_session", "no_file"] | None = None
    """Only with status 404: what does not exist."""


class Health(BaseModel):
    status: Literal["ok", "stopping"]
    version: str
    sessions: int
    """Number of open sessions."""
    limit: int
    """Maximum number of open sessions."""


class OpenRequest(Body):
    id: Identifier | None = Field(
        None, description="The id of the new session. Two requests with the same id open one session."
    )
    seed: Whole = Field(0, description="Seeds the session's random numbers.")
    setup: Text = Field("", description="Python that runs before the first cell; tracebacks do not show it.")
    environment: Environment = Field({}, description="Environment variables, in addition to those of every session.")


class Opened(BaseModel):
    id: str


class RunRequest(Body):
    code: Text
    request_id: Identifier | None = Field(
        None, description="Two requests with the same id run the code once; both get the same reply."
    )


class RunReply(BaseModel):
    status: Literal["ok", "error", "timeout", "crashed"]
    output: str
    seconds: float


class ForkRequest(Body):
    id: Identifier | None = Field(None, description="The id of the new session.")
    seed: Whole | None = Field(
        None, description="Seeds the new session's random generators. Without it, they continue as in the first session."
    )


class SeedRequest(Body):
    seed: Whole
    request_id: Identifier | None = Field(
        None, description="As for a run. An id may be used for only one request of a session."
    )


class SessionInfo(BaseModel):
    id: str
    cells: int
    idle_seconds: float


class SessionList(BaseModel):
    sessions: list[SessionInfo]


PATHS = "Paths are in the working directory, or, at the isolation level namespaces, below /tmp."


class RunCodeRequest(BaseModel):
    """SandboxFusion's request. Unknown fields are ignored, as there."""

    model_config = ConfigDict(strict=True)

    code: Text
    language: Annotated[str, Field(max_length=64)] = "python"
    run_timeout: float = Field(30, ge=0, le=86400, description="Seconds, at most sandbox.cell_seconds.")
    compile_timeout: float = Field(
        10, ge=0, le=86400, description="Nothing is compiled; this only adds to the time a request may wait for a session."
    )
    memory_limit_MB: Whole = Field(
        -1,
        ge=-1,
        le=2**31,
        description="Beyond the interpreter's own memory, at most sandbox.memory_mb. -1 means sandbox.memory_mb.",
    )
    stdin: Text | None = None
    files: dict[str, str | None] = Field({}, description=f"Path -> content in base64. {PATHS}")
    fetch_files: list[str] = Field([], description=f"Paths of files to send back. {PATHS}")


class CommandRunResult(BaseModel):
    status: Literal["Finished", "Error", "TimeLimitExceeded"]
    execution_time: float | None = None
    return_code: int | None = None
    stdout: str | None = None
    stderr: str | None = None


class RunCodeResponse(BaseModel):
    status: Literal["Success", "Failed", "SandboxError"]
    message: str = ""
    compile_result: CommandRunResult | None = None
    run_result: CommandRunResult | None = None
    executor_pod_name: str | None = None
    files: dict[str, str] = {}


class RunStatefulCodeRequest(RunCodeRequest):
    session_id: Annotated[str, Field(max_length=200)] | None = Field(
        None, description="Empty: a new session. A session that does not exist is opened."
    )
    request_id: Identifier | None = Field(None, description="As in /v1/sessions/{id}/run. Not part of the original request.")


class RunStatefulCodeResponse(RunCodeResponse):
    session_id: str


class RunJupyterRequest(BaseModel):
    """SandboxFusion's request. Unknown fields are ignored, as there."""

    model_config = ConfigDict(strict=True)

    cells: list[Text]
    cell_timeout: float = Field(
        0, ge=0, le=86400, description="Seconds for each cell, at most sandbox.cell_seconds. 0 means sandbox.cell_seconds."
    )
    total_timeout: float = Field(45, ge=0, le=86400, description="Seconds for all cells together.")
    kernel: Literal["python3"] = "python3"
    files: dict[str, str | None] = Field({}, description=f"Path -> content in base64. {PATHS}")
    fetch_files: list[str] = Field([], description=f"Paths of files to send back. {PATHS}")


class CellRunResult(BaseModel):
    stdout: str
    stderr: str
    display: list[dict[str, Any]]
    """What the cell shows, including its last expression: for each value, its forms by MIME type."""
    error: list[dict[str, Any]]
    """Empty, or one error with ``ename``, ``evalue`` and ``traceback``."""


class RunJupyterResponse(BaseModel):
    status: Literal["Success", "Failed", "SandboxError"]
    message: str = ""
    driver: CommandRunResult | None = None
    cells: list[CellRunResult] = []
    executor_pod_name: str | None = None
    files: dict[str, str] = {}
