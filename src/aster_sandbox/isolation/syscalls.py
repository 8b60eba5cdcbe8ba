"""System calls that isolation needs and that Python 3.11's standard library lacks, called with ctypes.

Every function raises OSError and names the call and its object in the message. Constants are from the kernel's headers.
"""

from __future__ import annotations

import ctypes
import os
import platform
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)

MACHINE = platform.machine()
_ARCHITECTURES = ("x86_64", "aarch64")
KNOWN_MACHINE = MACHINE in _ARCHITECTURES
NUMBERS = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "capset": (126, 91),
    "chmod": (90, None),
    "chown": (92, None),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "clone": (56, 220),
    "clone3": (435, 435),
    "create_module": (174, None),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "fcntl": (72, 25),
    "file_setattr": (469, 469),
    "finit_module": (313, 273),
    "flock": (73, 32),
    "fremovexattr": (199, 16),
    "fsconfig": (431, 431),
    "fsetxattr": (190, 7),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "futimesat": (261, None),
    "init_module": (175, 105),
    "inotify_add_watch": (254, 27),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioctl": (16, 29),
    "ioperm": (173, None),
    "iopl": (172, None),
    "ioprio_set": (251, 30),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "landlock_add_rule": (445, 445),
    "landlock_create_ruleset": (444, 444),
    "landlock_restrict_self": (446, 446),
    "lchown": (94, None),
    "lookup_dcookie": (212, 18),
    "lremovexattr": (198, 15),
    "lsetxattr": (189, 6),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "migrate_pages": (256, 238),
    "modify_ldt": (154, None),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "msgctl": (71, 187),
    "msgget": (68, 186),
    "msgrcv": (70, 188),
    "msgsnd": (69, 189),
    "name_to_handle_at": (303, 264),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "prlimit64": (302, 261),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "removexattr": (197, 14),
    "removexattrat": (466, 466),
    "request_key": (249, 218),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "semctl": (66, 191),
    "semget": (64, 190),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "setpriority": (141, 140),
    "setsid": (112, 157),
    "settimeofday": (164, 170),
    "setxattr": (188, 5),
    "setxattrat": (463, 463),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "shmdt": (67, 197),
    "shmget": (29, 194),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "truncate": (76, 45),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "uselib": (134, None),
    "userfaultfd": (323, 282),
    "utime": (132, None),
    "utimensat": (280, 88),
    "utimes": (235, None),
    "vhangup": (153, 58),
}
"""System call numbers (x86_64, aarch64); None if the architecture does not have the call."""

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x1000_0000, 0x2000_0000, 0x4000_0000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 0x1000, 0x4000, 1 << 18
MNT_DETACH = 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_SET_SECCOMP, PR_CAPBSET_DROP = 1, 4, 8, 22, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 36, 38, 47
CAP_DAC_READ_SEARCH = 2
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH = 1, 4
_CAPABILITY_VERSION_3 = 0x2008_0522
_AMBIENT_RAISE, _AMBIENT_CLEAR_ALL = 2, 4


class _MountAttributes(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("fd", ctypes.c_uint64),
    )


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilityData(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def number(name: str) -> int | None:
    """The number of a system call on this machine; None if its architecture lacks the call or is not known here."""
    return NUMBERS[name][_ARCHITECTURES.index(MACHINE)] if KNOWN_MACHINE else None


def call(name: str, *arguments: Any, what: object = "") -> int:
    """Make a system call by name and return its result. Arguments are integers, bytes (passed as pointers) or ctypes objects.

    ``what``: the object of the call, for the message of the OSError."""
    found = number(name)
    if found is None:
        raise OSError(38, f"{name}: no such system call on {MACHINE}")
    words = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    return _checked(libc.syscall(ctypes.c_long(found), *words), name, what)


def unshare(flags: int) -> None:
    """Move this process into new namespaces; CLONE_NEWPID applies to its next children."""
    _checked(libc.unshare(flags), "unshare", hex(flags))


def setns(descriptor: int, kind: int) -> None:
    """Join a namespace; CLONE_NEWPID applies to the next children."""
    _checked(libc.setns(descriptor, kind), "setns", hex(kind))


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """mount(2)."""
    result = libc.mount(source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), data.encode())
    _checked(result, "mount", f"{kind or source} on {target}")


def open_tree(path: str) -> int:
    """Make a detached copy of the mounts at and below ``path``. Returns its descriptor."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_RECURSIVE
    return call("open_tree", _AT_FDCWD, os.fsencode(path), flags, what=path)


def move_mount(tree: int, target: str) -> None:
    """Attach a detached tree at ``target``."""
    call("move_mount", tree, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH, what=target)


def set_mount_attributes(place: int | str, attributes: int) -> None:
    """Add MOUNT_ATTR_* flags to a whole detached tree (a descriptor), or to the one mount at a path."""
    added = _MountAttributes(attributes)
    if isinstance(place, str):
        call("mount_setattr", _AT_FDCWD, os.fsencode(place), 0, ctypes.byref(added), ctypes.sizeof(added), what=place)
    else:
        flags = _AT_EMPTY_PATH | _AT_RECURSIVE
        call("mount_setattr", place, b"", flags, ctypes.byref(added), ctypes.sizeof(added), what="a tree")


def pivot_root_here() -> None:
    """Make the working directory, which must be a mount, the root directory, and detach the old root."""
    call("pivot_root", b".", b".")
    _checked(libc.umount2(b".", MNT_DETACH), "umount2", "the old root")
    os.chdir("/")


def prctl(option: int, *arguments: int) -> None:
    """prctl(2) with integer arguments."""
    words = [ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0)[:4]]
    _checked(libc.prctl(option, *words), "prctl", option)


def drop_bounding_set(kept: int) -> None:
    """Drop every capability that is not in the bit mask ``kept`` from the bounding set, so that no exec can grant it.

    Without CAP_SETPCAP it does nothing; then there is nothing to drop."""
    for capability in range(64):
        # The first failure means that the kernel knows no more capabilities, or that CAP_SETPCAP is missing.
        if not kept >> capability & 1 and libc.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) != 0:
            break


def hold_capabilities(kept: int) -> None:
    """Keep exactly the capabilities in the bit mask ``kept``, now and after an exec. They must be permitted now."""
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    data = (_CapabilityData * 2)(_CapabilityData(kept, kept, kept))
    call("capset", ctypes.byref(header), ctypes.byref(data))
    prctl(PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
    for capability in range(32):
        if kept >> capability & 1:
            prctl(PR_CAP_AMBIENT, _AMBIENT_RAISE, capability)


def _checked(result: int, name: str, what: object) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}({what}): {os.strerror(code)}" if what != "" else f"{name}: {os.strerror(code)}")
    return result
