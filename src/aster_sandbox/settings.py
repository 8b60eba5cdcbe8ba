"""What a session may do and use."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Mebibytes = Annotated[int, Field(gt=0, le=1 << 30)]
PositiveFloat = Annotated[float, Field(gt=0.0)]


class Settings(BaseModel):
    """The settings of a sandbox. All of its sessions have the same."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    cell_seconds: PositiveFloat = 10.0
    """Wall-clock limit of one cell, in seconds."""
    replay_seconds: PositiveFloat = 60.0
    """Wall-clock limit of a replay, in seconds: of all earlier cells together, when they are run again in a new interpreter.
    Cells that took longer than that at first get twice the time they took."""
    memory_mb: Mebibytes = 1024
    """Address space a session may add to the warm parent's, in MiB."""
    output_characters: Positive = 4000
    """A longer output is cut in its middle."""
    echo: Literal["python", "ipython"] = "python"
    """How the last expression of a cell is printed: as Python's prompt does, on one line, or as IPython does, which breaks long
    containers over several. ``ipython`` needs the package IPython."""
    sessions: Positive = 256
    """Sessions alive at once; more wait."""
    idle_seconds: PositiveFloat = 600.0
    """A session that ran no cell for so long ends its processes; its next cell brings them back, by running the earlier cells
    again."""
    reserve_mb: Annotated[int, Field(ge=0)] = 256
    """Memory of the machine, in MiB, that sessions leave to others. Where less is left, new processes wait, and the
    session that holds most loses its cell."""
    spare_processors: Annotated[int, Field(ge=0)] = 1
    """Processors on which no cell runs while a policy is sampled in this process: so many of those that it may use are left to
    the sampler. One is left for cells in any case."""
    preload: list[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]] = [
        "sympy",
        "numpy",
        "scipy",
        "networkx",
        "mpmath",
    ]
    """Packages loaded in the warm parent, so that a cell's import costs nothing. Others that are installed can be imported all
    the same. What is loaded makes each session's fork dearer."""
    isolation: Literal["auto", "namespaces", "landlock", "rlimits"] = "auto"
    """How sessions are shut in. ``auto`` takes the best level that holds on the machine; a level named here must hold. `aster
    doctor` tells. ``rlimits`` does not isolate."""
    processes: Annotated[int, Field(ge=4)] = 64
    """Processes and threads of a session. Up to two are the sandbox's own."""
    disk_mb: Mebibytes = 256
    """Files of a session in total, in MiB. They are in memory. Held at the level ``namespaces`` alone."""
    file_mb: Mebibytes = 256
    """Size of one file, in MiB."""
    open_files: Annotated[int, Field(ge=512)] = 512
    """Open files of each process of a session."""
    mounts: list[str] = []
    """Files and directories of yours that sessions may read, at the same absolute paths. They can change none of them."""
    addresses: list[Annotated[str, Field(pattern=r"^https?://[^\s/]+/?$")]] = []
    """Services (``aster sandbox serve``) to run the sessions on, for instance ``http://10.0.0.5:8080``; empty: this machine.
    Their token comes from the environment variable ASTER_SANDBOX_TOKEN."""
