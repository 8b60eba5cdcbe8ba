"""Two shared services: ``service`` with generous limits, ``tight`` with small ones."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest

from tests.sandbox.service.services import ALICE, BOB, Service, as_alice


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    """Two clients, cells of 5 s, 2,000 characters of output."""
    service = Service(
        "sandbox.cell_seconds=5", "sandbox.memory_mb=256", "sandbox.output_characters=2000", tokens=f"{ALICE},{BOB}"
    )
    yield service
    service.stop()


@pytest.fixture(scope="session")
def tight() -> Iterator[Service]:
    """Two clients, each with 2 sessions, 1 running and 1 waiting cell; bodies of 1 MiB; 3 sessions in all."""
    limits = [
        "--client-sessions",
        "2",
        "--client-cells",
        "1",
        "--client-queue",
        "1",
        "--queue-seconds",
        "0.1",
        "--body-mb",
        "1",
    ]
    service = Service(*limits, "sandbox.sessions=3", "sandbox.cell_seconds=2", tokens=f"{ALICE},{BOB}")
    yield service
    service.stop()


@pytest.fixture
def http(service: Service) -> Iterator[httpx2.Client]:
    """Alice's HTTP client for ``service``. Her sessions are closed afterwards."""
    yield from as_alice(service)


@pytest.fixture
def narrow(tight: Service) -> Iterator[httpx2.Client]:
    """Alice's HTTP client for ``tight``. Her sessions are closed afterwards."""
    yield from as_alice(tight)
