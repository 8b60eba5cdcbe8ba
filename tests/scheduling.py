"""Which tests stay in one test process under pytest-xdist: those that share something dear. The others go one by one to
whichever process is free, so that none is left with nothing to do at the end."""

from __future__ import annotations

import re

from xdist.scheduler import LoadScopeScheduling

TOGETHER = {"tests/stages/test_resume.py", "tests/evaluation/test_command.py"}
"""Files whose tests look at one run."""
LEVEL = re.compile(r"(tests/sandbox(?:/\w+)?)/.*\[(rlimits|landlock|namespaces)\b")
"""A test of the sandbox at one isolation level: its sandbox or service is started once."""


class Scheduling(LoadScopeScheduling):
    """Units of work by what their tests share. The plugin's own marks for this (``xdist_group``, ``--dist loadgroup``) have no
    effect with pytest 9.2."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        if path in TOGETHER:
            return path
        level = LEVEL.match(nodeid)
        return ":".join(level.groups()) if level else nodeid
