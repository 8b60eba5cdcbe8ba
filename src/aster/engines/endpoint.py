"""Samples turns from a server that offers OpenAI's completions with token ids in and out.

ASTER uses vLLM's form of ``POST /v1/completions``, which SGLang has too: a prompt of token ids, ``return_token_ids``, and
``logprobs``. The sampled tokens come back as ids, so nothing is tokenised twice. Servers differ from
:class:`aster.engines.local.sampler.LocalSampler` in three points:

- A model's ``generation_config.json`` may set a server's defaults (``top_k``, penalties), so every request sets all of them.
- A server also stops at the model's own end tokens. If a turn ends at a token that is not one of our stop tokens, it continues
  with a request that contains the tokens sampled so far. So does a turn that the server cut because its weights were changed.
- A server draws its random numbers from the request's seed. The seed is made of the trajectory's seed and the position, so
  that all turns of a trajectory have different numbers. They are not the local sampler's numbers.
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
"""The environment variable that holds the server's key."""
PROBE_SECONDS = 60.0
"""Most seconds for each answer when the server is opened. Its first turn may have to load or compile something."""
PROBE = "<|im_start|>user\nSolve 3x² + 14 = 0, señor! 你好<|im_end|>\n<|im_start|>assistant\nThe result of that is"
"""A text on which tokenizers differ. Its next token is uncertain, so that a log-probability changed by temperature is
visible."""
TEMPERED = 0.05
"""The largest difference, in nats, that rounding can cause between two log-probabilities of one token."""


@dataclass(frozen=True, slots=True)
class Part:
    """The tokens that one request sampled."""

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str
    """``stop``, ``length``, or ``abort`` (vLLM: cut short by a pause)."""


class EndpointSampler:
    """Samples turns from a server. A turn that fails raises :class:`ServerError`, which the rollout loop records."""

    def __init__(self, server: Server, model: str, concurrency: int, seconds: float) -> None:
        """``model``: its name on the server. At most ``concurrency`` turns are requested at once, and each request may take
        ``seconds``."""
        self.server, self.model, self.seconds = server, model, seconds
        self._places = asyncio.Semaphore(concurrency)
        self._going = asyncio.Event()
        self._going.set()
        self._holds = 0

    def open(self, sequence: str) -> None:
        """Does nothing: servers find a trajectory's cache by its tokens."""

    def release(self, sequence: str) -> None:
        """Does nothing."""

    async def sample(self, token_ids: list[int], params: SamplingParams) -> Completion:
        """Sample one turn."""
        if not token_ids or params.max_tokens < 1:
            raise ValueError("a turn needs a prompt of at least one token, and max_tokens of at least 1")
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
                    raise ServerError(
                        f"{self.server.address}: the server ended a turn ({part.finish_reason}) without any token"
                    )

    def hold(self) -> None:
        """Send no request until :meth:`resume`. Turns whose requests the server cuts in this time wait."""
        self._going.clear()
        self._holds += 1

    def resume(self) -> None:
        """Send requests again after :meth:`hold`."""
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
    """A request for one completion. It sets every field for which a server might have its own default."""
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
    """The completion in a server's answer. Raises ServerError where token ids or log-probabilities are missing."""
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
    """Check that a server can be used. Return the model's name on it: ``model``, or the only model that it has.

    Raises UserError, which begins with ``where``, if the server does not answer, has another model or tokenizer, has too short
    a context, or does not return token ids and log-probabilities."""
    served = await _served(server, where)
    names = sorted(served)
    if not names:
        raise UserError(f"{where}: it serves no model; start the server with one")
    if model and model not in served:
        raise UserError(f"policy.model_name: {model}: {server.address} serves {', '.join(names)}; choose one of these")
    if not model and len(names) > 1:
        raise UserError(f"policy.model_name: choose one of the models that {server.address} serves: {', '.join(names)}")
    name = model or names[0]
    longest = served[name]
    if capacity is not None and longest is not None and capacity > longest:
        raise UserError(
            f"{where}: its context is {longest} tokens, but limits.context_tokens is {capacity}; "
            "lower limits.context_tokens, or start the server with a longer context"
        )
    await _check_tokens(server, where, name, tokenizer)
    return name


async def _served(server: Server, where: str) -> dict[str, int | None]:
    """The models of a server, each with its context in tokens, or None where the server does not tell."""
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
    """Check that the server returns token ids, has our tokenizer, and gives log-probabilities that do not change with the
    temperature. Raises UserError."""
    ours = list(tokenizer.encode(PROBE, add_special_tokens=False))
    try:
        body = request_body(name, PROBE, logprobs=1, temperature=0.5, seed=1)
        cold = (await server.ask("POST", "/v1/completions", body, seconds=PROBE_SECONDS))["choices"][0]
        theirs = cold.get("prompt_token_ids")
        if cold.get("token_ids") is None or theirs is None:
            raise UserError(
                f"{where}: it gives no token ids; it must support return_token_ids, as vLLM (0.10.2 or newer) and SGLang do"
            )
        if list(theirs) != ours:
            raise UserError(
                f"{where}: its tokenizer is not that of model.path: a text of {len(ours)} tokens has {len(theirs)} there"
                + (" different ones" if len(theirs) == len(ours) else "")
                + "; set model.path to the folder of the model that it serves"
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
    """A model behind a server, as an engine that can be sampled but not trained.

    ``model.path`` gives its tokenizer and chat format."""

    def __init__(self, sampler: EndpointSampler, dialect: Any) -> None:
        self.sampler, self.dialect = sampler, dialect

    @classmethod
    async def connect(cls, config: EngineConfig, checkpoint: Path | None, capacity: int | None) -> EndpointEngine:
        """Check the recipe's server and connect to it. Raises UserError where it cannot be used, or a ``checkpoint`` is
        given."""
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
        """Raises UserError: an endpoint cannot be trained."""
        raise refusal()

    async def forward_backward(self, samples: list[TrainingSample], loss: Loss) -> dict[str, float]:  # noqa: ARG002 - as above
        """Raises UserError: an endpoint cannot be trained."""
        raise refusal()

    async def optim_step(self, adam: AdamStep) -> dict[str, float]:  # noqa: ARG002 - as above
        """Raises UserError: an endpoint cannot be trained."""
        raise refusal()

    async def save(self, path: Path, optimizer: bool = True) -> None:  # noqa: ARG002 - as above
        """Raises UserError: an endpoint cannot be trained."""
        raise refusal()

    async def pause_sampler(self) -> None:
        """Does nothing: the weights never change."""

    async def refresh_sampler(self) -> None:
        """Does nothing: the weights never change."""

    async def close(self) -> None:
        """Close the connections."""
        await self.sampler.server.close()


def refusal(what: str = "") -> UserError:
    """The error for a request to train an endpoint. ``what``: a further reason."""
    return UserError(
        "policy.sampler: an endpoint has its own weights and cannot be trained"
        + (f"; {what}" if what else "")
        + "; use sampler=local or vllm for the stages sft and rl"
    )
