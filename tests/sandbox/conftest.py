"""Two shared sandboxes for the sandbox tests: ``bench`` with a long time limit for cells, ``hasty`` with a short one.

The core tests run at every isolation level that works on this machine. The others run at the strongest one, or at the one that
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
    "test_zygote_has_one_thread",
    "test_supervisor_environment_is_not_visible_in_cells",
    "test_loop_is_interrupted_and_its_state_is_kept",
    "test_uninterruptible_cell_is_killed_and_earlier_state_is_restored",
    "test_crash_keeps_the_state_of_earlier_cells",
    "test_recovery_restores_setup_files_and_random_numbers",
    "test_killed_zygote_is_replaced_and_its_sessions_recover",
    "test_many_sessions_run_at_once_each_with_its_own_state",
    "test_closing_a_session_ends_its_running_cell",
    "test_ordinary_programs_work",
}


def levels_here() -> list[Any]:
    """The isolation levels that work on this machine, as values of the setting ``isolation``."""
    return [level.value for level in Level if level not in probe().failures]


def level_taken(isolation: str = ISOLATION) -> Level:
    """The level that a sandbox with this setting uses here."""
    return probe().best if isolation == "auto" else Level(isolation)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the core tests at every level."""
    if metafunc.function.__name__ in CORE:
        for fixture in {"_patient", "_hasty"} & set(metafunc.fixturenames):
            metafunc.parametrize(fixture, levels_here(), indirect=True)


class Benches:
    """Shared sandboxes, each started on first use, because a start takes a second or two of processor time."""

    def __init__(self) -> None:
        self._open: dict[str, Bench] = {}

    def get(self, settings: Settings) -> Bench:
        """The sandbox with these settings."""
        key = settings.model_dump_json()
        if key not in self._open:
            loop = asyncio.new_event_loop()
            self._open[key] = Bench(loop, loop.run_until_complete(Sandbox(settings).__aenter__()))
        return self._open[key]

    def close(self) -> None:
        """Close all sandboxes."""
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
    """A sandbox with 20 s and 64 MB per cell and 400 characters of output."""
    yield _patient
    _patient.close_sessions()


@pytest.fixture
def hasty(_hasty: Bench) -> Iterator[Bench]:
    """A sandbox with 0.5 s per cell and no preloaded libraries, so that it restarts quickly: some tests kill the zygote."""
    yield _hasty
    _hasty.close_sessions()
