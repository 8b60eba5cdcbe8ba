"""The recipe's section for a teacher behind a server: what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from aster.config.file import validate_recipe
from tests.refusals import refused


@pytest.mark.parametrize(
    ("section", "field"),
    [
        ({"teacher": "endpoint"}, "base_url"),
        ({"teacher": "endpoint", "base_url": "localhost:8000"}, "base_url"),
        ({"base_url": "http://localhost:8000"}, "base_url"),
        ({"teacher": "endpoint", "base_url": "http://h:1", "max_cost": 3.0}, "max_cost"),
        ({"teacher": "endpoint", "base_url": "http://h:1", "prices": {"prompt": -1}}, "prices.prompt"),
        ({"teacher": "endpoint", "base_url": "http://h:1", "calls": "xml"}, "calls"),
        ({"teacher": "endpoint", "base_url": "http://h:1", "request": {"stream": True}}, "request"),
        ({"teacher": "endpoint", "base_url": "http://h:1", "request": {"max_completion_tokens": "many"}}, "request"),
    ],
)
def test_what_is_refused(section: dict[str, Any], field: str) -> None:
    with refused(f"synthesize.{field}"):
        validate_recipe({"synthesize": section}, "r.yaml")


@pytest.mark.parametrize("address", ["http://10.0.0.5:8000", "https://api.example.org/v1", "https://example.org/openai/v1/"])
def test_addresses(address: str) -> None:
    assert (
        validate_recipe({"synthesize": {"teacher": "endpoint", "base_url": address}}, "r.yaml").synthesize.base_url == address
    )
