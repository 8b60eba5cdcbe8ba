"""One event loop and two warm sandboxes for all sandbox tests: one patient, one with short cells.

The core tests run at every isolation level that the machine has, the others at the best one, or the one that
ASTER_TEST_ISOLATION names.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import pytest

from aster_sandbox import Sandbox, Settings
from aster_sandbox.isolation import Level, probe
from tests.sandbox.sandbox_bench import Bench

ISOLATION: Any = os.environ.get("ASTER_TEST_ISOLATION", "auto")
CORE = {
    "test_variables_functions_and_imports_persist",
    "test_sessions_come_from_a_parent_with_one_thread",
    "test_secrets_of_the_environment_do_not_reach_cells",
    "test_a_loop_is_interrupted_and_its_state_is_kept",
    "test_a_cell_that_will_not_stop_is_killed_and_the_earlier_state_rebuilt",
    "test_a_dead_interpreter_costs_no_earlier_state",
    "test_recovery_brings_back_setup_files_and_random_numbers",
    "test_a_killed_zygote_is_replaced_and_its_sessions_recover",
    "test_many_sessions_run_at_once_each_with_its_own_state",
    "test_closing_a_session_ends_its_running_cell",
    "test_ordinary_programs_work",
}


def levels_here() -> list[Any]:
    """The isolation levels that hold on this machine, as recipes name them."""
    return [level.value for level in Level if level not in probe().failures]


def level_taken(isolation: str = ISOLATION) -> Level:
    """The level that a sandbox of this setting has here."""
    return probe().best if isolation == "auto" else Level(isolation)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the core tests at every level."""
    if metafunc.function.__name__ in CORE:
        for fixture in {"_patient", "_hasty"} & set(metafunc.fixturenames):
            metafunc.parametrize(fixture, levels_here(), indirect=True)


class Benches:
    """Warm sandboxes, each started when it is first asked for: a start takes a second or two of the processor."""

    def __init__(self) -> None:
        self._open: dict[str, Bench] = {}

    def get(self, settings: Settings) -> Bench:
        """The one with these settings."""
        key = settings.model_dump_json()
        if key not in self._open:
            loop = asyncio.new_event_loop()
            self._open[key] = Bench(loop, loop.run_until_complete(Sandbox(settings).__aenter__()))
        return self._open[key]

    def close(self) -> None:
        """End them all."""
        for bench in self._open.values():
            bench.loop.run_until_complete(bench.sandbox.__aexit__(None, None, None))
            bench.loop.close()


@pytest.fixture(scope="session")
def _benches() -> Iterator[Benches]:
    benches = Benches()
    yield benches
    benches.close()


@pytest.fixture
def _patient(request: pytest.FixtureRequest, _benches: Benches) -> Bench:
    level: Any = level_taken(getattr(request, "param", ISOLATION)).value
    return _benches.get(Settings(isolation=level, cell_seconds=20.0, memory_mb=64, output_characters=400, sessions=64))


@pytest.fixture
def _hasty(request: pytest.FixtureRequest, _benches: Benches) -> Bench:
    level: Any = level_taken(getattr(request, "param", ISOLATION)).value
    return _benches.get(
        Settings(isolation=level, cell_seconds=0.5, memory_mb=256, output_characters=400, sessions=64, preload=[])
    )


@pytest.fixture
def bench(_patient: Bench) -> Iterator[Bench]:
    """Cells of 20 s, 64 MB, 400 characters of output."""
    yield _patient
    _patient.close_sessions()


@pytest.fixture
def hasty(_hasty: Bench) -> Iterator[Bench]:
    """Cells of 0.5 s, in processes without libraries, which start at once: some tests kill the zygote."""
    yield _hasty
    _hasty.close_sessions()
