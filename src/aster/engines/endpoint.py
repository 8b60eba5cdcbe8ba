"""Turns sampled by a server: any that offers OpenAI's completions with token ids in and out.

What is asked of it is vLLM's form of ``POST /v1/completions``, which SGLang has too: a prompt of token ids,
``return_token_ids``, and ``logprobs``. The sampled tokens come back as ids, so nothing is tokenised twice. Three points where
servers differ from :class:`aster.engines.local.sampler.LocalSampler`:

- A model's ``generation_config.json`` may set a server's defaults (``top_k``, penalties), so every request names its own.
- A server also stops at the model's own end tokens. A turn that ended at a token that is no stop token of ours goes on, with a
  request that holds what was sampled so far; so does one that the server cut short because its weights were changed.
- A server draws its random numbers from the request's seed, which is made of the trajectory's seed and the position, so that
  no two turns of a trajectory share theirs. The draws are not the local sampler's.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aster.config import EngineConfig
from aster.engines.base import AdamStep, Completion, Loss, SamplingParams, TrainingSample
from aster.engines.local.loading import load_tokenizer, make_dialect, resolve
from aster.errors import UserError
from aster.http import Server, ServerError
from aster.seeds import derive

KEY = "ASTER_POLICY_KEY"
"""The environment variable with the server's key."""
PROBE_SECONDS = 60.0
"""For each answer at opening; a server's first turn may have to load or compile."""
PROBE = "<|im_start|>user\nSolve 3x² + 14 = 0, señor! 你好<|im_end|>\n<|im_start|>assistant\nThe result of that is"
"""A text on which tokenizers differ; what follows it is uncertain, so that a tempered log-probability shows."""
TEMPERED = 0.05
"""The greatest difference, in nats, between two log-probabilities of one token that rounding explains."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one request sampled."""

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str
    """``stop``, ``length``, or ``abort`` (vLLM: cut short by a pause)."""


class EndpointSampler:
    """Samples turns from a server. A turn that cannot be had raises :class:`ServerError`, which the loop records."""

    def __init__(self, server: Server, model: str, concurrency: int, seconds: float) -> None:
        """``model``: the name it serves. At most ``concurrency`` requests are under way; each turn may take ``seconds``."""
        self.server, self.model, self.seconds = server, model, seconds
        self._places = asyncio.Semaphore(concurrency)
        self._going = asyncio.Event()
        self._going.set()
        self._holds = 0

    def open(self, sequence: str) -> None:
        """Nothing to announce: servers find a trajectory's cache by its tokens."""

    def release(self, sequence: str) -> None:
        """Nothing to forget."""

    async def sample(self, token_ids: list[int], params: SamplingParams) -> Completion:
        """Sample one turn."""
        if not token_ids or params.max_tokens < 1:
            raise ValueError("a turn needs at least one token before it and room for one of its own")
        found: list[int] = []
        logprobs: list[float] = []
        async with self._places:
            while True:
                await self._going.wait()
                holds = self._holds
                part = await self._request(token_ids + found, params, params.max_tokens - len(found))
                found += part.token_ids
                logprobs += part.logprobs
                stopped = bool(part.token_ids) and found[-1] in params.stop_token_ids
                if stopped or part.finish_reason == "length" or len(found) >= params.max_tokens:
                    return Completion(found, logprobs, stopped)
                if not part.token_ids and not (part.finish_reason == "abort" and self._holds > holds):
                    raise ServerError(f"{self.server.address}: a turn ended ({part.finish_reason}) without any token")

    def hold(self) -> None:
        """Send no request until :meth:`resume`; a turn whose request the server cuts short meanwhile waits."""
        self._going.clear()
        self._holds += 1

    def resume(self) -> None:
        """Go on after :meth:`hold`."""
        self._going.set()

    async def _request(self, token_ids: list[int], params: SamplingParams, max_tokens: int) -> Part:
        body = request_body(
            self.model,
            token_ids,
            max_tokens=max_tokens,
            temperature=params.temperature,
            top_p=params.top_p,
            seed=derive(params.seed, len(token_ids)),
            stop_token_ids=list(params.stop_token_ids),
        )
        answer = await self.server.ask("POST", "/v1/completions", body, seconds=self.seconds)
        return read_part(self.server.address, answer)


def request_body(model: str, prompt: list[int] | str, **changes: Any) -> dict[str, Any]:
    """A request for one completion, with everything named that a server might have a default of its own for."""
    return {
        "model": model,
        "prompt": prompt,
        "n": 1,
        "max_tokens": 1,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logprobs": 0,
        "return_token_ids": True,
        "add_special_tokens": False,
        "skip_special_tokens": False,
        "stream": False,
        **changes,
    }


def read_part(address: str, answer: dict[str, Any]) -> Part:
    """The one choice of an answer; ServerError where it is not what was asked for."""
    try:
        choice = answer["choices"][0]
        token_ids = choice["token_ids"]
        logprobs = choice["logprobs"]["token_logprobs"] if token_ids else []
        part = Part([int(t) for t in token_ids], [float(p) for p in logprobs], str(choice["finish_reason"]))
    except (LookupError, TypeError, ValueError) as error:
        raise ServerError(f"{address}: the answer has no token ids with log-probabilities ({error!r})") from None
    if len(part.token_ids) != len(part.logprobs):
        raise ServerError(f"{address}: {len(part.token_ids)} tokens came with {len(part.logprobs)} log-probabilities")
    return part


async def probe(server: Server, tokenizer: Any, model: str, capacity: int | None, where: str) -> str:
    """The name of the model to ask for, ``model`` or the only one served, once the server has shown that it will do.

    UserError, which begins with ``where``, where it is not there, has another model, context or tokenizer, or does not give
    what is asked."""
    served = await _served(server, where)
    names = sorted(served)
    if not names:
        raise UserError(f"{where}: it serves no model")
    if model and model not in served:
        raise UserError(f"policy.model_name: {model}: {server.address} serves {', '.join(names)}; name one of these")
    if not model and len(names) > 1:
        raise UserError(f"policy.model_name: name one of the models that {server.address} serves: {', '.join(names)}")
    name = model or names[0]
    longest = served[name]
    if capacity is not None and longest is not None and capacity > longest:
        raise UserError(
            f"{where}: its context is {longest} tokens, and limits.context_tokens asks for {capacity}; "
            "lower the one, or start the server with a longer context"
        )
    await _check_tokens(server, where, name, tokenizer)
    return name


async def _served(server: Server, where: str) -> dict[str, int | None]:
    """The models of a server, each with its context in tokens where the server tells."""
    try:
        answer = await server.ask("GET", "/v1/models", seconds=PROBE_SECONDS)
        return {str(model["id"]): model.get("max_model_len") for model in answer["data"]}
    except ServerError as error:
        if error.status in (401, 403):
            raise UserError(f"{where}: it refuses the key; set the environment variable {KEY}") from None
        if error.status is not None:
            raise UserError(f"{where}: not an OpenAI-compatible server: {error}") from None
        raise UserError(f"{where}: no answer; start the server or correct the address ({error})") from None
    except (LookupError, TypeError, AttributeError):
        raise UserError(f"{where}: not an OpenAI-compatible server (GET /v1/models lists no models)") from None


async def _check_tokens(server: Server, where: str, name: str, tokenizer: Any) -> None:
    """Token ids, the tokenizer, and log-probabilities that temperature leaves alone."""
    ours = list(tokenizer.encode(PROBE, add_special_tokens=False))
    try:
        body = request_body(name, PROBE, logprobs=1, temperature=0.5, seed=1)
        cold = (await server.ask("POST", "/v1/completions", body, seconds=PROBE_SECONDS))["choices"][0]
        theirs = cold.get("prompt_token_ids")
        if cold.get("token_ids") is None or theirs is None:
            raise UserError(
                f"{where}: it gives no token ids; a server must know return_token_ids, as vLLM (0.10.2 or newer) and SGLang do"
            )
        if list(theirs) != ours:
            raise UserError(
                f"{where}: its tokenizer is not that of model.path: a text of {len(ours)} tokens has {len(theirs)} there"
                + (" other ones" if len(theirs) == len(ours) else "")
                + "; let model.path name the folder of the model that it serves"
            )
        body = request_body(name, ours, logprobs=1, temperature=2.0, seed=1)
        answer = await server.ask("POST", "/v1/completions", body, seconds=PROBE_SECONDS)
        hot = answer["choices"][0]
        read_part(server.address, answer)
        best = [max(choice["logprobs"]["top_logprobs"][0].values()) for choice in (cold, hot)]
    except ServerError as error:
        raise UserError(f"{where}: it does not complete token ids with log-probabilities: {error}") from None
    except (LookupError, TypeError, ValueError, AttributeError):
        raise UserError(f"{where}: its completions hold no log-probabilities") from None
    if abs(best[0] - best[1]) > TEMPERED:
        raise UserError(
            f"{where}: its log-probabilities change with the temperature; they must be the model's own "
            "(vLLM: --logprobs-mode raw_logprobs, its default; SGLang: SGLANG_RETURN_ORIGINAL_LOGPROB=1)"
        )


class EndpointEngine:
    """A model behind a server as a :class:`aster.engines.Policy` that can be sampled and not trained.

    ``model.path`` gives its tokenizer, and with it the dialect."""

    def __init__(self, sampler: EndpointSampler, dialect: Any) -> None:
        self.sampler, self.dialect = sampler, dialect

    @classmethod
    async def connect(cls, config: EngineConfig, checkpoint: Path | None, capacity: int | None) -> EndpointEngine:
        """Probe the server of the recipe. UserError where it will not do, or a ``checkpoint`` of ours is asked for."""
        if checkpoint is not None:
            raise refusal(f"it cannot sample {checkpoint}")
        tokenizer = load_tokenizer(resolve(config.model.path, weights=False))
        dialect = make_dialect(tokenizer)
        settings = config.policy
        server = Server(settings.base_url, os.environ.get(KEY), field="policy.base_url")
        try:
            name = await probe(server, tokenizer, settings.model_name, capacity, f"policy.base_url: {server.address}")
        except BaseException:
            await server.close()
            raise
        return cls(EndpointSampler(server, name, config.rollout.slots, settings.request_seconds), dialect)

    def open(self, sequence: str) -> None:
        """A trajectory begins."""
        self.sampler.open(sequence)

    async def sample(self, token_ids: list[int], params: SamplingParams) -> Completion:
        """Sample one turn."""
        return await self.sampler.sample(token_ids, params)

    def release(self, sequence: str) -> None:
        """A trajectory ended."""
        self.sampler.release(sequence)

    async def forward(self, samples: list[TrainingSample]) -> list[list[float]]:  # noqa: ARG002 - the protocol's names
        """Refused."""
        raise refusal()

    async def forward_backward(self, samples: list[TrainingSample], loss: Loss) -> dict[str, float]:  # noqa: ARG002 - as above
        """Refused."""
        raise refusal()

    async def optim_step(self, adam: AdamStep) -> dict[str, float]:  # noqa: ARG002 - as above
        """Refused."""
        raise refusal()

    async def save(self, path: Path, optimizer: bool = True) -> None:  # noqa: ARG002 - as above
        """Refused."""
        raise refusal()

    async def pause_sampler(self) -> None:
        """Nothing to do: no weights change."""

    async def refresh_sampler(self) -> None:
        """Nothing to do: no weights change."""

    async def close(self) -> None:
        """Close the connections."""
        await self.sampler.server.close()


def refusal(what: str = "") -> UserError:
    """What an endpoint answers to whoever would train it."""
    return UserError(
        "policy.sampler: an endpoint has weights of its own and cannot be trained"
        + (f"; {what}" if what else "")
        + "; use sampler=local or vllm for the stages sft and rl"
    )
