"""The primitives that every algorithm is written against, after the Tinker API.

    sampler.sample(token_ids, params)        -> Completion          one call an assistant turn; many in flight
    policy.forward(samples)                  -> logprobs            no gradient
    policy.forward_backward(samples, loss)   -> metrics             gradients add up until optim_step
    policy.optim_step(adam)                  -> metrics
    policy.save(path) / load(path); policy.refresh_sampler(); policy.close()

Losses are sums. The mean over the tokens of the global batch comes from the caller: it divides every sample's weights by the
number of trained tokens in the batch, and no engine has to know.
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
    """The engine has lost the policy that was trained in it, as when its server was started again. The stage opens the policy
    again and goes on from its last checkpoint."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one turn is sampled."""

    max_tokens: int
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    seed: int = 0
    """With the token's position in the sequence it fixes the token's random number, whatever else is in the batch."""
    stop_token_ids: tuple[int, ...] = ()
    sequence: str = ""
    """Names the trajectory, so that an engine can keep its key-value cache between turns."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled turn."""

    token_ids: list[int]
    """The stop token included, where there is one."""
    logprobs: list[float]
    """Untempered log-probabilities of the sampled tokens."""
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
    """Whoever writes assistant turns: a model, or a scripted expert."""

    def open(self, sequence: str) -> None:
        """A trajectory begins."""

    async def sample(self, token_ids: list[int], params: SamplingParams) -> Completion:
        """Sample one turn after ``token_ids``."""

    def release(self, sequence: str) -> None:
        """A trajectory ended: forget its cache."""


class Engine(Sampler, Protocol):
    """A model that is sampled and trained. :func:`aster.engines.opening.open_engine` makes the recipe's."""

    dialect: Qwen3Dialect
    """How it is spoken to, with its tokenizer."""

    async def forward(self, samples: list[TrainingSample]) -> list[list[float]]:
        """Log-probabilities of the trained tokens of each sample, in order, without gradient."""

    async def forward_backward(self, samples: list[TrainingSample], loss: Loss) -> dict[str, float]:
        """Add the gradient of the summed loss; returns sums and counts, among them ``loss`` and ``tokens``.

        ``entropy_sum`` is there too, except from a remote engine for ``cross_entropy``."""

    async def optim_step(self, adam: AdamStep) -> dict[str, float]:
        """Clip, step, clear the gradient; returns ``grad_norm`` (NaN where a remote engine does not tell), and
        ``peak_memory_mb`` (MiB) where the engine can tell."""

    async def save(self, path: Path, optimizer: bool = True) -> None:
        """Write a checkpoint folder, with the optimizer's state beside the weights if asked, whole or not at all. It is read
        where a policy is opened."""

    async def pause_sampler(self) -> None:
        """No turn is sampled until :meth:`refresh_sampler`, where sampling and training share a device: turns under way wait.
        Other engines have nothing to do."""

    async def refresh_sampler(self) -> None:
        """Make the sampler use the present weights. Its caches are dropped; turns under way go on with the new weights."""

    async def close(self) -> None:
        """Give back what the policy holds: threads, connections, processes."""
