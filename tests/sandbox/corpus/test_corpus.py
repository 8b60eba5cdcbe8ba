"""Whatever cells do to their process, the next cell works correctly, or the session reports what was lost.

Runs a sample of the stored cells; ``ASTER_SANDBOX_CORPUS=2000`` runs all of them.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from aster_sandbox import Settings
from aster_sandbox.isolation import Level
from tests.sandbox.conftest import Benches, level_taken
from tests.sandbox.corpus.corpus import FILE, Entry, in_words, load, play
from tests.sandbox.corpus.generate import compose, entries
from tests.sandbox.corpus.ingredients import Ingredient
from tests.sandbox.corpus.ingredients import load as load_ingredients
from tests.sandbox.sandbox_bench import Bench

WANTED = int(os.environ.get("ASTER_SANDBOX_CORPUS", "120"))
AT_ONCE = 4
"""Number of sessions that run at the same time."""
ENDLESS_SECONDS, PATIENT_SECONDS, SECOND_TRY_SECONDS = 0.5, 20.0, 4.0
"""Time limits of a cell: for entries with a cell that runs until its limit; for others; for repeating a failed entry of the
first kind, whose other cells may have had too little time."""
ENTRIES = load()
SAMPLE = ENTRIES[:: max(1, len(ENTRIES) // WANTED)]
MIXABLE = [ingredient for ingredient in load_ingredients() if not ingredient.ends & {"interrupted", "killed"}]


@pytest.fixture
def bench_with(_benches: Benches) -> Callable[[float], Bench]:
    """A function that returns a sandbox with a time limit for cells and without preloaded libraries."""
    level: Any = level_taken().value

    def bench(cell_seconds: float) -> Bench:
        return _benches.get(
            Settings(isolation=level, cell_seconds=cell_seconds, memory_mb=256, output_characters=400, sessions=64, preload=[])
        )

    return bench


async def played(bench: Bench, entry: Entry) -> list[str]:
    """Run an entry in a new session. Returns what was wrong."""
    async with await bench.sandbox.open(1) as session:
        return await play(session, entry, semaphores=bench.sandbox.level is Level.NAMESPACES)


def wrong_among(bench: Bench, some: list[Entry]) -> list[tuple[Entry, list[str]]]:
    """Run entries, several at the same time. Returns those that failed, with what was wrong."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(entry: Entry) -> tuple[Entry, list[str]]:
        async with places:
            return entry, await played(bench, entry)

    async def all_of_them() -> list[tuple[Entry, list[str]]]:
        return [(entry, wrong) for entry, wrong in await asyncio.gather(*map(one, some)) if wrong]

    return bench.loop.run_until_complete(all_of_them())


def test_next_cell_after_cells_that_end(bench_with: Callable[[float], Bench]) -> None:
    wrong = wrong_among(bench_with(PATIENT_SECONDS), [entry for entry in SAMPLE if not entry.endless])
    assert not wrong, "\n\n".join(in_words(*each) for each in wrong)


def test_next_cell_after_cells_that_time_out(bench_with: Callable[[float], Bench]) -> None:
    doubtful = wrong_among(bench_with(ENDLESS_SECONDS), [entry for entry in SAMPLE if entry.endless])
    if not doubtful:
        return
    # On a busy machine half a second may be too short for a cell that ends by itself.
    wrong = wrong_among(bench_with(SECOND_TRY_SECONDS), [entry for entry, _ in doubtful])
    assert not wrong, "\n\n".join(in_words(*each) for each in wrong)


@given(
    ingredients=st.lists(st.sampled_from(MIXABLE), min_size=1, max_size=4, unique_by=lambda ingredient: ingredient.name),
    seed=st.integers(0, 999),
)
@settings(
    max_examples=max(25, WANTED // 5),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)
def test_next_cell_after_random_mixtures_in_one_cell(
    bench_with: Callable[[float], Bench], ingredients: list[Ingredient], seed: int
) -> None:
    entry = compose(tuple(ingredients), random.Random(seed), "together")
    assume(entry is not None)
    assert entry is not None
    bench = bench_with(PATIENT_SECONDS)
    wrong = bench.do(played(bench, entry))
    assert not wrong, in_words(entry, wrong)


def test_stored_cells_match_the_generator() -> None:
    assert FILE.read_text("utf-8") == "".join(f"{entry.to_json()}\n" for entry in entries())
