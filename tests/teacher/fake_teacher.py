"""A scripted fake of a teacher's server, behind real HTTP on loopback. The problem's text says which part it plays.

A problem reads ``What is A*B? [PART]``. The good teacher reasons, computes in one call, prints the variable in the next, and
answers with the tool's output. So its answers are right only where its calls really ran, in one session.

It calls through the API, or writes its calls in its text (``FakeTeacher.writes``), like a server that parses nothing: the text
ends where the request's ``stop`` says, else the model goes on and invents the result; the marks of Harmony are there only where
the request asks for special tokens.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.loopback import Gauge, served

ANSWERED = "I get \\boxed{%s}."
SLOW_SECONDS = 60.0
WRITTEN = {"code": ("<code>", "</code>"), "fenced": ("```python", "```")}
RESULTS = {"code": "<interpreter>\n(.*?)\n</interpreter>", "fenced": "```output\n(.*?)\n```"}


@dataclass
class Reply:
    """An HTTP answer."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    """The connection breaks in the middle of the body."""


@dataclass
class FakeTeacher:
    """The server's settings and what it was asked. Every setting may be changed while it serves."""

    models: dict[str, int | None] = field(default_factory=lambda: {"teacher": None})
    key: str = ""
    reasoning_field: str = "reasoning_content"
    writes: str = "tools"
    """How it calls: through the API, or in text as ``code``, ``fenced`` or ``harmony``."""
    seconds: float = 0.0
    """Before each answer."""
    dead: bool = False
    """Closes every connection without an answer."""
    counts: tuple[str, ...] = ("prompt_tokens", "completion_tokens")
    """The token counts that it reports."""
    asked: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    played: Counter[str] = field(default_factory=Counter)
    """Requests by problem."""
    gauge: Gauge = field(default_factory=Gauge)
    address: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reply(self, body: dict[str, Any]) -> Reply:
        """The answer to a request."""
        prompt = next(m["content"] for m in body["messages"] if m["role"] == "user")
        part = "".join(re.findall(r"\[([\w ]+)\]", prompt))
        factors = [int(n) for n in re.findall(r"\d+", prompt)[:2]]
        results = self.results(body["messages"])
        with self.lock:
            self.played[prompt] += 1
            nth = self.played[prompt]
        playing = getattr(self, f"play_{part.replace(' ', '_') or 'good'}")
        played: Reply | dict[str, Any] = playing(factors, results, nth)
        if isinstance(played, Reply):
            return played
        if self.writes != "tools":
            played = self.spelled(played, body)
        usage = {"prompt_tokens": len(json.dumps(body["messages"])) // 4, "completion_tokens": len(json.dumps(played)) // 4}
        finish = played.pop("finish_reason", "tool_calls" if played.get("tool_calls") else "stop")
        answer: dict[str, Any] = {"choices": [{"message": {"role": "assistant", **played}, "finish_reason": finish}]}
        told = {key: usage[key] for key in self.counts}
        return Reply(body=json.dumps(answer | ({"usage": told} if told else {})).encode())

    def results(self, messages: list[dict[str, Any]]) -> list[str]:
        """The tool's outputs, in the form in which this teacher gets them."""
        if self.writes in RESULTS:
            told = "\n".join(m["content"] for m in messages[1:] if m["role"] == "user")
            return re.findall(RESULTS[self.writes], told, re.DOTALL)
        return [m["content"] for m in messages if m["role"] == "tool"]

    def spelled(self, message: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
        """The message as text only, as sent by a server that parses nothing."""
        thinking, content = message[self.reasoning_field], message["content"]
        codes = [json.loads(call["function"]["arguments"])["code"] for call in message["tool_calls"]]
        if self.writes == "harmony":
            text = f"<|channel|>analysis<|message|>{thinking}<|end|><|start|>assistant"
            if codes:  # stopped at <|call|>, a token of its own
                arguments = json.dumps({"code": codes[0]})
                text += f"<|channel|>commentary to=functions.python <|constrain|>json<|message|>{arguments}"
            else:
                text += f"<|channel|>final<|message|>{content}"
            return {"content": re.sub(r"<\|\w+\|>", "", text) if body.get("skip_special_tokens", True) else text}
        if not codes:
            return {"content": f"<think>\n{thinking}\n</think>\n\n{content}"}
        opening, closing = WRITTEN[self.writes]
        made_up = RESULTS[self.writes].replace("(.*?)", "0")
        text = f"{thinking}\n{opening}\n{codes[0]}\n{closing}\n{made_up}\nSo \\boxed{{0}}."
        ends = [text.index(stop) for stop in body.get("stop", []) if stop in text]
        return {"content": text[: min(ends)] if ends else text}

    def turn(self, thinking: str, content: str | None, *calls: tuple[str, str]) -> dict[str, Any]:
        """A message; each call is a name and its arguments."""
        asked = [
            {"id": f"id{n}", "type": "function", "function": {"name": name, "arguments": text}}
            for n, (name, text) in enumerate(calls)
        ]
        return {self.reasoning_field: thinking, "content": content, "tool_calls": asked}

    def code(self, thinking: str, code: str) -> dict[str, Any]:
        """A message with one good call."""
        return self.turn(thinking, None, ("python", json.dumps({"code": code})))

    # -- the parts

    def play_good(self, factors: list[int], results: list[str], _: int) -> dict[str, Any]:
        if not results:
            return self.code("First the product.", f"product = {factors[0]} * {factors[1]}")
        if len(results) == 1:
            return self.code("Now I look at it.", "print(product)")
        return self.turn("That is it.", ANSWERED % results[-1])

    def play_slow(self, factors: list[int], results: list[str], nth: int) -> dict[str, Any]:
        time.sleep(SLOW_SECONDS)
        return self.play_good(factors, results, nth)

    def play_garbled(self, *_: Any) -> Reply:
        return Reply(body=b'{"choices": [{"mess')

    def play_no_completion(self, *_: Any) -> Reply:
        return Reply(body=b'{"object": "list", "choices": "none"}')

    def play_torn_arguments(self, factors: list[int], results: list[str], nth: int) -> dict[str, Any]:
        if not results:
            return self.turn("Oops.", "", ("python", '{"code": "print(1'))
        return self.play_good(factors, results[1:], nth)

    def play_wrong_tool(self, factors: list[int], results: list[str], nth: int) -> dict[str, Any]:
        if not results:
            return self.turn("Oops.", "", ("browser.search<|channel|>", '{"query": "x"}'))
        return self.play_good(factors, results[1:], nth)

    def play_busy(self, *_: Any) -> Reply:
        return Reply(429, b'{"error": {"message": "slow down"}}', {"Retry-After": "30"})

    def play_busy_at_first(self, factors: list[int], results: list[str], nth: int) -> Reply | dict[str, Any]:
        if nth == 1:
            return Reply(429, b'{"error": {"message": "slow down"}}', {"Retry-After": "1"})
        return self.play_good(factors, results, nth)

    def play_broken(self, *_: Any) -> Reply:
        return Reply(502, b"<html>Bad Gateway</html>")

    def play_cut(self, *_: Any) -> Reply:
        return Reply(body=b'{"choices": [{"message": {"content": "I was abo', cut=True)

    def play_cut_once(self, factors: list[int], results: list[str], nth: int) -> Reply | dict[str, Any]:
        return self.play_cut() if nth == 1 else self.play_good(factors, results, nth)

    def play_silent(self, *_: Any) -> dict[str, Any]:
        return {"content": None}

    def play_stripped(self, *_: Any) -> dict[str, Any]:
        return {"content": "analysisIt is 42, I guess.assistantfinalI get \\boxed{42}."}

    def play_withheld(self, *_: Any) -> dict[str, Any]:
        return {"content": "", "finish_reason": "content_filter"}

    def play_too_long(self, factors: list[int], results: list[str], nth: int) -> Reply | dict[str, Any]:
        if results:
            text = "This model's maximum context length is 100 tokens. However, your request has 101 input tokens."
            return Reply(400, json.dumps({"error": {"message": text}}).encode())
        return self.play_good(factors, results, nth)

    def play_refused(self, *_: Any) -> Reply:
        return Reply(400, b'{"error": {"message": "unknown field: reasoning_content"}}')

    def play_endless(self, _factors: list[int], results: list[str], _nth: int) -> dict[str, Any]:
        return self.code("Once more.", f"print({len(results)})")

    def play_long_output(self, _factors: list[int], results: list[str], _nth: int) -> dict[str, Any]:
        return self.turn("Enough.", ANSWERED % "42") if results else self.code("Much.", "print('x' * 390)")

    def play_cut_short(self, *_: Any) -> dict[str, Any]:
        return self.turn("I think and", "") | {"finish_reason": "length"}

    def play_cut_in_a_call(self, *_: Any) -> dict[str, Any]:
        return {"content": "So.\n<code>\nprint(1", "finish_reason": "length"}

    def play_wrong(self, *_: Any) -> dict[str, Any]:
        return self.turn("A guess.", ANSWERED % "1")

    def play_in_text(self, _factors: list[int], _results: list[str], nth: int) -> dict[str, Any]:
        """ReTool's way; the server stops at </code>."""
        return {"content": "I compute.\n<code>\nprint(6 * 7)\n" if nth == 1 else "<think>Fine.</think>So \\boxed{42}."}


@contextmanager
def serving(teacher: FakeTeacher) -> Iterator[FakeTeacher]:
    """Serve it on a free port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, reply: Reply) -> None:
            self.send_response(reply.status)
            self.send_header("Content-Length", str(len(reply.body) + (100 if reply.cut else 0)))
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body)
            self.close_connection = self.close_connection or reply.cut

        def allowed(self) -> bool:
            if teacher.dead:
                self.close_connection = True
                return False
            if teacher.key and self.headers.get("Authorization") != f"Bearer {teacher.key}":
                self.answer(Reply(401, b'{"error": "Unauthorized"}'))
                return False
            return True

        def do_GET(self) -> None:
            if self.allowed():
                listed = [{"id": name, "max_model_len": longest} for name, longest in teacher.models.items()]
                self.answer(Reply(body=json.dumps({"data": listed}).encode()))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self.allowed():
                return
            with teacher.lock:
                teacher.asked.append(body)
                teacher.times.append(time.monotonic())
            with teacher.gauge.request():
                time.sleep(teacher.seconds)
                reply = None if teacher.dead else teacher.reply(body)
            if reply is None:
                self.close_connection = True
                return
            with suppress(ConnectionError):  # the client has gone
                self.answer(reply)

    with served(Handler) as teacher.address:
        yield teacher
