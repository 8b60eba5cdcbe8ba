"""One event loop and two warm sandboxes for all sandbox tests: one patient, one with short cells."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from aster.core import recipe
from aster.sandbox import Sandbox
from tests.sandbox.sandbox_bench import Bench


def _bench(settings: recipe.Sandbox) -> Iterator[Bench]:
    loop = asyncio.new_event_loop()
    bench = Bench(loop, loop.run_until_complete(Sandbox(settings).__aenter__()))
    yield bench
    loop.run_until_complete(bench.sandbox.__aexit__(None, None, None))
    loop.close()


@pytest.fixture(scope="session")
def _patient() -> Iterator[Bench]:
    yield from _bench(recipe.Sandbox(cell_seconds=20.0, memory_mb=64, output_characters=400, sessions=64))


@pytest.fixture(scope="session")
def _hasty() -> Iterator[Bench]:
    yield from _bench(recipe.Sandbox(cell_seconds=0.5, memory_mb=256, output_characters=400, sessions=64))


@pytest.fixture
def bench(_patient: Bench) -> Iterator[Bench]:
    """Cells of 20 s, 64 MB, 400 characters of output."""
    yield _patient
    _patient.close_sessions()


@pytest.fixture
def hasty(_hasty: Bench) -> Iterator[Bench]:
    """Cells of 0.5 s."""
    yield _hasty
    _hasty.close_sessions()
