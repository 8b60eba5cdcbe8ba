"""Landlock: a process restricts its own and its children's access to files and TCP, and to processes outside (signals, abstract
sockets).

The ABI version of the kernel decides what is restricted: files from ABI 1 on, TCP from 4 (Linux 6.7), signals and abstract
sockets from 6 (Linux 6.12). https://docs.kernel.org/userspace-api/landlock.html
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable

from aster_sandbox.isolation.syscalls import call

NEWEST_ABI = 7
"""The newest ABI that this module knows; a newer kernel is used as if it had this one."""
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
MAKE_CHAR, MAKE_BLOCK, REFER, TRUNCATE, IOCTL_DEV = 1 << 6, 1 << 11, 1 << 13, 1 << 14, 1 << 15
_FIRST_ABI_FILES = (1 << 13) - 1
_ON_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
"""The rights that apply to a file; the others apply only to directories."""
READ = EXECUTE | READ_FILE | READ_DIR
_BIND_AND_CONNECT_TCP = 3
_ABSTRACT_SOCKETS_AND_SIGNALS = 3
_RULE_PATH_BENEATH = 1
_CREATE_RULESET_VERSION = 1


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


def abi() -> int:
    """The Landlock ABI to use here, at most NEWEST_ABI. Raises OSError if the kernel lacks Landlock or has it switched off."""
    return min(call("landlock_create_ruleset", 0, 0, _CREATE_RULESET_VERSION), NEWEST_ABI)


def file_rights(version: int) -> int:
    """The bit mask of all file rights that an ABI version knows."""
    later = {2: REFER, 3: TRUNCATE, 5: IOCTL_DEV}
    return _FIRST_ABI_FILES | sum(right for since, right in later.items() if version >= since)


class Ruleset:
    """A set of Landlock rules. Once enforced, only what its ``allow_*`` methods named is permitted."""

    def __init__(self, version: int) -> None:
        self._rights = file_rights(version)
        handled = _Ruleset(
            self._rights, _BIND_AND_CONNECT_TCP if version >= 4 else 0, _ABSTRACT_SOCKETS_AND_SIGNALS if version >= 6 else 0
        )
        size = 24 if version >= 6 else 16 if version >= 4 else 8
        self._descriptor = call("landlock_create_ruleset", ctypes.byref(handled), size, 0)

    def allow_reading(self, paths: Iterable[str]) -> None:
        """Allow reading and executing these files and everything below these directories. Skips paths that do not exist."""
        for path in paths:
            self._allow(path, READ)

    def allow_devices(self, paths: Iterable[str]) -> None:
        """Allow reading and writing these character devices."""
        for path in paths:
            self._allow(path, READ_FILE | WRITE_FILE)

    def allow_writing(self, path: str) -> None:
        """Allow everything below this directory except creating devices."""
        self._allow(path, ~(MAKE_CHAR | MAKE_BLOCK))

    def enforce(self) -> None:
        """Restrict this process permanently. Needs no_new_privs or CAP_SYS_ADMIN."""
        call("landlock_restrict_self", self._descriptor, 0)
        os.close(self._descriptor)

    def _allow(self, path: str, rights: int) -> None:
        try:
            parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            if not stat.S_ISDIR(os.fstat(parent).st_mode):
                rights &= _ON_FILES
            rule = struct.pack("=Qi", rights & self._rights, parent)
            call("landlock_add_rule", self._descriptor, _RULE_PATH_BENEATH, rule, 0, what=path)
        finally:
            os.close(parent)
