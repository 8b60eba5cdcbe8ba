"""The level NAMESPACES: the namespaces and mounts of the zygote and of each session.

The zygote gets user, mount, process, network, IPC, UTS (host name) and cgroup namespaces. Its root is a small tmpfs with
read-only copies of the mounts that Python needs, at the same paths. If it was started as root it first becomes nobody, so that
root inside maps to nobody outside. Each session then gets its own process namespace, its own copy of the mounts with a private
/tmp, and a user namespace in which it has no capabilities.
"""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

from aster_sandbox.isolation.cradle import Cradle, start_cradle
from aster_sandbox.isolation.guard import die_with, mirror
from aster_sandbox.isolation.levels import Plan
from aster_sandbox.isolation.syscalls import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_REC,
    PR_SET_DUMPABLE,
    libc,
    mount,
    move_mount,
    open_tree,
    pivot_root_here,
    prctl,
    set_mount_attributes,
    setns,
    unshare,
)

NOBODY = 65534
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
FONTS = "/etc/matplotlib"
"""Where the plan's folder ``fonts`` is mounted."""
COPIED = ("/etc/ld.so.cache", "/etc/localtime")
"""Small files that are copied into the new root."""
SESSION_TMP = "/tmp"
SHARED_MEMORY = "/dev/shm"
SCRATCH = f"{SESSION_TMP}/work"
_SHARED_MEMORY_FILES = f"{SESSION_TMP}/.shm"
_NEW_ROOT = "/tmp"
_EMPTY = "/sys"
"""A directory of the new root that stays empty; it is mounted over /proc in sessions."""
ROOT_MB = 64
"""Size of the zygote's own root, for caches that imports write."""
INODES_PER_MB = 64
HOST_NAME = b"sandbox"
_cradle: Cradle | None = None
"""Set in the zygote."""
_own_namespace = -1
"""In the zygote: a descriptor of its own process namespace."""


def enter(plan: Plan, parent_pidfd: int) -> None:
    """Enter the namespaces and the new root.

    Returns in a descendant of the caller: the caller waits for the cradle, which is the first process of a new process
    namespace and the parent of that descendant. Both end when it ends. All die when the caller's parent, the process of
    ``parent_pidfd``, ends."""
    global _cradle, _own_namespace
    trees = None
    if os.geteuid() == 0:
        # Still as root, because nobody cannot reach an interpreter below /root.
        trees = _open_trees(plan)
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        prctl(PR_SET_DUMPABLE, 1)  # the change of user cleared it, and without it /proc/self is not ours to open
    process = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY)
    _new_user_namespace(process)
    os.close(process)
    unshare(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP)
    die_with(parent_pidfd)  # again, because the change of user cleared it
    own = os.pidfd_open(os.getpid())
    child = os.fork()
    if child != 0:
        mirror(child)
    die_with(own)
    os.close(own)
    _cradle = start_cradle()
    _own_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    _build_root(plan, _open_trees(plan) if trees is None else trees)
    libc.sethostname(HOST_NAME, len(HOST_NAME))


def fork_into_new_pid_namespace() -> tuple[int, int, int]:
    """Fork a child into a new process namespace below the caller's, in which an init is already the first process.

    Returns (pid of the child, pid of the init, pidfd of the init); in the child the first is 0. Raises OSError.
    """
    assert _cradle is not None
    init = _cradle.take_init()
    place = pid = -1
    try:
        place = os.pidfd_open(init)
        setns(place, CLONE_NEWPID)
        try:
            pid = os.fork()
        finally:
            if pid != 0:
                setns(_own_namespace, CLONE_NEWPID)
    except OSError:
        os.kill(init, signal.SIGKILL)
        if place >= 0:
            os.close(place)
        raise
    return pid, init, place


def enter_session(plan: Plan) -> None:
    """Give this process its own mounts, with an empty /tmp of limited size, and its own user namespace.

    Afterwards no other session's files are visible and /proc is empty. The user namespace makes RLIMIT_NPROC count only this
    session's processes.
    """
    unshare(CLONE_NEWNS)
    hidden = [(path, open_tree(path)) for path in plan.readable if path.startswith(f"{SESSION_TMP}/")]
    megabytes = plan.limits.disk_mb
    size = f"mode=1777,size={megabytes}m,nr_inodes={megabytes * INODES_PER_MB}"
    process = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY)
    mount("tmpfs", SESSION_TMP, "tmpfs", MS_NOSUID | MS_NODEV, size)
    for path, tree in hidden:
        _attach(tree, path)
    os.mkdir(SCRATCH, 0o700)
    os.mkdir(_SHARED_MEMORY_FILES, 0o700)
    mount(_SHARED_MEMORY_FILES, SHARED_MEMORY, "", MS_BIND)
    mount(_EMPTY, "/proc", "", MS_BIND)
    set_mount_attributes("/", MOUNT_ATTR_RDONLY)
    _new_user_namespace(process)
    os.close(process)


def _new_user_namespace(process: int) -> None:
    """Enter a user namespace that maps only this process's user and group, each to the same id.

    ``process``: a descriptor of /proc/self.
    """
    user, group = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        descriptor = os.open(name, os.O_WRONLY, dir_fd=process)
        try:
            os.write(descriptor, text.encode())
        except OSError as error:
            raise OSError(error.errno, f"write /proc/self/{name}: {error.strerror}") from error
        finally:
            os.close(descriptor)


def _open_trees(plan: Plan) -> list[tuple[str, int]]:
    """The mounts that go into the new root: pairs of a path and the descriptor of a detached, read-only copy."""
    trees = []
    places = {path: path for path in (*plan.readable, *DEVICES)}
    if plan.fonts:
        places[FONTS] = plan.fonts
    for path, source in places.items():
        if os.path.islink(path) and path not in DEVICES:
            continue
        tree = open_tree(source)
        if path not in DEVICES:
            set_mount_attributes(tree, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)
        trees.append((path, tree))
    return trees


def _build_root(plan: Plan, trees: list[tuple[str, int]]) -> None:
    links = [(path, os.path.realpath(path)) for path in plan.readable if os.path.islink(path)]
    copies = [(path, Path(path).read_bytes()) for path in COPIED if os.path.exists(path)]
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    # /tmp exists on every machine and every user can reach it. The mount hides it only in this namespace.
    mount("tmpfs", _NEW_ROOT, "tmpfs", MS_NOSUID | MS_NODEV, f"mode=0755,size={ROOT_MB}m")
    for directory in ("/dev/shm", "/etc", "/proc", "/tmp", _EMPTY, plan.root):
        os.makedirs(_NEW_ROOT + directory, exist_ok=True)
    os.chmod(_NEW_ROOT + SESSION_TMP, 0o1777)
    for path, tree in trees:
        _attach(tree, path, _NEW_ROOT)
    for path, target in links:
        os.makedirs(os.path.dirname(_NEW_ROOT + path), exist_ok=True)
        os.symlink(target, _NEW_ROOT + path)
    user, group = os.geteuid(), os.getegid()
    accounts = (("/etc/passwd", f"sandbox:x:{user}:{group}::/tmp:/bin/sh\n"), ("/etc/group", f"sandbox:x:{group}:\n"))
    for path, content in (*copies, *((path, text.encode()) for path, text in accounts)):
        Path(_NEW_ROOT + path).write_bytes(content)
    mount("proc", f"{_NEW_ROOT}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    os.chdir(_NEW_ROOT)
    pivot_root_here()
    os.chdir(plan.root)


def _attach(tree: int, path: str, root: str = "") -> None:
    """Mount a detached tree at ``path`` below ``root``, creating the mount point, and close the tree's descriptor."""
    place = root + path
    if stat.S_ISDIR(os.fstat(tree).st_mode):
        os.makedirs(place, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(place), exist_ok=True)
        os.close(os.open(place, os.O_WRONLY | os.O_CREAT, 0o600))
    move_mount(tree, place)
    os.close(tree)
