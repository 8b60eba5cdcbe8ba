"""The warm parent: ``python -m aster.sandbox.zygote DESCRIPTOR PLAN SUPERVISOR_PID [PACKAGE ...]``.

It enters the isolation level of the PLAN, imports and exercises the libraries once and then forks sessions on request. It has
one thread and never runs a cell. It is the subreaper of everything that sessions leave behind, and kills it. It ends, with all
sessions, when the supervisor closes the connection; its guard sees to the rest.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import json
import os
import select
import signal
import socket
import sys
import traceback

from aster.sandbox.cells import Interpreter
from aster.sandbox.isolation import Plan, enter_zygote, fork_session, make_scratch
from aster.sandbox.isolation.guard import kill_all_below
from aster.sandbox.protocol import MAX_PACKET, ForkRequest
from aster.sandbox.worker import become_session, libc

STRAY_SECONDS = 2.0
"""How long the zygote fights processes that a session left behind, before it goes back to serving."""

STANDARD = """
import asyncio, collections, dataclasses, datetime, decimal, fractions, functools, heapq, inspect, itertools, json, math
import random, re, statistics, string, subprocess, tempfile, typing
"""
EXERCISES = {
    "sympy": """
from sympy.abc import x, y
sympy.factorint(2**32 + 1), sympy.isprime(10**9 + 7), sympy.totient(360), sympy.divisors(360)
sympy.solve(x**2 - 5*x + 6, x), sympy.solve([x + y - 3, x - y - 1], [x, y]), sympy.simplify(sympy.sin(x)**2 + sympy.cos(x)**2)
sympy.integrate(x**2 * sympy.exp(x), x), sympy.diff(sympy.sin(x)/x, x), sympy.series(sympy.exp(x), x, 0, 4)
sympy.factor(x**4 - 1), sympy.expand((x + 1)**5), sympy.Matrix([[1, 2], [3, 4]]).inv(), sympy.Rational(1, 3).evalf(30)
sympy.summation(x, (x, 1, y)), str(sympy.sqrt(8)), sympy.parse_expr("x**2 + 1"), sympy.nsimplify(0.25)
""",
    "numpy": """
import numpy.linalg
numpy.linalg.solve(numpy.eye(3) * 2, numpy.ones(3)), numpy.linalg.eigvals(numpy.eye(3)), str(numpy.arange(6).reshape(2, 3))
""",
    "scipy": """
import scipy.integrate, scipy.linalg, scipy.optimize, scipy.sparse, scipy.special, scipy.stats
scipy.optimize.brentq(lambda t: t*t - 2, 0, 2), scipy.integrate.quad(math.exp, 0, 1), scipy.special.comb(10, 3)
""",
    "networkx": "networkx.shortest_path(networkx.cycle_graph(5), 0, 2)",
    "mpmath": "mpmath.mpf(2)**0.5, mpmath.quad(mpmath.sin, [0, 1])",
}
"""What a package is put through after its import, so that sessions find its caches filled. A package not named is imported."""


class Zygote:
    """Forks sessions and buries them."""

    def __init__(self, connection: socket.socket, plan: Plan) -> None:
        self._connection = connection
        self._plan = plan
        self._pid = os.getpid()
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._sessions: dict[int, int] = {}
        """pidfd -> pid of every session that was not buried yet."""

    def serve(self) -> None:
        """Answer until the supervisor closes the connection."""
        pidfd = os.pidfd_open(self._pid)
        self._send({"ready": self._pid}, pidfd)
        os.close(pidfd)
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor != self._connection.fileno():
                    self._bury(descriptor)
                elif not self._answer():
                    return

    def end(self) -> None:
        """Kill everything below."""
        with contextlib.suppress(OSError):  # nobody may be left to tell who is gone
            self._connection.shutdown(socket.SHUT_RDWR)
        for pidfd in list(self._sessions):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        for pidfd in list(self._sessions):
            self._bury(pidfd)

    def _answer(self) -> bool:
        """Serve one packet. False at the end of the connection."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._connection, MAX_PACKET, 2)
        except ConnectionResetError:
            return False
        if not data:
            return False
        message = json.loads(data)
        try:
            self._fork(ForkRequest.from_message(message), *descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def _fork(self, request: ForkRequest, connection: int, output: int) -> None:
        try:
            scratch = make_scratch(self._plan, request.name)
            pid = fork_session(self._plan)
        except OSError as error:
            self._send({"failed": str(error)})
            return
        if pid == 0:
            self._connection.detach()  # its number is the child's to use again
            try:
                become_session(request, self._plan, scratch, connection, output)
            except BaseException:  # noqa: BLE001 - the child must never come back into the zygote's loop
                with contextlib.suppress(OSError):
                    os.write(1, traceback.format_exc().encode())
            finally:
                os._exit(1)
        pidfd = os.pidfd_open(pid)
        self._sessions[pidfd] = pid
        self._poll.register(pidfd, select.POLLIN)
        self._send({"forked": pid}, pidfd)

    def _bury(self, pidfd: int) -> None:
        """A session's leader ended, or is about to: kill its group and all it left behind, and say so."""
        pid = self._sessions.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        # Its pid, and so the group's, is not given away before waitpid.
        with contextlib.suppress(ProcessLookupError):  # killed before it came to setsid
            os.killpg(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        kill_all_below(self._sessions.values(), STRAY_SECONDS)
        self._send({"gone": pid, "status": status})

    def _send(self, message: dict[str, int | str], *descriptors: int) -> None:
        with contextlib.suppress(OSError):  # the supervisor is gone: the loop sees that next
            socket.send_fds(self._connection, [json.dumps(message).encode()], list(descriptors))


def warm_up(packages: list[str]) -> None:
    """Import and exercise what cells use, through the same code that runs cells, and keep it out of the collector's way."""
    stream = io.StringIO()
    interpreter = Interpreter({"__name__": "warm_up"}, stream.write)
    with contextlib.redirect_stdout(stream):
        for code in (STANDARD, *(f"import {package}\n{EXERCISES.get(package, '')}" for package in packages)):
            if interpreter.run(0, code) != "ok":
                raise RuntimeError(stream.getvalue())
        interpreter.run(0, "1 / 0")
    libc.setvbuf(
        ctypes.c_void_p.in_dll(libc, "stdout"), None, 1, 0
    )  # _IOLBF: what C code prints keeps its place among the lines
    gc.collect()
    gc.freeze()


def main() -> None:
    """Serve on an inherited descriptor."""
    descriptor, plan, supervisor = int(sys.argv[1]), Plan.from_text(sys.argv[2]), int(sys.argv[3])
    plan = enter_zygote(plan, supervisor)
    connection = socket.socket(fileno=descriptor)
    warm_up(sys.argv[4:])
    zygote = Zygote(connection, plan)
    zygote.serve()
    zygote.end()


if __name__ == "__main__":
    main()
