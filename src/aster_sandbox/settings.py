"""The settings of a sandbox."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Mebibytes = Annotated[int, Field(gt=0, le=1 << 30)]
PositiveFloat = Annotated[float, Field(gt=0.0)]


class Settings(BaseModel):
    """The settings of a sandbox; they apply to all its sessions."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    cell_seconds: PositiveFloat = 10.0
    """Wall-clock limit of one cell, in seconds."""
    replay_seconds: PositiveFloat = 60.0
    """Wall-clock limit of a replay, in seconds: running all earlier cells again in a new interpreter. If they took more than
    half of that the first time, the limit is twice the time they took."""
    memory_mb: Mebibytes = 1024
    """Address space that a session may use beyond the prewarmed parent's, in MiB."""
    output_characters: Positive = 4000
    """Maximum length of a cell's output, in characters; a longer one is cut in the middle."""
    echo: Literal["python", "ipython"] = "python"
    """How the last expression of a cell is printed: on one line, as Python's prompt does, or as IPython does, which breaks long
    containers over several lines. ``ipython`` needs the package IPython."""
    sessions: Positive = 256
    """Maximum number of sessions alive at once; more wait."""
    idle_seconds: PositiveFloat = 600.0
    """After so many seconds without a cell, a session's processes end; its next cell restores them by running the earlier cells
    again."""
    reserve_mb: Annotated[int, Field(ge=0)] = 256
    """Memory of the machine that sessions leave free, in MiB. If less is free, new processes wait, and the session that uses
    most memory loses its cell."""
    spare_processors: Annotated[int, Field(ge=0)] = 1
    """Processors that cells leave free while a policy is sampled in the same process. Cells always get at least one."""
    preload: list[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]] = [
        "sympy",
        "numpy",
        "scipy",
        "networkx",
        "mpmath",
    ]
    """Packages imported in advance in the parent process, so that cells import them at no cost. Cells can import other
    installed packages too. Each preloaded package makes starting a session slower."""
    isolation: Literal["auto", "namespaces", "landlock", "rlimits"] = "auto"
    """How sessions are isolated. ``auto`` takes the strongest level that works on this machine; a named level must work, or the
    run fails. `aster doctor` lists them. ``rlimits`` does not isolate."""
    processes: Annotated[int, Field(ge=4)] = 64
    """Processes and threads of a session, including up to two of the sandbox's own."""
    disk_mb: Mebibytes = 256
    """Size of all files of a session together, in MiB. Enforced only at the level ``namespaces``, where files are in memory."""
    file_mb: Mebibytes = 256
    """Size of one file, in MiB."""
    open_files: Annotated[int, Field(ge=512)] = 512
    """Open files of each process of a session."""
    mounts: list[str] = []
    """Files and directories of yours that sessions can read, but not change, at the same absolute paths."""
    addresses: list[Annotated[str, Field(pattern=r"^https?://[^\s/]+/?$")]] = []
    """Services (``aster sandbox serve``) that run the sessions, for instance ``http://10.0.0.5:8080``; empty means this
    machine. The environment variable ASTER_SANDBOX_TOKEN holds their token."""
