"""The engine on a Tinker server: SkyRL's on a cluster, or the hosted service. ``docs/cluster.md`` is the guide.

The server holds the weights and the optimizer. This process runs the loop and the sandbox and writes the run folder. A
checkpoint is a folder with a small file that points to a state on the server.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinker import types
from tinker.lib.retry_handler import RetryConfig

from aster.config import EngineConfig
from aster.engines.base import AdamStep, Completion, Loss, SamplingParams, TrainingSample
from aster.engines.local.loading import context_in, load_tokenizer, make_dialect, resolve
from aster.engines.tinker.samples import Reduction, grad_norm, make_request, measure, trained
from aster.engines.tinker.service import Service
from aster.errors import UserError
from aster.run import replacing
from aster.seeds import derive

POINTER = "tinker.json"
SEEDS = 1 << 31
"""Servers accept seeds below this."""
PROBE_TOKENS = 8


class TinkerEngine:
    """The engine. :meth:`connect` makes it."""

    def __init__(self, config: EngineConfig, service: Service, base_model: str, tokenizer: Any) -> None:
        self._settings = config.policy
        self._seed = derive(config.seed, "lora") % SEEDS
        self._service = service
        self._base_model = base_model
        self._training: Any = None
        self._sampling: Any = None
        self._samples = False
        self._reduction: Reduction = "sum"
        self._in_flight = asyncio.Semaphore(config.rollout.slots)
        self._saved: dict[Path, str] = {}
        self.dialect = make_dialect(tokenizer)

    @classmethod
    async def connect(
        cls, config: EngineConfig, path: Path | None = None, *, optimizer: bool = False, capacity: int | None = None
    ) -> TinkerEngine:
        """Open the recipe's base model, or the state that the checkpoint ``path`` points to, with its optimizer's state if
        asked.

        ``capacity``: the longest sequence to sample, in tokens; None where nothing is sampled. Raises UserError where there is
        no server, it does not have the model, or the model's context is shorter than ``capacity``."""
        settings = config.policy
        source = resolve(config.model.path, weights=False)
        tokenizer = load_tokenizer(source)
        service = Service(settings.base_url, settings.patience_seconds)
        policy: TinkerEngine | None = None
        try:
            models = await service.connect()
            base_model = choose_model(config, source, [model.model_name or "" for model in models])
            longest = [model.max_context_length for model in models if model.model_name == base_model] + [context_in(source)]
            most = min((found for found in longest if found), default=None)  # None: neither the server nor the model says
            if capacity is not None and most is not None and capacity > most:
                raise UserError(
                    f"limits.context_tokens: {capacity} is more than the {most} tokens of the model's context; lower it to that"
                )
            policy = cls(config, service, base_model, tokenizer)
            await policy._attach(path, optimizer)
            policy._samples = capacity is not None
            await policy.refresh_sampler()
        except BaseException:
            # Otherwise the model would keep its place on the server.
            await (service if policy is None else policy).close()
            raise
        return policy

    async def _attach(self, path: Path | None, optimizer: bool) -> None:
        """Make the server load the base model, or a checkpoint's state."""
        rank = self._settings.lora_rank
        state = None
        if path is not None:
            state = read_pointer(path, self._base_model, rank)
            # A resumed run also deletes the states of the checkpoints that it prunes.
            self._saved = {
                folder: read_pointer(folder, self._base_model, rank)
                for folder in path.parent.iterdir()
                if (folder / POINTER).exists()
            }
        self._training = await self._service.create_model(self._base_model, rank, self._seed, state, optimizer)
        self._reduction = await self._find_reduction()

    async def _find_reduction(self) -> Reduction:
        """How the server combines the losses of a batch: as the recipe says, or as its answer shows.

        The API does not report it. SkyRL's JAX backend is the one that takes means. Its answer to a forward pass identifies it:
        losses of single tokens, and no metrics."""
        wanted = self._settings.loss_reduction
        if wanted != "auto":
            return wanted
        sample = TrainingSample(list(range(PROBE_TOKENS)), [1] * PROBE_TOKENS, 0.0)
        answer = await self._forward([sample])
        return "sequence_mean" if "elementwise_loss" in answer.loss_fn_outputs[0] and not answer.metrics else "sum"

    # -- Sampler

    def open(self, sequence: str) -> None:
        """Does nothing: the server manages its own prefix cache."""

    async def sample(self, token_ids: list[int], params: SamplingParams) -> Completion:
        """Sample one turn, with the weights of the last :meth:`refresh_sampler`.

        Servers also stop at the model's own end tokens. If a turn ends at a token that is not one of our stop tokens, it
        continues with a request that contains the tokens sampled so far."""
        if self._sampling is None:
            raise RuntimeError("the policy was opened without a capacity")
        tokens: list[int] = []
        logprobs: list[float] = []
        async with self._in_flight:
            while True:
                found = await self._sample(token_ids + tokens, params, params.max_tokens - len(tokens), turn=True)
                tokens += found.tokens
                logprobs += found.logprobs
                stopped = bool(found.tokens) and tokens[-1] in params.stop_token_ids
                if stopped or found.stop_reason == "length" or len(tokens) >= params.max_tokens:
                    return Completion(tokens, logprobs, stopped)
                if not found.tokens:
                    raise RuntimeError(f"the Tinker server ended a turn ({found.stop_reason}) without any token")

    async def _sample(self, token_ids: list[int], params: SamplingParams, max_tokens: int, *, turn: bool) -> Any:
        """Sample with one request. ``turn``: as in :meth:`Service.ask`. Raises UserError where log-probabilities are
        missing."""
        asked = types.SamplingParams(
            max_tokens=max_tokens,
            temperature=params.temperature,
            top_p=params.top_p,
            # Each turn of a trajectory begins at another length, so no two turns draw the same numbers.
            seed=derive(params.seed, len(token_ids)) % SEEDS,
            stop=list(params.stop_token_ids) or None,
        )
        prompt = types.ModelInput.from_ints(token_ids)
        answer = await self._service.ask(
            "a turn", lambda: self._sampling.sample_async(prompt, 1, asked), repeat=True, turn=turn
        )
        found = answer.sequences[0]
        if found.logprobs is None or len(found.logprobs) != len(found.tokens):
            raise UserError(
                f"the Tinker server at {self._service.base_url} gives no log-probabilities of the tokens it samples"
            )
        return found

    def release(self, sequence: str) -> None:
        """Does nothing."""

    # -- training

    async def forward(self, samples: list[TrainingSample]) -> list[list[float]]:
        """Log-probabilities of the trained tokens of each sample."""
        return self._logprobs(samples, await self._forward(samples))

    async def forward_backward(self, samples: list[TrainingSample], loss: Loss) -> dict[str, float]:
        """Add the gradient of the summed loss. If ``ppo`` or ``cispo`` gets samples without old log-probabilities, a forward
        pass computes them first, because the truncated importance weights need them."""
        if loss.name != "cross_entropy" and any(sample.old_logprobs is None for sample in samples):
            old = await self.forward(samples)
            samples = [replace(s, old_logprobs=s.old_logprobs or logprobs) for s, logprobs in zip(samples, old, strict=True)]
        request = make_request(samples, loss, self._reduction)
        answer = await self._pass("a gradient", samples, request.loss_fn, request.config, request.inputs, backward=True)
        return measure(samples, self._logprobs(samples, answer), loss)

    async def _forward(self, samples: list[TrainingSample]) -> Any:
        inputs = [{"weights": [float(flag) for flag in sample.loss_mask[1:]]} for sample in samples]
        return await self._pass("a forward pass", samples, "cross_entropy", None, inputs, backward=False)

    async def _pass(
        self,
        what: str,
        samples: list[TrainingSample],
        loss_fn: str,
        config: dict[str, float] | None,
        inputs: list[dict[str, list[float]]],
        *,
        backward: bool,
    ) -> Any:
        data = [
            types.Datum(
                model_input=types.ModelInput.from_ints(sample.token_ids[:-1]),
                loss_fn_inputs={"target_tokens": sample.token_ids[1:], **extra},
            )
            for sample, extra in zip(samples, inputs, strict=True)
        ]
        run = self._training.forward_backward if backward else self._training.forward

        async def call() -> Any:
            return await run(data, loss_fn, config)

        return await self._service.ask(what, call, repeat=not backward)

    @staticmethod
    def _logprobs(samples: list[TrainingSample], answer: Any) -> list[list[float]]:
        """The log-probabilities of the trained tokens of each sample, from the answer to a pass."""
        outputs = [list(output["logprobs"].data) for output in answer.loss_fn_outputs]
        return [trained(sample, logprobs) for sample, logprobs in zip(samples, outputs, strict=True)]

    async def optim_step(self, adam: AdamStep) -> dict[str, float]:
        """One AdamW step on the server. ``grad_norm`` is NaN where the server does not report it."""
        asked = types.AdamParams(
            learning_rate=adam.learning_rate,
            beta1=adam.beta1,
            beta2=adam.beta2,
            eps=adam.eps,
            weight_decay=adam.weight_decay,
            grad_clip_norm=adam.max_grad_norm,
        )

        async def call() -> Any:
            return await self._training.optim_step(asked)

        answer = await self._service.ask("an optimizer step", call)
        return {"grad_norm": grad_norm(answer.metrics)}

    async def pause_sampler(self) -> None:
        """Does nothing: turns continue with the weights with which they began."""

    async def refresh_sampler(self) -> None:
        """Hand the current weights to the server's sampler."""
        if self._samples:
            # The client's own async variant blocks the event loop until the weights are there. A thread does not, so the
            # service can continue to watch the server. Only the service repeats and counts failed turns, not the client.
            call = self._service.in_thread(
                self._training.save_weights_and_get_sampling_client, retry_config=RetryConfig(enable_retry_logic=False)
            )
            self._sampling = await self._service.ask("weights for the sampler", call, repeat=True)
            if self._reduction == "sequence_mean":
                # SkyRL's JAX backend loads a sampler's weights at its first turn, into the adapter that is trained. If that
                # turn came after the next step, it would undo the step. So sample one token now.
                # It belongs to no trajectory. If the server refuses it, no turn can work, and the run ends with an error.
                await self._sample([0], SamplingParams(max_tokens=1), 1, turn=False)

    # -- checkpoints

    async def save(self, path: Path, optimizer: bool = True) -> None:  # noqa: ARG002 - a state always holds both
        """Save a state on the server, then write the folder that points to it. A failed write leaves no partial folder.

        States whose folders the run has deleted are deleted on the server."""

        async def call() -> Any:
            # Use a new name each time: an earlier attempt whose answer was lost may have used the last name.
            return await self._training.save_state(f"{path.name}-{uuid.uuid4().hex[:8]}")

        state = (await self._service.ask("a checkpoint", call, repeat=True)).path
        pointer = {
            "state": state,
            "base_url": self._service.base_url,
            "base_model": self._base_model,
            "lora_rank": self._settings.lora_rank,
        }
        with replacing(path) as partial:
            partial.mkdir()
            (partial / POINTER).write_text(json.dumps(pointer, indent=2) + "\n", encoding="utf-8")
        self._saved[path] = state
        await self._forget_pruned()

    async def _forget_pruned(self) -> None:
        """Delete on the server the states of folders that the run has deleted."""
        for folder in list(self._saved):
            # If the stage's whole folder is missing, a disk may be unavailable. Then delete nothing.
            if folder.parent.exists() and not folder.exists():
                await self._service.forget(self._saved.pop(folder))

    async def close(self) -> None:
        """Free the model on the server, delete the states pruned since the last checkpoint, and close the connections."""
        await self._forget_pruned()
        if self._training is not None:
            await self._service.unload(self._training.model_id)
        await self._service.close()


def choose_model(config: EngineConfig, source: Path, served: list[str]) -> str:
    """The server's name for the recipe's model. Raises UserError where the server does not have the model."""
    wanted = config.policy.base_model
    if wanted:
        found = [name for name in served if name == wanted]
    else:
        exact = [name for name in served if name in (config.model.path, str(source))]
        found = exact or [name for name in served if last_part(name) == source.name]
    if len(found) == 1:
        return found[0]
    field, value = ("policy.base_model", wanted) if wanted else ("model.path", config.model.path)
    raise UserError(
        f"{field}: the Tinker server at {config.policy.base_url} serves {', '.join(served) or 'no model'}, not {value}; "
        "start it with that base model, or set policy.base_model to the server's name for it"
    )


def last_part(name: str) -> str:
    """``Qwen3-4B`` of ``Qwen/Qwen3-4B``, and of ``/models/Qwen3-4B/``."""
    return name.rstrip("/").rpartition("/")[2]


def read_pointer(path: Path, base_model: str, rank: int) -> str:
    """The state on the server that a checkpoint folder points to. Raises UserError where it does not belong to this policy."""
    file = path / POINTER
    try:
        pointer = json.loads(file.read_text(encoding="utf-8"))
        state, model, trained_rank = str(pointer["state"]), pointer["base_model"], pointer["lora_rank"]
    except FileNotFoundError:
        raise UserError(f"{path}: not a checkpoint on a Tinker server (no {POINTER}); was policy.kind changed?") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file}: cannot be read ({type(error).__name__}: {error}); delete {path} and give the command again: the run "
            "resumes from the previous checkpoint"
        ) from None
    if (last_part(model), trained_rank) != (last_part(base_model), rank):
        raise UserError(
            f"{path}: it is a state of {model} with lora_rank {trained_rank}, not of {base_model} with lora_rank {rank}; "
            "choose another --run"
        )
    return state
