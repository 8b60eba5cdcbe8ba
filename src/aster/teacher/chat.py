"""A teacher behind any OpenAI-compatible chat endpoint, with the tools of an environment.

:class:`ChatAuthor` makes attempts as text (:class:`~aster.transcript.Transcript`), whatever tokens the teacher has. Its loop
checks the budget in the order of :mod:`aster.rollout.loop`, the loop of token policies:

    before a turn   context_tokens, turns, wall_seconds (:meth:`Budget.before_turn`)
    after it        the turn was cut, then tool_calls, call by call

The server counts the tokens. For what it has not counted yet, a first prompt or the newest outputs, their number is estimated.
Where the estimate was too low and the server refuses the request, its message says how much room there is; then the request is
sent once more.

The reasoning of earlier turns is sent back, in the field in which it came, because GPT-OSS needs it within a loop of calls.
Failures are recorded on the transcript by name (:data:`aster.teacher.failures.FAILURES`). Only cancellation and UserErrors are
raised: a wrong key or model, a server that is gone, a spending limit that is reached.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field
from typing import Any

from aster.chat.tools import ParsedCall, ToolSchemas
from aster.chat.writings import WRITINGS
from aster.environments.base import Environment, opening, record_score
from aster.environments.tools import Toolbox, ToolFailure, not_run
from aster.errors import UserError
from aster.http import Server, ServerError
from aster.rollout import Decoding
from aster.seeds import derive
from aster.teacher.failures import Failure, TeacherGone, failed, room_told
from aster.teacher.messages import (
    Answer,
    Calls,
    SendReasoning,
    estimate,
    read_answer,
    result_messages,
    turn_message,
)
from aster.teacher.spending import Spending
from aster.transcript import Step, Transcript, Usage
from aster.types import Budget, Problem, StopReason, ToolCall
from aster_sandbox import SandboxFailure

KEY = "ASTER_TEACHER_KEY"
"""The environment variable with the server's key."""
PROBE_SECONDS = 30.0
PATH = "/v1/chat/completions"


class ChatAuthor:
    """Attempts problems through one server. An asynchronous context manager; entering it asks the server for its models."""

    def __init__(
        self,
        base_url: str,
        model: str = "",
        *,
        calls: Calls = "tools",
        system: str = "",
        send_reasoning: SendReasoning = "auto",
        request: dict[str, Any] | None = None,
        concurrency: int = 16,
        request_seconds: float = 900.0,
        spending: Spending | None = None,
        field: str = "base_url",
    ) -> None:
        """``model``: the name under which it is served; empty: the only one. ``system``: text before every dialogue, which is
        not part of the transcript. ``request``: more fields of every request; None removes one of ours. At most ``concurrency``
        attempts are under way, and a request with all its repetitions takes at most ``request_seconds``. ``field`` names the
        address in errors."""
        self.server = Server(base_url, os.environ.get(KEY), field=field)
        self.model, self.calls, self.system, self.send_reasoning = model, calls, system, send_reasoning
        self.request = request or {}
        self.request_seconds, self.spending, self.field = request_seconds, spending or Spending(), field
        self.longest: int | None = None
        """The server's context in tokens; None where it does not say."""
        self._places = asyncio.Semaphore(concurrency)

    async def __aenter__(self) -> ChatAuthor:
        try:
            await self._look()
        except BaseException:
            await self.server.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.close()

    async def attempt(
        self,
        problem: Problem,
        sample: int,
        seed: int,
        *,
        environment: Environment,
        budget: Budget,
        decoding: Decoding,
    ) -> Transcript:
        """One attempt at a problem, scored."""
        async with self._places:
            prompt, system = opening(environment, problem)
            transcript = Transcript(
                problem.id,
                sample,
                prompt,
                problem.answer,
                seed=seed,
                system=system,
                setup=problem.setup,
                author=self.model,
                source=problem.source,
                usage=Usage(),
                metadata=dict(problem.metadata),
            )
            toolbox = Toolbox(environment.tools, problem, seed)
            dialogue = _Dialogue(self, transcript, toolbox, environment.schemas, budget, decoding)
            began = time.monotonic()
            try:
                transcript.stop_reason = await dialogue.run(began)
            except SandboxFailure as error:
                transcript.stop_reason, transcript.error = StopReason.SANDBOX_ERROR, str(error)
            except ToolFailure as error:
                transcript.stop_reason, transcript.error = StopReason.ENVIRONMENT_ERROR, str(error)
            except Failure as error:
                full = error.name == "context_length"
                transcript.stop_reason = StopReason.TOKEN_BUDGET if full else StopReason.ENGINE_ERROR
                transcript.error = str(error)
            finally:
                await toolbox.close()
            transcript.seconds = round(time.monotonic() - began, 4)
            await record_score(environment, problem, transcript.steps, transcript)
            return transcript

    async def ask(self, body: dict[str, Any]) -> dict[str, Any]:
        """The server's answer to a request. ServerError where it failed, UserError where every other request would fail too."""
        try:
            return await self.server.ask("POST", PATH, body, seconds=self.request_seconds)
        except ServerError as error:
            if error.status in (401, 403):
                raise UserError(f"{self.field}: {error}; set the environment variable {KEY}") from None
            if error.status == 404:
                raise UserError(f"{self.field}: {error}; correct the address or the model's name") from None
            # One request may fail by chance. The next one shows whether the server is still there.
            if error.kind in ("connection_lost", "timeout") and not await self._alive():
                raise TeacherGone(f"{self.field}: {self.server.address} no longer answers ({error})") from None
            raise

    async def _alive(self) -> bool:
        """Whether the server gives any answer."""
        try:
            await self.server.ask("GET", "/v1/models", seconds=PROBE_SECONDS, insist=False)
        except ServerError as error:
            return error.status is not None
        return True

    async def _look(self) -> None:
        """Find the model and its context in the server's list, if it has one. UserError where there is no server or model."""
        where = f"{self.field}: {self.server.address}"
        try:
            answer = await self.server.ask("GET", "/v1/models", seconds=PROBE_SECONDS)
            served = {str(model["id"]): model.get("max_model_len") for model in answer["data"]}
        except ServerError as error:
            if error.status in (401, 403):
                raise UserError(f"{where}: it refuses the key; set the environment variable {KEY}") from None
            if error.status is None:
                raise UserError(f"{where}: no answer; start the server or correct the address ({error})") from None
            served = {}
        except (LookupError, TypeError, AttributeError):
            served = {}
        if not self.model:
            if len(served) != 1:
                raise UserError(f"{where}: name the model; it serves {', '.join(sorted(served)) or 'none that it lists'}")
            self.model = next(iter(served))
        elif served and self.model not in served:
            raise UserError(f"{where}: it does not serve {self.model}, but {', '.join(sorted(served))}; name one of these")
        longest = served.get(self.model)
        self.longest = longest if isinstance(longest, int) else None


@dataclass(slots=True)
class _Dialogue:
    author: ChatAuthor
    transcript: Transcript
    toolbox: Toolbox
    tools: ToolSchemas
    """The tools as the server is told of them."""
    budget: Budget
    decoding: Decoding
    messages: list[dict[str, Any]] = field(default_factory=list)
    counted: int = 0
    """Tokens of the dialogue that the server has counted."""
    written: int = 0
    """Tokens that the model wrote. Some servers leave earlier reasoning out of the dialogue, and so out of their count."""
    first_prompt: int = 0
    fresh: int = 0
    """The estimate of the tokens that the server has not counted yet."""

    @property
    def used(self) -> int:
        return max(self.counted, self.first_prompt + self.written) + self.fresh

    async def run(self, began: float) -> StopReason:
        """The loop, until the attempt ends. The caller records Failure, SandboxFailure and ToolFailure."""
        budget, transcript = self.budget, self.transcript
        self._open()
        while True:
            turns = len(transcript.steps)
            room = min(budget.context_tokens, self.author.longest or budget.context_tokens) - self.used
            ended = budget.before_turn(room, turns, time.monotonic() - began)
            if ended is not None:
                return ended
            answer = await self._turn(turns, min(room, budget.turn_tokens))
            step = Step(answer.thinking, answer.text, tokens=answer.completion_tokens)
            transcript.steps.append(step)
            if answer.finish_reason == "length":
                step.calls = [not_run(call.parsed, "the turn was cut off") for call in answer.calls]
                return StopReason.TOKEN_BUDGET
            if not answer.calls:
                return StopReason.ANSWERED
            for place, call in enumerate(answer.calls):
                if len(transcript.calls) >= budget.tool_calls:
                    step.calls += [not_run(left.parsed, "the budget of calls is spent") for left in answer.calls[place:]]
                    return StopReason.CALL_BUDGET
                step.calls.append(await self._call(call.parsed))
            told = [turn_message(answer, self.author.calls, self.author.send_reasoning, self.tools)]
            results = result_messages(answer, step.calls, self.author.calls)
            self.messages += told + results
            self.fresh += estimate(results)

    def _open(self) -> None:
        writing = WRITINGS.get(self.author.calls)
        instructions = writing.instructions if writing is not None and self.tools else ""
        system = "\n\n".join(text for text in (self.author.system, self.transcript.system, instructions) if text)
        if system:
            self.messages.append({"role": "system", "content": system})
        self.messages.append({"role": "user", "content": self.transcript.prompt})
        self.fresh = estimate([*self.messages, *self.tools.functions])

    async def _turn(self, number: int, max_tokens: int) -> Answer:
        author, asked = self.author, self.used
        body = self._body(number, max_tokens)
        try:
            answer = await self._ask(body, asked)
        except ServerError as error:
            failure, room = failed(error), room_told(error)
            if failure.name != "context_length" or room is None or not 0 < room < max_tokens:
                raise failure from None
            try:
                answer = await self._ask(self._body(number, room), asked)
            except ServerError as again:
                raise failed(again) from None
        prompt = answer.prompt_tokens if answer.prompt_tokens is not None else asked
        texts = {"role": "assistant", "content": answer.raw + answer.thinking}
        completion = answer.completion_tokens if answer.completion_tokens is not None else estimate([texts])
        if None in (answer.prompt_tokens, answer.completion_tokens) and author.spending.limit is not None:
            raise UserError(
                f"{author.spending.field}: the server at {author.server.address} does not say how many tokens a turn had, so "
                "the limit cannot be kept; remove it, or use another server"
            )
        self.first_prompt = self.first_prompt or prompt
        self.written += completion
        self.counted, self.fresh = prompt + completion, 0
        return answer

    async def _ask(self, body: dict[str, Any], prompt_tokens: int) -> Answer:
        author, transcript = self.author, self.transcript
        most = int(body.get("max_tokens") or body.get("max_completion_tokens") or self.budget.turn_tokens)
        async with author.spending.room(prompt_tokens, most):
            answered = await author.ask(body)
            usage = answered.get("usage")
            counts = [usage.get(key) if isinstance(usage, dict) else None for key in ("prompt_tokens", "completion_tokens")]
            assert transcript.usage is not None
            # Counted before it is read, because an answer that cannot be used costs as much.
            author.spending.count(
                transcript.usage,
                *(count if isinstance(count, int) else 0 for count in counts),
                problem_id=transcript.problem_id,
                sample=transcript.sample,
            )
        return read_answer(author.server.address + PATH, answered, author.calls, self.tools)

    def _body(self, number: int, max_tokens: int) -> dict[str, Any]:
        author = self.author
        body: dict[str, Any] = {
            "model": author.model,
            "messages": self.messages,
            "max_tokens": max_tokens,
            "temperature": self.decoding.temperature,
            "top_p": self.decoding.top_p,
            # 31 bits, because some servers take no more.
            "seed": derive(self.transcript.seed, "turn", number) & 0x7FFFFFFF,
            "stream": False,
        }
        writing = WRITINGS.get(author.calls)
        if self.tools and author.calls in ("tools", "harmony"):
            body |= {"tools": self.tools.functions, "tool_choice": "auto"}
        elif self.tools and writing is not None and writing.stop:
            body["stop"] = list(writing.stop)
        body |= author.request
        return {key: value for key, value in body.items() if value is not None}

    async def _call(self, call: ParsedCall) -> ToolCall:
        return await self.toolbox.run(call) if self.tools else not_run(call, "no tool is offered here")
