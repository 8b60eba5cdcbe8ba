"""The in-process sampler: continuous batching over any ``transformers`` decoder.

Each step feeds every running sequence its pending tokens: one (the token just sampled), or several (a prompt, or a tool's
response between two turns), all as one flat forward. A sequence keeps its slot of the key-value cache while its tool runs, so
that only the tool's tokens are fed when it comes back. Sequences join and leave between any two steps; more sequences than
slots wait.

The forward runs in a thread of its own, so that tools and graders go on meanwhile. Random numbers belong to (seed, position),
never to the batch; see :mod:`aster.engines.local.drawing`.
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
from aster.engines.local.cache import DecodeLayout, KeyValueCache
from aster.engines.local.cpu.decoder import Decoder
from aster.engines.local.drawing import choose
from aster.engines.local.graphs import graphs_for

PREFILL_TOKENS = 8192
"""Most tokens of one flat forward; longer prompts are fed in several steps."""
WORTH_COPYING = 16
"""So many leading tokens are rather copied from another sequence than computed again."""


@dataclass(slots=True)
class Sequence:
    """A trajectory the sampler knows."""

    name: str
    cached: list[int] = field(default_factory=list)
    """Tokens whose keys and values are in its slot."""
    slot: int | None = None
    request: Request | None = None
    """The turn being sampled, or None while its tool runs."""
    opened: bool = False


@dataclass(slots=True)
class Request:
    params: SamplingParams
    pending: list[int]
    """Tokens to feed before the next one can be sampled; until it is admitted, the whole sequence."""
    future: asyncio.Future[Completion]
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    admitted: bool = False
    """True once it takes part in steps."""


class LocalSampler:
    """Samples turns from a model held in this process. One event loop at a time may use it."""

    def __init__(self, model: Any, slots: int, capacity: int, deterministic: bool, pool: ThreadPoolExecutor) -> None:
        """``capacity`` is the longest sequence in tokens; the cache holds ``slots * capacity`` tokens."""
        self.model, self.pool, self.deterministic = model, pool, deterministic
        self.decoder = Decoder(model)
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype
        self.cache = KeyValueCache(model.config, slots, capacity, self.dtype, self.device)
        self.graphs = graphs_for(self.decoder, self.cache)
        self.holders: list[Sequence] = []
        """``holders[slot]`` is the sequence in a slot; without gaps."""
        self.sequences: dict[str, Sequence] = {}
        self.incoming: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self.leaving: list[Sequence] = []
        self.lock = threading.Lock()
        """Held by whoever touches the lists above: the event loop and the sampler's thread."""
        self.changed = asyncio.Event()
        """Somebody came, went or was cancelled. Matters where the next step waits for all."""
        self.going = asyncio.Event()
        self.going.set()
        self.stepping = asyncio.Lock()
        self.runner: asyncio.Task[None] | None = None

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
        if self.runner is None or self.runner.done():
            # An event belongs to the loop that waited for it first; this may be a new loop.
            self.changed, self.stepping = asyncio.Event(), asyncio.Lock()
            self._renew()
            self.runner = asyncio.create_task(self._run())
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
        """Sample nothing until :meth:`resume`; returns when no step is being computed. Turns under way wait."""
        self.going.clear()
        async with self.stepping:
            self.decoder.release()

    def resume(self, *, changed: bool) -> None:
        """Go on after :meth:`pause`. If the weights have ``changed``, every cache is dropped: a turn under way feeds its tokens
        again, so that its next ones are the new weights' alone."""
        self._renew()
        if changed:
            for sequence in self.sequences.values():
                request = sequence.request
                if request is not None and request.admitted:
                    request.pending[:0] = sequence.cached
                sequence.cached.clear()
        self.going.set()

    # -- the loop

    async def _run(self) -> None:
        """Keep the sampler's thread stepping while anybody has a turn to be sampled."""
        loop = asyncio.get_running_loop()
        halt = threading.Event()
        try:
            while True:
                await self.going.wait()
                if self.deterministic and any(s.opened and s.request is None for s in self.sequences.values()):
                    # Nothing is settled meanwhile: who gets which slot must not depend on who comes back first.
                    self.changed.clear()
                    await self.changed.wait()
                    continue
                async with self.stepping:
                    await loop.run_in_executor(self.pool, self._steps, loop, halt)
                # Let the awakened trajectories parse, call tools and come back.
                await asyncio.sleep(0)
                if not self.incoming and not any(s.request is not None for s in [*self.holders, *self.waiting]):
                    return
        except Exception as error:  # noqa: BLE001 - whatever the engine raises goes to those who wait for it
            self._fail(error)
        finally:
            halt.set()

    @staticmethod
    def _deliver(finished: list[tuple[Request, Completion]]) -> None:
        for request, completion in finished:
            if not request.future.done():
                request.future.set_result(completion)

    def _fail(self, error: Exception) -> None:
        """An engine error reaches every trajectory that waits for it; the next one starts anew."""
        for sequence in [*self.sequences.values(), *self.leaving]:
            request, sequence.request, sequence.slot = sequence.request, None, None
            sequence.cached.clear()
            if request is not None and not request.future.done():
                request.future.set_exception(RuntimeError(f"the sampler failed: {error!r}"))
        self.holders, self.incoming, self.waiting, self.leaving = [], [], [], []

    def _settle(self) -> None:
        """Let sequences out of and into slots. The lock is held."""
        if self.deterministic:
            self.leaving.sort(key=lambda s: s.name)
            self.incoming.sort(key=lambda s: s.name)
        for sequence in self.leaving:
            self._vacate(sequence)
        left, self.leaving = {id(s) for s in self.leaving}, []
        self.waiting = [s for s in [*self.waiting, *self.incoming] if id(s) not in left and s.request is not None]
        self.incoming = []
        still: list[Sequence] = []
        full = False
        for sequence in self.waiting:
            request = sequence.request
            assert request is not None
            if sequence.slot is None:
                full = full or (len(self.holders) == self.cache.slots and all(s.request is not None for s in self.holders))
                if full or not self._take_slot(sequence, request.pending):
                    still.append(sequence)
                    continue
            if not request.admitted:
                request.admitted = True
                shared = _shared(sequence.cached, request.pending)
                del sequence.cached[shared:], request.pending[:shared]
        self.waiting = still

    def _take_slot(self, sequence: Sequence, token_ids: list[int]) -> bool:
        """Give a sequence a slot, with what it shares with another one's. False where it had better wait for that: samples of
        one problem, and prompts with the same tool, are read once. There is a slot, or one that can be freed."""
        kin, known, coming = self._kin(token_ids)
        if coming >= known + WORTH_COPYING:
            return False
        if len(self.holders) == self.cache.slots:
            self._evict()
        sequence.slot = len(self.holders)
        self.holders.append(sequence)
        sequence.cached.clear()
        if kin is not None and kin.slot is not None:  # it may have been the one that was evicted
            self.cache.move(kin.slot, sequence.slot, known)
            sequence.cached += kin.cached[:known]
        return True

    def _kin(self, token_ids: list[int]) -> tuple[Sequence | None, int, int]:
        """The sequence in a slot that begins most like these tokens, and how many shared ones are cached (0 where copying is
        not worth it); and how many will be in some slot, when that has read its prompt."""
        kin: Sequence | None = None
        known = coming = 0
        for holder in self.holders:
            cached = _shared(holder.cached, token_ids)
            if cached > known:
                kin, known = holder, cached
            if holder.request is not None and holder.request.admitted and cached == len(holder.cached):
                coming = max(coming, cached + _shared(holder.request.pending, token_ids[cached:]))
        return (kin, known, coming) if known >= WORTH_COPYING else (None, 0, coming)

    def _evict(self) -> None:
        """Free a slot of a sequence whose tool is running, the one with the least to feed again."""
        victim = min((s for s in self.holders if s.request is None), key=lambda s: len(s.cached))
        self._vacate(victim)
        victim.cached.clear()

    def _vacate(self, sequence: Sequence) -> None:
        """Free a slot and move the last one into the gap."""
        if sequence.slot is None:
            return
        last = self.holders.pop()
        if last is not sequence:
            assert last.slot is not None
            self.cache.move(last.slot, sequence.slot, len(last.cached))
            self.holders[sequence.slot] = last
            last.slot = sequence.slot
        sequence.slot = None

    # -- in the sampler's thread

    def _steps(self, loop: asyncio.AbstractEventLoop, halt: threading.Event) -> None:
        """Step while anybody waits for tokens. What is finished goes to the loop at once, and what the loop makes of it
        (parsing, calling tools) goes on beside the next steps. Deterministic: one step, after which everybody comes back."""
        while self.going.is_set() and not halt.is_set():
            with self.lock:
                self._settle()
                running = [(s, s.request) for s in self.holders if s.request is not None]
            if not running:
                return
            finished = self._step(running)
            if finished:
                loop.call_soon_threadsafe(self._deliver, finished)
            if self.deterministic:
                return

    def _renew(self) -> None:
        """The weights may be others, or elsewhere."""
        self.decoder.renew()
        if self.graphs is not None:
            self.graphs.renew()

    @torch.inference_mode()
    def _step(self, running: list[tuple[Sequence, Request]]) -> list[tuple[Request, Completion]]:
        single = self.graphs is not None and all(len(request.pending) == 1 for _, request in running)
        ready, hidden = self._feed_one_each(running) if single else self._feed(running)
        if not ready:
            return []
        logits = self.decoder.logits(hidden)
        positions = [len(sequence.cached) for sequence, _ in ready]
        tokens_drawn, logprobs = choose(logits, [request.params for _, request in ready], positions)
        finished: list[tuple[Request, Completion]] = []
        for (sequence, request), token, logprob in zip(ready, tokens_drawn, logprobs, strict=True):
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
        """Feed what is pending, as much as one forward takes. Returns those with nothing left, and their hidden states."""
        fed: list[tuple[int, int, int]] = []
        flat: list[int] = []
        ready: list[tuple[Sequence, Request]] = []
        last: list[int] = []
        room = max(PREFILL_TOKENS, len(running))
        # Those that feed few tokens come first; see DecodeLayout.
        ordered = sorted(running, key=lambda pair: len(pair[1].pending))
        for index, (sequence, request) in enumerate(ordered):
            slot = sequence.slot
            assert slot is not None
            # Leave one token of room for each sequence behind this one.
            tokens = request.pending[: max(1, room - len(flat) - (len(ordered) - index - 1))]
            del request.pending[: len(tokens)]
            fed.append((slot, len(sequence.cached), len(tokens)))
            flat += tokens
            sequence.cached += tokens
            if not request.pending:
                ready.append((sequence, request))
                last.append(len(flat) - 1)
        layout = DecodeLayout(self.cache, fed, len(self.holders), self.device)
        hidden = self.decoder(torch.tensor(flat, device=self.device), layout)
        if len(ready) < len(flat):
            hidden = hidden[torch.tensor(last, dtype=torch.long, device=self.device)]
        return ready, hidden

    def _feed_one_each(self, running: list[tuple[Sequence, Request]]) -> tuple[list[tuple[Sequence, Request]], Tensor]:
        """Feed one token of each, as a graph. Those whose tools run get one too, where their next one will be."""
        assert self.graphs is not None
        token_ids = [0] * len(self.holders)
        positions = [min(len(sequence.cached), self.cache.capacity - 1) for sequence in self.holders]
        for sequence, request in running:
            assert sequence.slot is not None
            token_ids[sequence.slot] = request.pending.pop()
            sequence.cached.append(token_ids[sequence.slot])
        hidden = self.graphs(token_ids, positions)
        if len(running) < len(self.holders):
            hidden = hidden[torch.tensor([sequence.slot for sequence, _ in running], device=self.device)]
        return running, hidden


def _shared(cached: list[int], token_ids: list[int]) -> int:
    """How many leading tokens are cached already. The last one never counts: something has to be fed."""
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
