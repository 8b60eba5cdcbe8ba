"""A scripted fake teacher that serves, and requests that do not wait between attempts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.teacher.fake_teacher import FakeTeacher, serving


@pytest.fixture
def teacher() -> Iterator[FakeTeacher]:
    """One that plays what the problems ask for."""
    with serving(FakeTeacher()) as found:
        yield found


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aster.http.PAUSES", (0.01, 0.02))
