"""The operations of an engine, which every algorithm uses. They follow the Tinker API.

    sampler.sample(token_ids, params)        -> Completion          one call per assistant turn; many run at once
    policy.forward(samples)                  -> logprobs            without gradient
    policy.forward_backward(samples, loss)   -> metrics             gradients accumulate until optim_step
    policy.optim_step(adam)                  -> metrics
    policy.save(path) / load(path); policy.refresh_sampler(); policy.close()

Losses are sums. For the mean over the tokens of the whole batch, the caller divides every sample's weights by the number of
trained tokens in the batch. Engines do not need to know this number.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from aster.algorithms.base import Loss
from aster.types import TrainingSample

if TYPE_CHECKING:
    from aster.chat import Qwen3Dialect


class EngineLost(Exception):
    """The engine has lost the policy that it trained, for instance because its server was restarted. The stage opens the policy
    again and resumes from its last checkpoint."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one turn is sampled."""

    max_tokens: int
    temperature: float = 1.0
    """0: greedy."""
    top_p: float = 1.0
    seed: int = 0
    """Together with a token's position in the sequence, it determines the token's random number. The rest of the batch has no
    effect."""
    stop_token_ids: tuple[int, ...] = ()
    sequence: str = ""
    """The trajectory's name, with which an engine can keep its key-value cache between turns."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled turn."""

    token_ids: list[int]
    """The sampled tokens, with the stop token if there is one."""
    logprobs: list[float]
    """Log-probabilities of the sampled tokens at temperature 1."""
    stopped: bool
    """True if a stop token ended the turn, False if ``max_tokens`` did."""


@dataclass(frozen=True, slots=True)
class AdamStep:
    """One AdamW step."""

    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0


class Sampler(Protocol):
    """Something that writes assistant turns: a model, or a scripted expert."""

    def open(self, sequence: str) -> None:
        """A trajectory begins."""

    async def sample(self, token_ids: list[int], params: SamplingParams) -> Completion:
        """Sample one turn after ``token_ids``."""

    def release(self, sequence: str) -> None:
        """A trajectory ended: free its cache."""


class Engine(Sampler, Protocol):
    """A model that can be sampled and trained. :func:`aster.engines.opening.open_engine` opens the recipe's engine."""

    dialect: Qwen3Dialect
    """The model's chat format and tokenizer."""

    async def forward(self, samples: list[TrainingSample]) -> list[list[float]]:
        """Return the log-probabilities of the trained tokens of each sample, in order, without gradient."""

    async def forward_backward(self, samples: list[TrainingSample], loss: Loss) -> dict[str, float]:
        """Add the gradient of the summed loss. Return sums and counts, among them ``loss`` and ``tokens``.

        ``entropy_sum`` is among them too, except for ``cross_entropy`` with a remote engine."""

    async def optim_step(self, adam: AdamStep) -> dict[str, float]:
        """Clip the gradient, take a step, clear the gradient. Return ``grad_norm`` (NaN where a remote engine does not report
        it), and ``peak_memory_mb`` (MiB) where the engine knows it."""

    async def save(self, path: Path, optimizer: bool = True) -> None:
        """Write a checkpoint folder, with the optimizer's state if asked. A failed write leaves no partial folder. Opening a
        policy reads it."""

    async def pause_sampler(self) -> None:
        """Stop sampling until :meth:`refresh_sampler`, where sampling and training share a device; turns that are being sampled
        wait. Other engines do nothing."""

    async def refresh_sampler(self) -> None:
        """Make the sampler use the current weights. Its caches are emptied; turns that are being sampled continue with the new
        weights."""

    async def close(self) -> None:
        """Free what the policy holds: threads, connections, processes."""
