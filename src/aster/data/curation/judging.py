"""Run the filters over sets: this process reads the lines, several processes judge them, and the results come in order."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

from aster.config import ColdStart, Curate
from aster.data.curation.chain import Chain, Judged
from aster.data.curation.sources import Source
from aster.data.sets import parse_line

BATCH = 64
"""Transcripts given to a process at once."""
SMALL = 4 * BATCH
"""Fewer transcripts than this are judged in this process, because starting others takes longer."""
WAITING = 4
"""Batches in flight per process. This bounds memory."""

Line = tuple[int, str, bytes]
"""Index of the source, the line's place in words, and the line."""
Result = TypeVar("Result")


def judge_sources(
    sources: Sequence[Source], settings: Curate, cold_start: ColdStart | str, processes: int | None = None
) -> Iterator[Judged]:
    """Yield the chain's verdict on every transcript of the sources, in order.

    ``processes`` is the number of worker processes (default: one per core). Raises UserError if a line is not a transcript.
    """
    lines = ((number, *line) for number, source in enumerate(sources) for line in source.lines())
    chain = (settings.model_dump_json(), str(cold_start), isinstance(cold_start, ColdStart), len(sources))
    for batch in in_batches(lines, functools.partial(_judge, chain), processes):
        yield from batch


def in_batches(lines: Iterable[Line], work: Callable[[list[Line]], Result], processes: int | None = None) -> Iterator[Result]:
    """Apply ``work`` to batches of lines and yield the results in order. Few lines are handled in this process."""
    processes = processes or len(os.sched_getaffinity(0))
    batches = _batches(lines)
    first = list(itertools.islice(batches, SMALL // BATCH))
    if processes == 1 or len(first) < SMALL // BATCH:
        for batch in itertools.chain(first, batches):
            yield work(batch)
        return
    # Plain fork is not safe here: the caller may have threads.
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_end_with_parent) as pool:
        waiting: deque[Future[Result]] = deque()
        for batch in itertools.chain(first, batches):
            waiting.append(pool.submit(work, batch))
            if len(waiting) >= WAITING * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _end_with_parent() -> None:
    """In a worker: exit when the parent process dies, which the queue would not notice. Only the parent handles Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _batches(lines: Iterable[Line]) -> Iterator[list[Line]]:
    stream = iter(lines)
    while batch := list(itertools.islice(stream, BATCH)):
        yield batch


@functools.lru_cache(maxsize=1)
def _chain(settings: str, cold_start: str, preset: bool, sources: int) -> Chain:
    return Chain(Curate.model_validate_json(settings), ColdStart(cold_start) if preset else cold_start, sources=sources)


def _judge(chain: tuple[str, str, bool, int], lines: list[Line]) -> list[Judged]:
    judge = _chain(*chain).judge
    return [judge(parse_line(place, line), source) for source, place, line in lines]
