"""What a recipe's section says of a teacher behind a server, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from aster.config.file import validate_recipe
from aster.errors import UserError


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"teacher": "endpoint"}, "base_url: teacher=endpoint needs the server's address (got '')"),
        ({"teacher": "endpoint", "base_url": "localhost:8000"}, "needs the server's address (got 'localhost:8000')"),
        ({"base_url": "http://localhost:8000"}, "base_url: nothing would use it; set teacher=endpoint, or leave it empty"),
        (
            {"teacher": "endpoint", "base_url": "http://h:1", "max_cost": 3.0},
            "max_cost: there is no cost without prices; set prices.prompt and prices.completion",
        ),
        ({"teacher": "endpoint", "base_url": "http://h:1", "calls": "xml"}, "field 'synthesize.calls'"),
        (
            {"teacher": "endpoint", "base_url": "http://h:1", "request": {"stream": True}},
            "request: stream is no field to change: one whole answer of synthesize.model is asked for",
        ),
        (
            {"teacher": "endpoint", "base_url": "http://h:1", "request": {"max_completion_tokens": "many"}},
            "request: max_completion_tokens: must be a whole number above 0, or null (got 'many')",
        ),
    ],
)
def test_what_is_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        validate_recipe({"synthesize": section}, "r.yaml")
    assert message in str(caught.value)


@pytest.mark.parametrize("address", ["http://10.0.0.5:8000", "https://api.example.org/v1", "https://example.org/openai/v1/"])
def test_addresses(address: str) -> None:
    assert (
        validate_recipe({"synthesize": {"teacher": "endpoint", "base_url": address}}, "r.yaml").synthesize.base_url == address
    )
