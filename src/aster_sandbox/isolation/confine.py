"""Confinement of the zygote and of each session process: the order of the steps at every level, limits and user ids."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import random
import resource
import signal
import sys
from resource import setrlimit  # by name: the zygote replaces the module's for cells

from aster_sandbox.isolation import landlock, namespaces, seccomp
from aster_sandbox.isolation.guard import remove_tree, start_guard
from aster_sandbox.isolation.levels import Level, Plan
from aster_sandbox.isolation.syscalls import (
    CAP_DAC_READ_SEARCH,
    PR_SET_CHILD_SUBREAPER,
    PR_SET_DUMPABLE,
    PR_SET_KEEPCAPS,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_PDEATHSIG,
    drop_bounding_set,
    hold_capabilities,
    prctl,
)

FIRST_ID, LAST_ID = 61184, 65519
"""The range of user ids that systemd reserves for dynamic service users: no person or installed program has one of them."""
PROCESSES_PER_SESSION = 4
"""Processes allowed for each other session where the kernel counts all sessions of a user together."""
WORK = "work"
_ids = itertools.count(random.randrange(LAST_ID - FIRST_ID + 1))
_parent = 0
"""Pid of the zygote, in a session without its own process namespace: the session must not outlive it."""


def enter_zygote(plan: Plan, supervisor: int) -> Plan:
    """Start a guard between the supervisor (this process's parent) and this process, and enter the plan's isolation level.

    Returns in a descendant of the caller, which becomes the zygote, with the plan completed by what was found out on the way.
    Everything below the guard ends when the supervisor ends. Call it with one thread, and before importing large libraries.
    """
    if plan.processors:
        os.sched_setaffinity(0, plan.processors)
    guard = start_guard(supervisor, plan.root, plan.groups)
    # A cell that starts must not preempt the supervisor, which still has to send the next ones.
    with contextlib.suppress(OSError):  # some containers forbid it, and a process may not leave the idle class
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    if plan.level is Level.NAMESPACES:
        namespaces.enter(plan, guard)
        plan = dataclasses.replace(plan, fonts=namespaces.FONTS if plan.fonts else "")
    else:
        prctl(PR_SET_CHILD_SUBREAPER, 1)  # to reap what sessions leave behind
        plan = _with_users(plan)
    os.close(guard)
    if plan.seccomp:
        seccomp.cached_program(_extra_denied(plan))
    return plan


def fork_session(plan: Plan) -> tuple[int, int, int]:
    """Fork a session process, which ends with this one. Returns (pid, init, pidfd of init); in the child the pid is 0.

    At NAMESPACES the child gets its own process namespace; killing ``init``, its first process, ends everything in it. At other
    levels ``init`` is 0 and its pidfd is -1."""
    global _parent
    if plan.level is Level.NAMESPACES:
        return namespaces.fork_into_new_pid_namespace()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _parent = parent
        die_with_parent(parent)
    return pid, 0, -1


def make_scratch(plan: Plan, name: str) -> str:
    """Create the working directory of a new session; call it before the fork. Returns its path as the session will see it.

    At NAMESPACES ``confine_session`` creates it. The session may also write to the directory that contains it.
    """
    if plan.level is Level.NAMESPACES:
        return namespaces.SCRATCH
    base = os.path.join(plan.root, name)
    path = os.path.join(base, WORK)
    for directory in (base, path):
        os.mkdir(directory, 0o700)
        if plan.session_ids:
            identity = FIRST_ID + next(_ids) % (LAST_ID - FIRST_ID + 1) if directory == base else os.stat(base).st_uid
            os.chown(directory, identity, identity)
    return path


def remove_scratch(plan: Plan, name: str) -> None:
    """Remove the files of a session whose processes have all ended. Slow if there are many."""
    if plan.level is not Level.NAMESPACES:  # there the tmpfs ended with the last process
        remove_tree(os.path.join(plan.root, name))


def confine_session(plan: Plan, scratch: str) -> None:
    """Confine this process and its future children for good, in the working directory ``scratch``.

    Call it before any untrusted code runs. /proc is out of reach afterwards.
    """
    if plan.level is Level.NAMESPACES:
        namespaces.enter_session(plan)
    os.chdir(scratch)
    owner = os.stat(".").st_uid
    ruleset = _ruleset(plan, scratch) if plan.landlock_abi else None
    _set_limits(plan)
    kept = 1 << CAP_DAC_READ_SEARCH if plan.keep_reading else 0
    drop_bounding_set(kept)
    if plan.session_ids:
        _become(owner, kept)
    hold_capabilities(kept)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_DUMPABLE, 0)
    if plan.level is not Level.NAMESPACES:
        die_with_parent(_parent)  # again, because the change of user cleared it
    if ruleset is not None:
        ruleset.enforce()
    if plan.seccomp:
        seccomp.install(_extra_denied(plan))


def _extra_denied(plan: Plan) -> tuple[str, ...]:
    """More system calls to refuse at this level: those that reach the host's files and services and that Landlock does not
    control."""
    if plan.level is Level.NAMESPACES:
        return ()
    if plan.level is Level.RLIMITS or plan.session_ids:
        return seccomp.SOCKETS
    return seccomp.SOCKETS + seccomp.FILE_RIGHTS + (seccomp.TRUNCATION if plan.landlock_abi < 3 else ())


def _ruleset(plan: Plan, scratch: str) -> landlock.Ruleset:
    ruleset = landlock.Ruleset(plan.landlock_abi)
    ruleset.allow_reading(plan.readable)
    ruleset.allow_devices(namespaces.DEVICES)
    if plan.level is Level.NAMESPACES:
        ruleset.allow_reading(["/etc"])  # the sandbox's own: namespaces.py wrote it
        ruleset.allow_writing(namespaces.SESSION_TMP)
        ruleset.allow_writing(namespaces.SHARED_MEMORY)
    else:
        ruleset.allow_reading(namespaces.COPIED)
        ruleset.allow_writing(os.path.dirname(scratch))
    return ruleset


def _set_limits(plan: Plan) -> None:
    limits = plan.limits
    if plan.level is Level.NAMESPACES or plan.session_ids:
        processes = limits.processes
    else:
        processes = plan.tasks + PROCESSES_PER_SESSION * plan.sessions + limits.processes
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_FSIZE, limits.file_mb << 20),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        setrlimit(kind, (value, value))


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent, whose pid is ``parent``, ends."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before prctl
        os._exit(1)


def _become(identity: int, kept: int) -> None:
    """Change from root to another user and group. Capabilities in the mask ``kept`` stay permitted."""
    prctl(PR_SET_KEEPCAPS, 1 if kept else 0)
    os.setgroups([])
    os.setresgid(identity, identity, identity)
    os.setresuid(identity, identity, identity)


def _with_users(plan: Plan) -> Plan:
    """The plan with its user ids decided: sessions get their own if this is root, else the user's current tasks are counted."""
    if os.geteuid() != 0:
        return dataclasses.replace(plan, tasks=_tasks(os.geteuid()))
    os.chmod(plan.root, 0o711)
    for keep_reading in (False, True):
        candidate = dataclasses.replace(plan, session_ids=True, keep_reading=keep_reading)
        if _interpreter_is_readable(candidate):
            return candidate
    return plan


def _interpreter_is_readable(plan: Plan) -> bool:
    """Whether a session with its own user id could read the interpreter, the standard library and this package."""
    child = os.fork()
    if child == 0:
        try:
            kept = 1 << CAP_DAC_READ_SEARCH if plan.keep_reading else 0
            _become(FIRST_ID, kept)
            hold_capabilities(kept)
            for path in (sys.executable, os.__file__, __file__):
                os.close(os.open(path, os.O_RDONLY))
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def _tasks(user: int) -> int:
    """The number of processes and threads that a user has now."""
    count = 0
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{entry}").st_uid == user:
                count += len(os.listdir(f"/proc/{entry}/task"))
        except FileNotFoundError:  # it has ended in the meantime
            continue
    return count
