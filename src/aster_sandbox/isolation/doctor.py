"""The text of ``aster doctor``: each mechanism, the resulting level, what it does not cover, and how to get what is missing."""

from __future__ import annotations

from aster_sandbox.isolation.levels import Level
from aster_sandbox.isolation.machine import Report, probe

LEAVES_OPEN = {
    Level.NAMESPACES: (
        "kernel bugs: code that exploits one escapes",
        "the memory of all sessions together, and the processor: limit them from outside (a cgroup, a container)",
        "what a session's code does to its own session",
    ),
    Level.LANDLOCK: (
        "total disk use: a session can fill the file system of the temporary directory",
        "names: a session can see which files and processes exist, but not their contents",
        "process counts, unless you are root: sessions count as one user, so one that starts many processes can block others",
        "signals to your processes, below Landlock ABI 6 (Linux 6.12) and unless you are root",
        "everything that the level namespaces does not cover",
    ),
    Level.RLIMITS: (
        "your files: cells can read and change whatever you can (started as root: if possible, as an unprivileged user)",
        "your processes: cells can signal and inspect them, and each other",
        "total disk use",
        "everything that the other levels do not cover",
    ),
}
HINTS = {
    "user namespaces": (
        "set the sysctls user.max_user_namespaces above 0, (Debian) kernel.unprivileged_userns_clone=1, (Ubuntu) "
        "kernel.apparmor_restrict_unprivileged_userns=0; in Docker use --security-opt seccomp=unconfined, or --privileged"
    ),
    "private file system": (
        "a container that masks parts of /proc cannot mount a new /proc: in Docker use --security-opt systempaths=unconfined; "
        "(Ubuntu) set sysctl kernel.apparmor_restrict_unprivileged_userns=0"
    ),
    "Landlock": "Linux 5.13 or newer with CONFIG_SECURITY_LANDLOCK, and landlock in the lsm= list of the kernel's command line",
    "seccomp": "a kernel with CONFIG_SECCOMP_FILTER, on x86_64 or aarch64",
    "autogroups": (
        "optional; without autogroups a session that starts many processes gets more of the processor than others: lower "
        "sandbox.processes, or set sysctl kernel.sched_autogroup_enabled=1 (no effect in a group with its own processor share)"
    ),
    "cgroup": (
        "optional; with control groups the sandbox also counts kernel memory of a session (tmpfs files, full sockets) when "
        "memory runs short: run as root, or in `systemd-run --user --scope -p Delegate=yes -p DelegateSubgroup=run ...`"
    ),
}


def describe_machine() -> str:
    """How well this machine can isolate sessions, as ``aster doctor`` prints it, without a final newline.

    The first call takes about a second."""
    return describe(probe())


def describe(report: Report) -> str:
    """The text for a report, without a final newline."""
    width = max(len(mechanism.name) for mechanism in report.mechanisms) + 2
    lines = [
        f"{mechanism.name:<{width}}{'yes' if mechanism.works else 'no '}  {mechanism.detail}".rstrip()
        for mechanism in report.mechanisms
    ]
    best = report.best
    lines += ["", f"Sessions run at the isolation level {best.value}."]
    if best is Level.RLIMITS:
        lines.append("They are NOT ISOLATED: run untrusted models in a container or a virtual machine.")
    lines += [f"  stronger, but not available: {level.value}: {why}" for level, why in report.failures.items()]
    hints = [f"  {each.name}: {HINTS[each.name]}" for each in report.mechanisms if not each.works and each.name in HINTS]
    if hints:
        lines += ["", "What is missing, and how to get it:", *hints]
    return "\n".join([*lines, "", f"The level {best.value} does not cover:", *(f"  - {text}" for text in LEAVES_OPEN[best])])
