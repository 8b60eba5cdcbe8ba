"""What ``aster doctor`` prints: each mechanism, the level that follows, what it leaves open, and how to get what is missing."""

from __future__ import annotations

from aster_sandbox.isolation.levels import Level
from aster_sandbox.isolation.machine import Report, probe

LEAVES_OPEN = {
    Level.NAMESPACES: (
        "the kernel's own faults: code that breaks the kernel breaks out",
        "memory of all sessions together, and the processor: bound them from outside (a cgroup, a container)",
        "what a session's own code does to its own session",
    ),
    Level.LANDLOCK: (
        "disk in total: a session can fill the file system of the temporary directory",
        "names: a session can see which files and processes exist, though not what is in them",
        "where you are not root: sessions count as one user, and one that starts many processes can keep others from that",
        "below Landlock ABI 6 (Linux 6.12), where you are not root: signals to your processes",
        "all that the level namespaces leaves open",
    ),
    Level.RLIMITS: (
        "your files: cells can read and change whatever you can (as root: a user without rights, where that can be)",
        "your processes: cells can signal them and look into them, and into each other",
        "disk in total",
        "all that the other levels leave open",
    ),
}
HINTS = {
    "user namespaces": (
        "sysctl user.max_user_namespaces and (Debian) kernel.unprivileged_userns_clone must not be 0, (Ubuntu) "
        "kernel.apparmor_restrict_unprivileged_userns must be; in Docker: --security-opt seccomp=unconfined, or --privileged"
    ),
    "a file system of its own": (
        "a container that masks parts of /proc forbids a new one: in Docker --security-opt systempaths=unconfined; "
        "(Ubuntu) sysctl kernel.apparmor_restrict_unprivileged_userns=0"
    ),
    "Landlock": "Linux 5.13 or newer with CONFIG_SECURITY_LANDLOCK, and landlock in the lsm= list of the kernel's command line",
    "seccomp": "a kernel with CONFIG_SECCOMP_FILTER, on x86_64 or aarch64",
    "autogroups": (
        "not needed; without them a session that starts many processes takes the processor from others: lower "
        "sandbox.processes, or (outside a control group with a share of its own) sysctl kernel.sched_autogroup_enabled=1"
    ),
    "cgroup": (
        "not needed; with it the session that makes the kernel hold memory (files on a tmpfs, full sockets) is found when "
        "memory runs short: as root, or `systemd-run --user --scope -p Delegate=yes -p DelegateSubgroup=run ...`"
    ),
}


def describe_machine() -> str:
    """How well this machine can shut sessions in: what ``aster doctor`` prints, without a line end. It takes a second, once."""
    return describe(probe())


def describe(report: Report) -> str:
    """The whole text, without a line end."""
    width = max(len(mechanism.name) for mechanism in report.mechanisms) + 2
    lines = [
        f"{mechanism.name:<{width}}{'yes' if mechanism.holds else 'no '}  {mechanism.detail}".rstrip()
        for mechanism in report.mechanisms
    ]
    best = report.best
    lines += ["", f"Sessions run at the isolation level {best.value}."]
    if best is Level.RLIMITS:
        lines.append("That is NOT ISOLATED: run untrusted models in a container or a virtual machine.")
    lines += [f"  stronger, but not here: {level.value}: {why}" for level, why in report.failures.items()]
    hints = [f"  {each.name}: {HINTS[each.name]}" for each in report.mechanisms if not each.holds and each.name in HINTS]
    if hints:
        lines += ["", "What is missing, and how to get it:", *hints]
    return "\n".join([*lines, "", f"The level {best.value} does not cover:", *(f"  - {text}" for text in LEAVES_OPEN[best])])
