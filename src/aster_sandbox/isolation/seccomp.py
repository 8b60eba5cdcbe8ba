"""A seccomp filter that refuses system calls which cells do not need and which reach other processes or rare kernel code.

It is a deny-list, because an allow-list for arbitrary Python would break with the next C library. The filter is classic BPF,
assembled here. A refused call fails with EPERM, and the code that made it continues.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import struct
from dataclasses import dataclass

from aster_sandbox.isolation.syscalls import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    MACHINE,
    PR_SET_SECCOMP,
    call,
    libc,
    number,
)

DENIED = (
    # other roots, mounts and namespaces
    *("mount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "open_tree_attr", "fsopen", "fsconfig", "fsmount"),
    *("fspick", "mount_setattr", "setns", "unshare"),
    # other processes
    *("ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "process_madvise", "process_mrelease", "pidfd_getfd"),
    *("move_pages", "migrate_pages", "ioprio_set"),
    # locks on files that others can read too, and notifications of what others open
    *("flock", "inotify_init", "inotify_init1", "inotify_add_watch"),
    # with autogroups the kernel gives each process session its own share of the processor
    "setsid",
    # objects that outlive a session or that no limit counts: System V and POSIX queues, shared memory, semaphores, memfds, keys
    *("shmget", "shmat", "shmctl", "shmdt", "semget", "semop", "semtimedop", "semctl", "msgget", "msgsnd", "msgrcv", "msgctl"),
    *("mq_open", "mq_unlink", "memfd_create", "memfd_secret", "keyctl", "add_key", "request_key"),
    # large, rarely used parts of the kernel
    *("bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register", "lookup_dcookie"),
    *("fanotify_init", "fanotify_mark", "open_by_handle_at", "name_to_handle_at", "modify_ldt", "personality", "uselib"),
    # the machine as a whole
    *("kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "create_module", "reboot"),
    *("swapon", "swapoff", "acct", "syslog", "quotactl", "quotactl_fd", "nfsservctl", "iopl", "ioperm", "vhangup"),
    *("settimeofday", "clock_settime", "adjtimex", "clock_adjtime", "sethostname", "setdomainname"),
)
ONLY_SELF = ("prlimit64", "sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr")
"""Calls whose first argument is a pid: only 0, the caller itself, is allowed."""
SOCKETS = ("socket",)
"""Refused where sessions see the host's file system: a socket could connect to a UNIX socket file of the host, which Landlock
does not prevent. Connected pairs (socketpair) stay."""
FILE_RIGHTS = (
    *("chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat", "utime", "utimes", "futimesat"),
    *("utimensat", "setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr", "setxattrat"),
    *("removexattrat", "file_setattr"),
)
"""Change modes, owners, times and attributes of files. Landlock does not control these, so a session that runs as the user
could change every file of the user."""
TRUNCATION = ("truncate",)
"""Landlock controls this only from ABI 3 on."""
NEW_NAMESPACES = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET
AF_UNIX, SOCK_STREAM, SOCK_SEQPACKET, SOCK_TYPE_MASK = 1, 1, 5, 0xF
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
"""ioctl requests that insert input into the user's terminal."""
F_SETLEASE, F_NOTIFY = 1024, 1026
"""fcntl commands that report when others open a file or change a directory."""
AUDIT_ARCHITECTURE = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
X32 = 0x4000_0000

_LOAD, _AND, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_ALLOW, _ERRNO = 0x7FFF_0000, 0x0005_0000
_MODE_FILTER = 2


@dataclass(frozen=True, slots=True)
class _Instruction:
    code: int
    value: int
    then: str = ""
    otherwise: str = ""
    label: str = ""


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def available() -> bool:
    """Whether this module knows the architecture's system calls. (The probe tries whether the kernel accepts a filter.)"""
    return MACHINE in AUDIT_ARCHITECTURE


def install(more: tuple[str, ...] = ()) -> None:
    """Filter this process and its future children permanently. Refuses DENIED and the calls named in ``more``.

    Needs no_new_privs or CAP_SYS_ADMIN. Raises OSError if the kernel refuses the filter.
    """
    code = cached_program(more)
    filter_program = _FilterProgram(len(code) // 8, code)
    if libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), ctypes.byref(filter_program), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_SECCOMP) failed")


def program(more: tuple[str, ...] = ()) -> bytes:
    """The filter as BPF instructions of 8 bytes each. Refuses DENIED and the calls named in ``more``."""
    lines = [
        _Instruction(_LOAD, _ARCHITECTURE),
        _Instruction(_EQUAL, AUDIT_ARCHITECTURE[MACHINE], "", "denied"),
        _Instruction(_LOAD, _NUMBER),
    ]
    if MACHINE == "x86_64":
        lines.append(_Instruction(_AT_LEAST, X32, "unknown"))
    unix_sockets = "socket" not in more
    lines += [_Instruction(_EQUAL, found, "denied") for name in (*DENIED, *more) if (found := number(name)) is not None]
    lines += _jump("clone3", "unknown")  # a filter cannot read its flags; after ENOSYS the C library uses clone
    lines += _jump("clone", "clone") + _jump("ioctl", "ioctl") + _jump("setpriority", "setpriority") + _jump("fcntl", "fcntl")
    lines += _jump("socket", "socket") + _jump("socketpair", "socketpair")
    for name in ONLY_SELF:
        lines += _jump(name, "oneself")
    lines += [
        _Instruction(_RETURN, _ALLOW),
        _argument(0, "clone"),
        _Instruction(_ANY_BIT, NEW_NAMESPACES, "denied", "allowed"),
        _argument(1, "ioctl"),
        _Instruction(_EQUAL, TIOCSTI, "denied"),
        _Instruction(_EQUAL, TIOCLINUX, "denied", "allowed"),
        _argument(1, "fcntl"),
        _Instruction(_EQUAL, F_SETLEASE, "denied"),
        _Instruction(_EQUAL, F_NOTIFY, "denied", "allowed"),
        _argument(1, "setpriority"),  # who: only 0, this process
        _Instruction(_EQUAL, 0, "", "denied"),
        _argument(0, "oneself"),
        _Instruction(_EQUAL, 0, "allowed", "denied"),
        _argument(0, "socket"),
        _Instruction(_EQUAL, AF_UNIX, "allowed", "denied"),
        _argument(0, "socketpair"),
        _Instruction(_EQUAL, AF_UNIX, "allowed" if unix_sockets else "", "denied"),
        _argument(1),  # type: no datagram sockets, because such a pair can still send to other addresses
        _Instruction(_AND, SOCK_TYPE_MASK),
        _Instruction(_EQUAL, SOCK_STREAM, "allowed"),
        _Instruction(_EQUAL, SOCK_SEQPACKET, "allowed", "denied"),
        _Instruction(_RETURN, _ALLOW, label="allowed"),
        _Instruction(_RETURN, _ERRNO | errno.EPERM, label="denied"),
        _Instruction(_RETURN, _ERRNO | errno.ENOSYS, label="unknown"),
    ]
    return _assemble(lines)


@functools.cache
def cached_program(more: tuple[str, ...]) -> bytes:
    """``program``, cached. The zygote calls it once, so that its sessions need not assemble the filter."""
    return program(more)


def _jump(name: str, label: str) -> list[_Instruction]:
    found = number(name)
    return [] if found is None else [_Instruction(_EQUAL, found, label)]


def _argument(index: int, label: str = "") -> _Instruction:
    """Load the lower 32 bits of an argument: the whole value of an int, on a little-endian machine."""
    return _Instruction(_LOAD, _FIRST_ARGUMENT + 8 * index, label=label)


def _assemble(lines: list[_Instruction]) -> bytes:
    places = {line.label: place for place, line in enumerate(lines) if line.label}

    def distance(place: int, label: str) -> int:
        return places[label] - place - 1 if label else 0

    return b"".join(
        struct.pack("=HBBI", line.code, distance(place, line.then), distance(place, line.otherwise), line.value)
        for place, line in enumerate(lines)
    )


def refuses_unshare() -> bool:
    """Whether unshare(2) fails with EPERM. The probe calls this after it has installed the filter."""
    try:
        call("unshare", 0)
    except OSError as error:
        return error.errno == errno.EPERM
    return False
