"""A policy in this process, on one device: a ``transformers`` model, sampled and trained."""

from __future__ import annotations

import asyncio
import copy
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError

from aster.config import EngineConfig
from aster.engines.base import AdamStep, Completion, Loss, SamplingParams, TrainingSample
from aster.engines.local.adapters import Adapters
from aster.engines.local.loading import BROKEN, context_of, load_model, load_tokenizer, make_dialect, require_context, resolve
from aster.engines.local.memory import give_back, keep_freed_memory
from aster.engines.local.sampler import LocalSampler
from aster.engines.local.trainer import LocalTrainer
from aster.errors import UserError
from aster.run import replacing

OPTIMIZER = "optimizer.pt"


class LocalEngine:
    """Implements :class:`aster.engines.Policy`. All torch work runs in one thread of its own. Overlapped, it runs in two, and
    the sampler has a copy of the weights."""

    def __init__(
        self,
        config: EngineConfig,
        path: Path | None = None,
        *,
        optimizer: bool = False,
        capacity: int | None = None,
        overlapped: bool = False,
    ) -> None:
        """Load ``path`` (a checkpoint; default: the recipe's model), with its optimizer's state if asked. ``capacity`` is the
        longest sequence to sample, in tokens; ``overlapped``: turns are sampled while the model is trained. UserError where it
        cannot be loaded."""
        settings = config.model
        keep_freed_memory()
        self._pool = ThreadPoolExecutor(1, "aster-policy")
        self._sampling_pool = ThreadPoolExecutor(1, "aster-sampler") if overlapped else self._pool
        if settings.threads:
            torch.set_num_threads(settings.threads)
            for pool in (self._pool, self._sampling_pool):
                pool.submit(torch.set_num_threads, settings.threads).result()
        source = resolve(settings.path)
        self.tokenizer: Any = load_tokenizer(source)
        self.dialect = make_dialect(self.tokenizer)
        self.adapters: Adapters | None = None
        if config.policy.lora_rank:
            self.model: Any = load_model(source, settings)
            self.adapters = Adapters(self.model, config.policy, config.seed)
            if path is not None:
                self.adapters.load(path)
        else:
            self.model = load_model(path or source, settings)
        self.trainer = LocalTrainer(self.model)
        self._rollout = config.rollout
        self._sampler: LocalSampler | None = None
        if path is not None and optimizer:
            self._load_optimizer(path)
        if capacity is not None:
            self.prepare_sampler(capacity)

    def prepare_sampler(self, capacity: int) -> None:
        """Allocate the cache for sequences of at most ``capacity`` tokens. UserError where the model or the cache cannot have
        such."""
        slots = min(self._rollout.slots, self._rollout.cache_tokens // capacity)
        if slots < 1:
            raise UserError(
                f"rollout.cache_tokens: {self._rollout.cache_tokens} cannot hold one context of {capacity} tokens; "
                "raise it, or lower limits.context_tokens"
            )
        require_context(context_of(self.model.config), capacity)
        if self._sampler is None or self._sampler.cache.capacity < capacity or self._sampler.cache.slots != slots:
            model = self.model if self._shared else copy.deepcopy(self.model)
            self._sampler = LocalSampler(model, slots, capacity, self._rollout.deterministic, self._sampling_pool)

    @property
    def _shared(self) -> bool:
        """Sampler and trainer have one copy of the weights, and one thread."""
        return self._sampling_pool is self._pool

    @property
    def sampler(self) -> LocalSampler:
        """The sampler; :meth:`prepare_sampler` comes first."""
        if self._sampler is None:
            raise RuntimeError("prepare_sampler was not called")
        return self._sampler

    # -- Sampler

    def open(self, sequence: str) -> None:
        """A trajectory begins."""
        self.sampler.open(sequence)

    async def sample(self, token_ids: list[int], params: SamplingParams) -> Completion:
        """Sample one turn."""
        return await self.sampler.sample(token_ids, params)

    def release(self, sequence: str) -> None:
        """A trajectory ended."""
        self.sampler.release(sequence)

    # -- training

    async def forward(self, samples: list[TrainingSample]) -> list[list[float]]:
        """Log-probabilities of the trained tokens of each sample."""
        return await self._call(self.trainer.forward, samples)

    async def forward_backward(self, samples: list[TrainingSample], loss: Loss) -> dict[str, float]:
        """Add the gradient of the summed loss."""
        return await self._call(self.trainer.forward_backward, samples, loss)

    async def optim_step(self, adam: AdamStep) -> dict[str, float]:
        """One AdamW step."""
        return await self._call(self.trainer.optim_step, adam)

    async def pause_sampler(self) -> None:
        """Where sampling and training share the weights and the thread, no turn is sampled meanwhile."""
        if self._sampler is not None and self._shared:
            await self._sampler.pause()

    async def refresh_sampler(self) -> None:
        """Where the weights are shared with the sampler, only its caches are stale."""
        if self._sampler is not None:
            await self._sampler.pause()
            if not self._shared:
                await self._call(self._sampler.model.load_state_dict, self.model.state_dict())
            self._sampler.resume(changed=True)

    async def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()
        self._sampling_pool.shutdown()

    async def give_memory_back(self) -> None:
        """Let others on the GPU have the memory that training used and no longer needs."""
        await self._call(give_back, self.trainer.device)

    async def save(self, path: Path, optimizer: bool = True) -> None:
        """Write a ``transformers`` folder (and the optimizer's state), whole or not at all."""
        await self._call(self._save, path, optimizer)

    async def _call(self, function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    def _save(self, path: Path, optimizer: bool) -> None:
        with replacing(path) as partial:
            try:
                if self.adapters is None:
                    self.model.save_pretrained(partial)
                else:
                    self.adapters.save(partial)
                self.tokenizer.save_pretrained(partial)
                if optimizer:
                    torch.save(self.trainer.optimizer.state_dict(), partial / OPTIMIZER)
            except (SafetensorError, RuntimeError) as error:
                # What the two writers raise on a full disk.
                free = shutil.disk_usage(path.parent).free / (1 << 20)
                raise OSError(f"{str(error).splitlines()[0]} ({free:.1f} MiB are free)") from error

    def _load_optimizer(self, path: Path) -> None:
        file = path / OPTIMIZER
        if not file.exists():
            return
        try:
            self.trainer.optimizer.load_state_dict(torch.load(file, map_location=self.trainer.device, weights_only=True))
        except (*BROKEN, EOFError, UnpicklingError) as error:
            raise UserError(
                f"{file}: the optimizer's state cannot be read ({type(error).__name__}); delete {path} "
                "and give the command again: the run resumes from the checkpoint before it"
            ) from error
