"""A fake engine at the process boundary: real HTTP on loopback, answers like those of vLLM's completions, and no model."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from aster.lab.tokenizer import build_tokenizer
from tests.loopback import Gauge, served

TOKENIZER = build_tokenizer()
Reply = Callable[[list[int], dict[str, Any]], tuple[list[int], str]]


@dataclass
class FakeEngine:
    """What it plays; every flag may be changed while it serves."""

    reply: Reply
    """The tokens and the finish reason for a prompt and a request."""
    models: dict[str, int | None] = field(default_factory=lambda: {"tiny": 4096})
    key: str = ""
    token_ids: bool = True
    tokenizer: Any = TOKENIZER
    tempered: bool = False
    seconds: float = 0.0
    failures: list[int] = field(default_factory=list)
    """Statuses of the next answers; 0 closes the connection without one."""
    dead: bool = False
    """Closes every connection without an answer."""
    retry_after: str = "0"
    asked: list[dict[str, Any]] = field(default_factory=list)
    """The completions asked for, the failed ones too."""
    gauge: Gauge = field(default_factory=Gauge)
    address: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        """vLLM's answer to a request."""
        prompt = body["prompt"]
        ids = self.tokenizer.encode(prompt, add_special_tokens=False) if isinstance(prompt, str) else prompt
        tokens, reason = self.reply(ids, body)
        tokens = tokens[: body["max_tokens"]]
        reason = "length" if len(tokens) == body["max_tokens"] and reason == "stop" else reason
        scale = body["temperature"] if self.tempered else 1.0
        value = -0.5 / (scale or 1.0)
        logprobs = {"token_logprobs": [value] * len(tokens), "top_logprobs": [{"a": value} for _ in tokens]}
        choice: dict[str, Any] = {"text": "", "finish_reason": reason, "logprobs": logprobs}
        if self.token_ids:
            choice |= {"token_ids": tokens, "prompt_token_ids": ids}
        return {"choices": [choice]}


@contextmanager
def serving(engine: FakeEngine) -> Iterator[FakeEngine]:
    """Serve it on a free port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, status: int, body: dict[str, Any]) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Retry-After", engine.retry_after)
            self.end_headers()
            self.wfile.write(content)

        def allowed(self) -> bool:
            if engine.dead:
                self.close_connection = True
                return False
            if engine.key and self.headers.get("Authorization") != f"Bearer {engine.key}":
                self.answer(401, {"error": "Unauthorized"})
                return False
            return True

        def do_GET(self) -> None:
            if not self.allowed():
                return
            if self.path != "/v1/models":
                self.answer(404, {"detail": "Not Found"})
                return
            listed = [{"id": name, "max_model_len": longest} for name, longest in engine.models.items()]
            self.answer(200, {"object": "list", "data": listed})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
            if not self.allowed():
                return
            with engine.lock:
                engine.asked.append(body)
                failure = engine.failures.pop(0) if engine.failures else 200
            with engine.gauge.request():
                time.sleep(engine.seconds)
                status, reply = failure, {"error": {"message": "the fake fails"}}
                if failure == 200 and body["model"] not in engine.models:
                    status, reply = 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
                elif failure == 200:
                    reply = engine.completion(body)
            if status == 0:
                self.close_connection = True
                return
            with suppress(ConnectionError):  # the client has gone
                self.answer(status, reply)

    with served(Handler) as engine.address:
        yield engine
