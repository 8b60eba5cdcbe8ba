"""Attacks on other processes and on the kernel."""

from __future__ import annotations

from aster_sandbox.isolation import Level
from tests.sandbox.attacks.attack import Attack

OTHERS = [
    Attack(
        "environ",
        "read environments in /proc",
        """
for pid in others():
    with contextlib.suppress(OSError):
        text = open(f'/proc/{pid}/environ').read()
        breached(len(text))
""",
        covered_from=Level.LANDLOCK,
    ),
    Attack(
        "environ of the supervisor",
        "read the environment of the process that runs the sandbox",
        """
attempt(lambda: open(f'/proc/{SUPERVISOR}/environ').read() or 1 / 0)
""",
        covered_from=Level.LANDLOCK,
    ),
    Attack(
        "memory of others",
        "open /proc/PID/mem",
        """
for pid in others():
    with contextlib.suppress(OSError):
        open(f'/proc/{pid}/mem', 'rb')
        breached()
""",
        covered_from=Level.LANDLOCK,
    ),
    Attack(
        "descriptors of others",
        "list /proc/PID/fd",
        """
for pid in others():
    with contextlib.suppress(OSError):
        breached(os.listdir(f'/proc/{pid}/fd'))
""",
        covered_from=Level.LANDLOCK,
    ),
    Attack(
        "ptrace",
        "attach to others",
        """
for pid in others():
    libc.ptrace(16, pid, 0, 0) == 0 and breached()
""",
    ),
    Attack(
        "process_vm_readv",
        "read the memory of others",
        """
buffer = ctypes.create_string_buffer(8)
vector = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 8)
for pid in others():
    libc.process_vm_readv(pid, vector, 1, vector, 1, 0) > 0 and breached()
""",
    ),
    Attack(
        "limits of others",
        "prlimit, nice and affinity of others",
        """
import resource
for pid in others():
    with contextlib.suppress(OSError):
        breached(resource.prlimit(pid, resource.RLIMIT_NOFILE))
    with contextlib.suppress(OSError):
        os.sched_setaffinity(pid, {0}), breached()
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, 19), breached()

""",
    ),
    Attack(
        "descriptor of another",
        "pidfd_getfd",
        """
for pid in others()[:50]:
    with contextlib.suppress(OSError):
        libc.syscall(438, os.pidfd_open(pid), 0, 0) >= 0 and breached()
""",
    ),
    Attack(
        "unshare",
        "a user namespace, and its capabilities",
        """
libc.unshare(0x10000000) == 0 and breached()
""",
    ),
    Attack(
        "clone into a namespace",
        "the same through clone",
        """
import platform
number = 56 if platform.machine() == 'x86_64' else 220
pid = libc.syscall(number, ctypes.c_long(0x10000000 | 17), 0, 0, 0, 0)
if pid == 0:
    os._exit(0)
pid > 0 and breached()
""",
    ),
    Attack(
        "clone3 into a namespace",
        "the same through clone3, whose flags a filter cannot see",
        """
arguments = (ctypes.c_uint64 * 11)(0x10000000, 0, 0, 0, 17)
pid = libc.syscall(435, arguments, 88)
if pid == 0:
    os._exit(0)
pid > 0 and breached()
""",
    ),
    Attack(
        "mount",
        "mount a tmpfs, bind the root",
        """
libc.mount(b'none', b'.', b'tmpfs', 0, None) == 0 and breached()
libc.mount(b'/', b'.', None, 4096, None) == 0 and breached()
libc.umount2(b'/proc', 2) == 0 and breached()
""",
    ),
    Attack(
        "setns",
        "join the namespaces of others",
        """
for pid in (1, SUPERVISOR):
    for kind in ('mnt', 'net', 'pid', 'user'):
        with contextlib.suppress(OSError):
            libc.setns(os.open(f'/proc/{pid}/ns/{kind}', os.O_RDONLY), 0) == 0 and breached()
""",
    ),
    Attack(
        "chroot",
        "chroot and climb out",
        """
attempt(lambda: os.chroot('.'))
""",
    ),
    Attack(
        "rare system calls",
        "bpf, perf, userfaultfd, io_uring, keys, handles, modules, kexec, swap, new mount calls",
        """
from aster_sandbox.isolation.syscalls import call, number
for name in ('bpf', 'perf_event_open', 'userfaultfd', 'io_uring_setup', 'keyctl', 'add_key', 'open_by_handle_at',
             'init_module', 'kexec_load', 'swapon', 'fsopen', 'open_tree', 'fanotify_init', 'pivot_root', 'personality',
             'memfd_create', 'shmget', 'msgget', 'semget', 'mq_open', 'acct', 'quotactl', 'syslog'):
    try:
        call(name, 0, 0, 0, 0, 0)
        breached(name)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOSYS):
            breached(name, error)
""",
    ),
    Attack(
        "32-bit numbers",
        "x32 calls go by other numbers",
        """
libc.syscall(ctypes.c_long(0x40000000 + 39)) > 0 and breached()
""",
    ),
    Attack(
        "clock",
        "set the time, the host name",
        """
attempt(lambda: time.clock_settime(time.CLOCK_REALTIME, 0))
attempt(lambda: socket.sethostname('mine'))
""",
    ),
    Attack(
        "scheduler",
        "take precedence over others",
        """
attempt(lambda: os.nice(-5))
attempt(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50)))
attempt(lambda: os.setpriority(os.PRIO_USER, 0, -5))
""",
    ),
    Attack(
        "limits",
        "raise its own limits",
        """
import resource
for kind in ('NPROC', 'NOFILE', 'FSIZE', 'AS', 'CORE', 'MEMLOCK'):
    attempt(lambda: resource.setrlimit(getattr(resource, 'RLIMIT_' + kind), (resource.RLIM_INFINITY,) * 2))
""",
    ),
    Attack(
        "devices",
        "open or make devices",
        """
for path in ('/dev/mem', '/dev/kmsg', '/dev/vda', '/dev/sda', '/dev/nvme0n1', '/dev/fuse', '/dev/kvm', '/dev/tty'):
    attempt(lambda: open(path, 'rb'))
def node():
    os.mknod('disk', 0o60600, os.makedev(254, 0))
attempt(node)
""",
        covered_from=Level.LANDLOCK,
    ),
    Attack(
        "kernel settings",
        "write to /proc/sys, sysrq and cgroups",
        """
for path in ('/proc/sys/kernel/core_pattern', '/proc/sysrq-trigger', '/sys/fs/cgroup/cgroup.procs',
             '/sys/fs/cgroup/memory/tasks', '/sys/kernel/uevent_helper'):
    attempt(lambda: open(path, 'r+'))
""",
    ),
]
