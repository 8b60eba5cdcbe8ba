"""Stateful Python for a policy: sessions in processes of their own, forked from one warm parent. See docs/sandbox.md.

This package imports no torch and nothing heavier than asyncio: the warm parent imports it too.
"""

from aster.sandbox.interface import AnySandbox, AnySession, make_sandbox
from aster.sandbox.protocol import SandboxFailure
from aster.sandbox.session import Session
from aster.sandbox.supervisor import Sandbox

__all__ = ["AnySandbox", "AnySession", "Sandbox", "SandboxFailure", "Session", "make_sandbox"]
