"""The bodies of requests and replies. The names in the second half are those of SandboxFusion's protocol."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator

Identifier = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
"""Chosen by the client: of a session, of a request."""


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a string")
    return value


# Models write lone surrogates ("\ud800") into code now and then; pydantic's own str refuses them.
Text = Annotated[str, PlainValidator(_text, json_schema_input_type=str)]


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


# To JSON Schema, 1.0 is an integer. Nothing else is turned into one: not "1", not true.
Whole = Annotated[int, BeforeValidator(_whole)]


# As ``interface.check_environment`` has it, in a form that the page can show.
Environment = dict[Annotated[str, Field(pattern=r"^[^=\x00]+$")], Annotated[str, Field(pattern=r"^[^\x00]*$")]]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Problem(BaseModel):
    """Why a request was not served."""

    detail: str
    code: Literal["no_session", "no_file"] | None = None
    """With 404 alone: what there is not."""


class Health(BaseModel):
    status: Literal["ok", "stopping"]
    version: str
    sessions: int
    """Open now."""
    limit: int
    """Sessions that may be open."""


class OpenRequest(Body):
    id: Identifier | None = Field(
        None, description="Name of the new session. A request that is sent twice with one id opens one."
    )
    seed: Whole = Field(0, description="Seeds the session's random numbers.")
    setup: Text = Field("", description="Python that runs before the first cell, hidden.")
    environment: Environment = Field({}, description="Environment variables of the session, beside those that all have.")


class Opened(BaseModel):
    id: str


class RunRequest(Body):
    code: Text
    request_id: Identifier | None = Field(
        None, description="A request that is sent twice with one id runs once; both get the same reply."
    )


class RunReply(BaseModel):
    status: Literal["ok", "error", "timeout", "crashed"]
    output: str
    seconds: float


class ForkRequest(Body):
    id: Identifier | None = Field(None, description="Name of the new session.")
    seed: Whole | None = Field(
        None, description="Seeds the new session's random numbers. Without it they go on as in the first."
    )


class SeedRequest(Body):
    seed: Whole
    request_id: Identifier | None = Field(None, description="As of a run. One id names one request of a session.")


class SessionInfo(BaseModel):
    id: str
    cells: int
    idle_seconds: float


class SessionList(BaseModel):
    sessions: list[SessionInfo]


PATHS = "A path is in the working directory, or below /tmp where the isolation level is namespaces."


class RunCodeRequest(BaseModel):
    """As SandboxFusion's. Fields that are not known are ignored, as there."""

    model_config = ConfigDict(strict=True)

    code: Text
    language: Annotated[str, Field(max_length=64)] = "python"
    run_timeout: float = Field(30, ge=0, le=86400, description="Seconds; sandbox.cell_seconds is the most there is.")
    compile_timeout: float = Field(10, ge=0, le=86400, description="Python is not compiled; adds to the time a request waits.")
    memory_limit_MB: Whole = Field(
        -1, ge=-1, le=2**31, description="Beyond what the interpreter has; sandbox.memory_mb is the most there is. -1: that."
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
        None, description="Empty: a new session. A session that is not there is made."
    )
    request_id: Identifier | None = Field(None, description="As of /v1/sessions/{id}/run. Not in the original.")


class RunStatefulCodeResponse(RunCodeResponse):
    session_id: str


class RunJupyterRequest(BaseModel):
    """As SandboxFusion's. Fields that are not known are ignored, as there."""

    model_config = ConfigDict(strict=True)

    cells: list[Text]
    cell_timeout: float = Field(
        0, ge=0, le=86400, description="Seconds of each cell; sandbox.cell_seconds is the most there is. 0: that."
    )
    total_timeout: float = Field(45, ge=0, le=86400, description="Seconds of all cells together.")
    kernel: Literal["python3"] = "python3"
    files: dict[str, str | None] = Field({}, description=f"Path -> content in base64. {PATHS}")
    fetch_files: list[str] = Field([], description=f"Paths of files to send back. {PATHS}")


class CellRunResult(BaseModel):
    stdout: str
    stderr: str
    display: list[dict[str, Any]]
    """What the cell shows, each by MIME type; its last expression too."""
    error: list[dict[str, Any]]
    """None, or one with ``ename``, ``evalue``, ``traceback``."""


class RunJupyterResponse(BaseModel):
    status: Literal["Success", "Failed", "SandboxError"]
    message: str = ""
    driver: CommandRunResult | None = None
    cells: list[CellRunResult] = []
    executor_pod_name: str | None = None
    files: dict[str, str] = {}
