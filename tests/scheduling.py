"""Which tests stay in one test process under pytest-xdist: those that share something that takes long to make. The others go
one by one to the next free process, so that none is without work at the end."""

from __future__ import annotations

import re

from xdist.scheduler import LoadScopeScheduling

TOGETHER = {"tests/stages/test_resume.py", "tests/evaluation/test_command.py"}
"""Files whose tests read one run."""
LEVEL = re.compile(r"(tests/sandbox(?:/\w+)?)/.*\[(rlimits|landlock|namespaces)\b")
"""A test of the sandbox at one isolation level: its sandbox or service is started once."""


class Scheduling(LoadScopeScheduling):
    """Groups tests by what they share. The plugin's own marks for this (``xdist_group``, ``--dist loadgroup``) have no effect
    with pytest 9.2."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        if path in TOGETHER:
            return path
        level = LEVEL.match(nodeid)
        return ":".join(level.groups()) if level else nodeid
