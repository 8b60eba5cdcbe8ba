"""Find out which isolation mechanisms work on this machine, by trying each in a child process, and choose the level.

``python -m aster_sandbox.isolation`` prints the result as JSON."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aster_sandbox import fonts
from aster_sandbox.cgroups import Groups
from aster_sandbox.errors import SettingsError
from aster_sandbox.isolation import confine, landlock, namespaces, seccomp
from aster_sandbox.isolation.guard import remove_tree
from aster_sandbox.isolation.levels import Level, Limits, Plan
from aster_sandbox.isolation.paths import PACKAGE_ROOT, check_mounts, readable_paths
from aster_sandbox.isolation.syscalls import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    PR_SET_NO_NEW_PRIVS,
    prctl,
    unshare,
)

if TYPE_CHECKING:
    from aster_sandbox.settings import Settings

PROBE_SECONDS = 60.0
CGROUP_TOPS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
NAMESPACE_KINDS = {
    "mount namespaces": CLONE_NEWNS,
    "process namespaces": CLONE_NEWPID,
    "network namespaces": CLONE_NEWNET,
    "IPC namespaces": CLONE_NEWIPC,
}


@dataclass(frozen=True, slots=True)
class Mechanism:
    """One mechanism that isolation can use, and whether it works here."""

    name: str
    works: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Report:
    """The result of the probe."""

    mechanisms: tuple[Mechanism, ...]
    failures: dict[Level, str]
    """Each level that does not work here, with the reason."""
    landlock_abi: int
    seccomp: bool

    @property
    def best(self) -> Level:
        """The strongest level that works here."""
        return next(level for level in Level if level not in self.failures)


@functools.cache
def probe() -> Report:
    """Try every mechanism and level; cached for the life of this process.

    Runs in a new interpreter, because the probe forks and the caller may have threads."""
    environment = {**os.environ, "PYTHONPATH": PACKAGE_ROOT, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-P", "-m", "aster_sandbox.isolation"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PROBE_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        why = f"the probe itself failed: {error} {getattr(error, 'stderr', '') or ''}".strip()
        return Report((Mechanism("the probe", False, why),), {Level.NAMESPACES: why, Level.LANDLOCK: why}, 0, False)
    found = json.loads(done.stdout)
    return Report(
        tuple(Mechanism(**mechanism) for mechanism in found["mechanisms"]),
        {Level(level): why for level, why in found["failures"].items()},
        found["landlock_abi"],
        found["seccomp"],
    )


def choose(demanded: str) -> Level:
    """The level for the setting ``isolation``: the strongest that works for ``auto``, else the one named.

    Raises SettingsError if the named level does not work on this machine."""
    report = probe()
    if demanded == "auto":
        return report.best
    level = Level(demanded)
    if level in report.failures:
        raise SettingsError(
            f"sandbox.isolation: the level {level.value!r} does not work on this machine: {report.failures[level]}; "
            "run `aster doctor` to see what is missing and how to get it"
        )
    return level


def make_plan(settings: Settings, root: str, spare_processors: int = 0, groups: str = "") -> Plan:
    """The plan of a sandbox whose files go below ``root``.

    ``spare_processors``: how many of this process's processors the sessions leave free; they always get at least one.
    Raises SettingsError for a level or a mount that is not possible here."""
    check_mounts(settings.mounts)
    level = choose(settings.isolation)
    report = probe()
    abi = 0 if level is Level.RLIMITS else report.landlock_abi
    root = os.path.realpath(root)
    fonts_folder = os.path.join(root, "fonts") if fonts.is_wanted() else ""
    if fonts_folder:
        os.makedirs(fonts_folder, exist_ok=True)
        os.chmod(fonts_folder, 0o755)  # sessions may run as other users
    readable = readable_paths(settings.preload, settings.mounts)
    if fonts_folder and level is not Level.NAMESPACES:  # there it is mounted at namespaces.FONTS
        readable = (*readable, fonts_folder)
    processors = sorted(os.sched_getaffinity(0))
    # If none is spared, set no affinity: the call may be forbidden, and it would outlast a later change of this process's own.
    left = tuple(processors[-max(1, len(processors) - spare_processors) :]) if spare_processors else ()
    return Plan(
        level,
        root,
        readable,
        abi,
        report.seccomp,
        settings.sessions,
        Limits(settings.processes, settings.disk_mb, settings.file_mb, settings.open_files),
        memory_mb=settings.memory_mb,
        timeout_text=f"the cell ran longer than {settings.cell_seconds:g} s",
        echo=settings.echo,
        groups=groups,
        fonts=fonts_folder,
        preload=tuple(settings.preload),
        processors=left,
    )


def try_everything() -> Report:
    """Run the probe in this process. It forks, so the process must have only one thread."""
    mechanisms = [
        Mechanism("Linux", True, f"{platform.release()}, {platform.machine()}, {' '.join(platform.libc_ver())}".strip(", "))
    ]

    def add(name: str, why_not: str, detail: str = "") -> bool:
        mechanisms.append(Mechanism(name, not why_not, why_not or detail))
        return not why_not

    user_namespaces = add("user namespaces", _attempt(lambda: unshare(CLONE_NEWUSER)))
    for name, kind in NAMESPACE_KINDS.items():
        add(name, _attempt(functools.partial(unshare, CLONE_NEWUSER | kind)) if user_namespaces else "needs user namespaces")
    try:
        abi = landlock.abi()
        add("Landlock", "", f"ABI {abi}")
    except OSError as error:
        abi = 0
        add("Landlock", str(error))
    filters = add("seccomp", _attempt(_try_seccomp) if seccomp.available() else f"not supported on {platform.machine()}")
    failures = {}
    root = tempfile.mkdtemp(prefix="aster-probe-")
    try:
        readable = readable_paths()
        for level in (Level.NAMESPACES, Level.LANDLOCK):
            if not filters:
                failures[level] = "seccomp is missing"
            elif level is Level.LANDLOCK and not abi:
                failures[level] = "Landlock is missing"
            else:
                limits = Limits(processes=16, disk_mb=1, file_mb=1, open_files=64)
                plan = Plan(level, root, readable, abi, True, 1, limits)
                failures[level] = _attempt(functools.partial(_try_level, plan))
    finally:
        remove_tree(root)
    add("private file system", failures[Level.NAMESPACES])
    mechanisms += [_autogroups(), _cgroup()]
    return Report(tuple(mechanisms), {level: why for level, why in failures.items() if why}, abi, filters)


def _attempt(action: Callable[[], object]) -> str:
    """Call ``action`` in a child process. Returns why it failed, or an empty string if it succeeded."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        why = ""
        try:
            action()
        except BaseException as error:  # noqa: BLE001 - the caller wants the reason, whatever it is
            why = _reason(error)
        os.write(writing, (why or "fine").encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        result = file.read().decode()
    os.waitpid(child, 0)
    return "" if result == "fine" else result or "the child process that tried it died"


def _reason(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) or type(error).__name__


def _try_seccomp() -> None:
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    seccomp.install()
    if not seccomp.refuses_unshare():
        raise OSError("the kernel accepted a filter but does not apply it")


def _try_level(plan: Plan) -> None:
    """Set up a trial session at the plan's level and check that it can write its files and cannot read /proc."""
    if plan.level is Level.NAMESPACES:
        parent = os.pidfd_open(os.getppid())
        namespaces.enter(plan, parent)
    scratch = confine.make_scratch(plan, "trial")
    reading, writing = os.pipe()
    session, init, _ = confine.fork_session(plan)
    if session == 0:
        try:
            confine.confine_session(plan, scratch)
            with open("file", "w") as file:
                file.write("written")
            with open(os.__file__) as file:
                file.read(1)
            for path in ("/proc/1/environ", "/proc/self/environ"):
                with contextlib.suppress(OSError), open(path):
                    raise RuntimeError(f"{path} can be read inside")
        except BaseException as error:  # noqa: BLE001 - the caller wants the reason, whatever it is
            os.write(writing, _reason(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    _, status = os.waitpid(session, 0)
    if init:
        os.kill(init, signal.SIGKILL)
    with open(reading, "rb") as file:
        why = file.read().decode()
    if why or status:
        raise OSError(why or f"a trial session ended with wait status {status}")


def _autogroups() -> Mechanism:
    """Whether the kernel gives each process session, and so each session of the sandbox, one share of the processor."""
    name = "autogroups"
    try:
        with open("/proc/sys/kernel/sched_autogroup_enabled") as file:
            if file.read().strip() == "0":
                return Mechanism(name, False, "kernel.sched_autogroup_enabled is 0")
        with open("/proc/self/cgroup") as file:
            groups = [line.strip().split(":", 2) for line in file]
    except OSError as error:
        return Mechanism(name, False, str(error))
    for _, controllers, path in groups:
        places = [Path(f"{top}{path}") for top in CGROUP_TOPS] if not controllers else []
        weighed = any((above / "cpu.weight").exists() for place in places for above in (place, *place.parents))
        if weighed or ("cpu" in controllers.split(",") and path != "/"):
            return Mechanism(name, False, f"the control group {path} has its own processor share, which overrides autogroups")
    return Mechanism(name, True, "each session has one share of the processor")


def _cgroup() -> Mechanism:
    """Whether each session can have a control group that counts its memory."""
    groups = Groups.find()
    if groups is None:
        return Mechanism("cgroup", False, "this process may not create control groups that count memory")
    groups.close()
    return Mechanism("cgroup", True, "memory is counted per session, including what the kernel holds for it")
