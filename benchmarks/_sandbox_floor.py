"""What a fork costs at the least: ``python _sandbox_floor.py PACKAGE ...``, driven by ``_sandbox_contestants.Floor``.

It warms up with the sandbox's own ``warm_up``, so that it has the zygote's libraries, pages and frozen collector, and then
answers each number N on its standard input with a line of JSON: N times, one after the other, it forks a child and sends it a
byte over a socket pair, which the child sends back before it exits. No namespaces, limits, seeds or interpreter state.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time

from aster_sandbox.warm import warm_up

ROUND_TRIPS = 20
"""Further bytes that the last child of a request sends back, for the round trip alone."""


def fork_once(further: int) -> dict[str, list[float]]:
    """One fork, in seconds: until the child's first answer, until the child was waited for; and ``further`` round trips."""
    began = time.perf_counter()
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        for _ in range(1 + further):
            theirs.send(theirs.recv(1))
        os._exit(0)
    ours.send(b".")
    ours.recv(1)
    answered = time.perf_counter() - began
    round_trips = []
    for _ in range(further):
        sent = time.perf_counter()
        ours.send(b".")
        ours.recv(1)
        round_trips.append(time.perf_counter() - sent)
    waiting = time.perf_counter()
    os.waitpid(pid, 0)
    ended = answered + time.perf_counter() - waiting
    ours.close()
    theirs.close()
    return {"answered": [answered], "ended": [ended], "round_trip": round_trips}


def main() -> None:
    """Serve until the end of the input."""
    warm_up(sys.argv[1:])
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        count = int(line)
        times: dict[str, list[float]] = {"answered": [], "ended": [], "round_trip": []}
        for index in range(count):
            for name, values in fork_once(ROUND_TRIPS if index == count - 1 else 0).items():
                times[name] += values
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main()
