"""The in-process sampler: continuous batching over any ``transformers`` decoder.

Each step feeds every running sequence its pending tokens: one (the token just sampled), or several (a prompt, or a tool's
response between two turns), all side by side in one forward pass. A sequence keeps its slot of the key-value cache while its
tool runs, so that only the tool's tokens are fed when it comes back. Sequences join and leave between any two steps; those for
which there is no slot wait.

The forward pass runs in a thread of its own, so that tools and graders work meanwhile. Random numbers depend on (seed,
position) and never on the batch; see :mod:`aster.engines.local.drawing`.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from aster.engines.base import Completion, SamplingParams
from aster.engines.local.cache import Chunk, KeyValueCache
from aster.engines.local.cpu import fast_decoder
from aster.engines.local.decoder import Decoder
from aster.engines.local.drawing import sample_tokens

MAX_BATCHED_TOKENS = 8192
"""Most tokens of one forward pass; longer prompts are fed in several steps."""
MIN_COPIED_PREFIX = 16
"""A prefix that another sequence has in the cache is copied, not computed again, from so many tokens on."""


@dataclass(eq=False, slots=True)
class Sequence:
    """A trajectory the sampler knows."""

    name: str
    cached: list[int] = field(default_factory=list)
    """Tokens whose keys and values are in its slot."""
    slot: int | None = None
    request: Request | None = None
    """The turn being sampled, or None while its tool runs."""
    opened: bool = False


@dataclass(eq=False, slots=True)
class Request:
    """One turn to be sampled."""

    params: SamplingParams
    pending: list[int]
    """Tokens to feed before the next one can be sampled; until the request is admitted, the whole sequence."""
    future: asyncio.Future[Completion]
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    admitted: bool = False
    """True once it takes part in steps."""


class LocalSampler:
    """Samples turns from a model held in this process. One event loop at a time may use it."""

    def __init__(self, model: Any, slots: int, capacity: int, deterministic: bool, pool: ThreadPoolExecutor) -> None:
        """``capacity`` is the longest sequence in tokens; the cache holds ``slots * capacity`` tokens. ``deterministic``: each
        step waits for all opened sequences, so that a run repeats to the bit. ``pool`` has the one thread that computes."""
        self.model, self.pool, self.deterministic = model, pool, deterministic
        parameter = next(model.parameters())
        self.device = parameter.device
        self.cache = KeyValueCache(model.config, slots, capacity, parameter.dtype, self.device)
        self.decoder: Decoder = fast_decoder(model, self.cache) or Decoder(model, self.cache)
        self.holders: list[Sequence] = []
        """The sequences that have a slot."""
        self.free_slots = list(range(slots))
        self.sequences: dict[str, Sequence] = {}
        self.incoming: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self.leaving: list[Sequence] = []
        self.lock = threading.Lock()
        """Held by whoever touches the lists above: the event loop and the sampler's thread."""
        self.changed = asyncio.Event()
        """A sequence came, left or was cancelled. Used where the next step waits for all."""
        self.resumed = asyncio.Event()
        self.resumed.set()
        self.stepping = asyncio.Lock()
        self.task: asyncio.Task[None] | None = None

    # -- what the rollout calls, on the event loop

    def open(self, sequence: str) -> None:
        """Announce a trajectory."""
        self.sequences[sequence] = Sequence(sequence, opened=True)

    async def sample(self, token_ids: list[int], params: SamplingParams) -> Completion:
        """Sample one turn. Raises ValueError where the sequence would not fit in a slot."""
        if len(token_ids) + params.max_tokens > self.cache.capacity:
            raise ValueError(
                f"{len(token_ids)} tokens and a turn of {params.max_tokens} do not fit in {self.cache.capacity} cached tokens"
            )
        if not token_ids or params.max_tokens < 1:
            raise ValueError("a turn needs at least one token before it and room for one of its own")
        sequence = self.sequences.setdefault(params.sequence, Sequence(params.sequence))
        if sequence.request is not None:
            raise ValueError(f"a turn of {params.sequence} is being sampled already")
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        request = Request(params, list(token_ids), future)
        with self.lock:
            sequence.request = request
            self.incoming.append(sequence)
        if self.task is None or self.task.done():
            # An event belongs to the loop that first waited for it; this may be a new loop.
            self.changed, self.stepping = asyncio.Event(), asyncio.Lock()
            self.decoder.refresh_weights()
            self.task = asyncio.create_task(self._run())
        self.changed.set()
        try:
            return await future
        finally:
            with self.lock:
                if future.cancelled() and sequence.request is request:
                    sequence.request = None
                    self.changed.set()

    def release(self, sequence: str) -> None:
        """Forget a trajectory."""
        known = self.sequences.pop(sequence, None)
        if known is not None:
            with self.lock:
                self.leaving.append(known)
            self.changed.set()

    async def pause(self) -> None:
        """Sample nothing until :meth:`resume`; returns when no step is being computed. Unfinished turns wait."""
        self.resumed.clear()
        async with self.stepping:
            self.decoder.release_weights()

    def resume(self, *, changed: bool) -> None:
        """Continue after :meth:`pause`. If the weights have ``changed``, the cache is dropped: an unfinished turn feeds its
        tokens again, so that its next tokens depend on the new weights only."""
        self.decoder.refresh_weights()
        if changed:
            for sequence in self.sequences.values():
                request = sequence.request
                if request is not None and request.admitted:
                    request.pending[:0] = sequence.cached
                sequence.cached.clear()
        self.resumed.set()

    # -- the loop

    async def _run(self) -> None:
        """Keep the sampler's thread stepping while there is a turn to sample."""
        loop = asyncio.get_running_loop()
        stop = threading.Event()
        try:
            while True:
                await self.resumed.wait()
                if self.deterministic and any(s.opened and s.request is None for s in self.sequences.values()):
                    # Nothing is scheduled meanwhile: which sequence gets which slot must not depend on who comes back first.
                    self.changed.clear()
                    await self.changed.wait()
                    continue
                async with self.stepping:
                    await loop.run_in_executor(self.pool, self._run_steps, loop, stop)
                # Let the trajectories whose turns are finished parse, call tools and come back.
                await asyncio.sleep(0)
                if not self.incoming and not any(s.request is not None for s in [*self.holders, *self.waiting]):
                    return
        except Exception as error:  # noqa: BLE001 - whatever the engine raises goes to those who wait for it
            self._fail(error)
        finally:
            stop.set()

    @staticmethod
    def _deliver(finished: list[tuple[Request, Completion]]) -> None:
        for request, completion in finished:
            if not request.future.done():
                request.future.set_result(completion)

    def _fail(self, error: Exception) -> None:
        """Tell every trajectory that waits of an error, and empty all slots; the next turn starts from nothing."""
        for sequence in [*self.sequences.values(), *self.leaving]:
            request, sequence.request, sequence.slot = sequence.request, None, None
            sequence.cached.clear()
            if request is not None and not request.future.done():
                request.future.set_exception(RuntimeError(f"the sampler failed: {error!r}"))
        self.holders, self.incoming, self.waiting, self.leaving = [], [], [], []
        self.free_slots = list(range(self.cache.slots))

    def _schedule(self) -> None:
        """Take the slots of sequences that leave, and give free ones to those that wait. The lock is held."""
        if self.deterministic:
            self.leaving.sort(key=lambda s: s.name)
            self.incoming.sort(key=lambda s: s.name)
        for sequence in self.leaving:
            self._free_slot(sequence)
        left, self.leaving = set(self.leaving), []
        self.waiting = [s for s in [*self.waiting, *self.incoming] if s not in left and s.request is not None]
        self.incoming = []
        still_waiting: list[Sequence] = []
        full = False
        for sequence in self.waiting:
            request = sequence.request
            assert request is not None
            if sequence.slot is None:
                full = full or (not self.free_slots and all(s.request is not None for s in self.holders))
                if full or not self._assign_slot(sequence, request.pending):
                    still_waiting.append(sequence)
                    continue
            if not request.admitted:
                request.admitted = True
                shared = _shared_prefix(sequence.cached, request.pending)
                del sequence.cached[shared:], request.pending[:shared]
        self.waiting = still_waiting

    def _assign_slot(self, sequence: Sequence, token_ids: list[int]) -> bool:
        """Give a sequence a slot, with the prefix that another one has in the cache. False where it should wait until another
        one has read more of it: samples of one problem, and prompts with the same tool, are read once. There must be a free
        slot, or one that can be taken."""
        source, cached, coming = self._longest_prefix(token_ids)
        if coming >= cached + MIN_COPIED_PREFIX:
            return False
        if not self.free_slots:
            self._evict()
        slot = sequence.slot = self.free_slots.pop()
        self.holders.append(sequence)
        sequence.cached.clear()
        if source is not None and source.slot is not None:  # it may be the one that was evicted
            self.cache.copy_prefix(source.slot, slot, cached)
            sequence.cached += source.cached[:cached]
        return True

    def _longest_prefix(self, token_ids: list[int]) -> tuple[Sequence | None, int, int]:
        """The sequence in a slot that shares the longest prefix with these tokens; how many shared tokens it has cached (0, and
        None, where copying is not worth it); and how many some sequence will have cached when it has read its prompt."""
        source: Sequence | None = None
        most = coming = 0
        for holder in self.holders:
            cached = _shared_prefix(holder.cached, token_ids)
            if cached > most:
                source, most = holder, cached
            if holder.request is not None and holder.request.admitted and cached == len(holder.cached):
                coming = max(coming, cached + _shared_prefix(holder.request.pending, token_ids[cached:]))
        return (source, most, coming) if most >= MIN_COPIED_PREFIX else (None, 0, coming)

    def _evict(self) -> None:
        """Take the slot of a sequence whose tool is running: of that with the fewest tokens to feed again."""
        victim = min((s for s in self.holders if s.request is None), key=lambda s: len(s.cached))
        self._free_slot(victim)
        victim.cached.clear()

    def _free_slot(self, sequence: Sequence) -> None:
        """Take a sequence's slot, if it has one."""
        if sequence.slot is None:
            return
        self.holders[self.holders.index(sequence)] = self.holders[-1]
        self.holders.pop()
        self.free_slots.append(sequence.slot)
        sequence.slot = None

    # -- in the sampler's thread

    def _run_steps(self, loop: asyncio.AbstractEventLoop, stop: threading.Event) -> None:
        """Compute steps while there is a turn to sample. Finished turns go to the event loop at once, and what it does with
        them (parsing, calling tools) happens beside the next steps. Deterministic: one step, after which all come back."""
        while self.resumed.is_set() and not stop.is_set():
            with self.lock:
                self._schedule()
                running = [(s, s.request) for s in self.holders if s.request is not None]
            if not running:
                return
            finished = self._step(running)
            if finished:
                loop.call_soon_threadsafe(self._deliver, finished)
            if self.deterministic:
                return

    @torch.inference_mode()
    def _step(self, running: list[tuple[Sequence, Request]]) -> list[tuple[Request, Completion]]:
        """Feed pending tokens and sample one more where none is left; returns the turns that are finished."""
        ready, hidden = self._feed(running)
        if not ready:
            return []
        logits = self.decoder.logits(hidden)
        positions = [len(sequence.cached) for sequence, _ in ready]
        tokens, logprobs = sample_tokens(logits, [request.params for _, request in ready], positions)
        finished: list[tuple[Request, Completion]] = []
        for (sequence, request), token, logprob in zip(ready, tokens, logprobs, strict=True):
            request.token_ids.append(token)
            request.logprobs.append(logprob)
            stopped = token in request.params.stop_token_ids
            if stopped or len(request.token_ids) == request.params.max_tokens:
                with self.lock:
                    if sequence.request is request:
                        sequence.request = None
                finished.append((request, Completion(request.token_ids, request.logprobs, stopped)))
            else:
                request.pending.append(token)
        return finished

    def _feed(self, running: list[tuple[Sequence, Request]]) -> tuple[list[tuple[Sequence, Request]], Tensor]:
        """Feed pending tokens, as many as one forward pass takes. Returns those with none left, and their last hidden states,
        a row each (B, E)."""
        chunks: list[Chunk] = []
        flat: list[int] = []
        ready: list[tuple[Sequence, Request]] = []
        last: list[int] = []
        limit = max(MAX_BATCHED_TOKENS, len(running))
        # Shortest first: the decoder wants them so, and what the limit cuts are the long ones.
        ordered = sorted(running, key=lambda pair: len(pair[1].pending))
        for index, (sequence, request) in enumerate(ordered):
            assert sequence.slot is not None
            # Leave room for one token of each sequence that follows.
            tokens = request.pending[: max(1, limit - len(flat) - (len(ordered) - index - 1))]
            del request.pending[: len(tokens)]
            chunks.append(Chunk(sequence.slot, len(sequence.cached), len(tokens)))
            flat += tokens
            sequence.cached += tokens
            if not request.pending:
                ready.append((sequence, request))
                last.append(len(flat) - 1)
        hidden = self.decoder(torch.tensor(flat, device=self.device), chunks)
        if len(ready) < len(flat):
            hidden = hidden[torch.tensor(last, dtype=torch.long, device=self.device)]
        return ready, hidden


def _shared_prefix(cached: list[int], token_ids: list[int]) -> int:
    """How many leading tokens are in ``cached`` too. The last one never counts: one token has to be fed."""
    low, high = 0, max(0, min(len(cached), len(token_ids) - 1))
    if cached[:high] == token_ids[:high]:
        return high
    while high - low > 1:  # the first ``low`` are shared, the first ``high`` are not
        middle = (low + high) // 2
        if cached[low:middle] == token_ids[low:middle]:
            low = middle
        else:
            high = middle
    return low
