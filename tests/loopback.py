"""HTTP servers on loopback, for the tests' fakes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GATHER_SECONDS = 30.0


@dataclass
class Gauge:
    """Counts the requests under way at a server. A request has ended before its answer is sent."""

    gather: int = 0
    """The first requests wait until so many are under way, at most :data:`GATHER_SECONDS`."""
    now: int = 0
    most: int = 0
    """The most that were under way at once."""
    changed: threading.Condition = field(default_factory=threading.Condition)

    @contextmanager
    def request(self) -> Iterator[None]:
        """One request, from when it is read until its answer is known."""
        with self.changed:
            self.now += 1
            self.most = max(self.most, self.now)
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.most >= self.gather, GATHER_SECONDS)
        try:
            yield
        finally:
            with self.changed:
                self.now -= 1


@contextmanager
def served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve on a free port, with a thread for each connection; yields the address. It ends without waiting for connections."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
