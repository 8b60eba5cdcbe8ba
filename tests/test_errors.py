"""Errors that the user can fix name what is at fault, and the errors of others fit in one line."""

from __future__ import annotations

import pickle

import pytest

from aster.config.file import validate_recipe
from aster.errors import UserError, one_line
from aster.http import Server
from tests.refusals import printed, refused


def test_what_others_say_is_one_line_that_is_not_too_long() -> None:
    assert one_line(ValueError("first\n\tand  second\n")) == "first and second"
    assert one_line("a server's\nbody") == "a server's body"
    assert one_line(TimeoutError()) == "TimeoutError"
    assert len(one_line(ValueError("word " * 100))) == 300
    assert len(one_line("word " * 100, None)) == 499


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ("rl.steps: must be above 0: 3: no", "rl.steps"),
        ("C:/data.jsonl, line 3: not JSON", "C:/data.jsonl, line 3"),
        ("--policy chat:http://h:1: no answer", "--policy chat:http://h:1"),
        ("nothing is named here", ""),
    ],
)
def test_an_error_names_what_is_at_fault(message: str, field: str) -> None:
    assert UserError(message).field == field
    other = pickle.loads(pickle.dumps(UserError(message, field="sft")))
    assert (str(other), other.field) == (message, "sft")


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"rl": {"samples": 1}}, "rl.samples"),
        ({"rl": {"stages": [{"stepz": 1}]}}, "rl.stages.0.stepz"),
        ({"curate": {"density": {"min": 3, "max": 1}}}, "curate.density.min"),
        ({"policy": {"sampler": "endpoint", "base_url": "http://h:1"}, "rollout": {"deterministic": True}}, "rollout"),
    ],
)
def test_an_error_in_a_recipe_names_the_field(data: dict[str, object], field: str) -> None:
    with refused(field) as caught:
        validate_recipe(data, "r.yaml")
    assert str(caught.value).startswith("r.yaml: ")


def test_an_address_that_is_none_is_refused_by_the_field_that_has_it() -> None:
    with refused("synthesize.base_url"):
        Server("http://host:port", field="synthesize.base_url")


def test_the_helper_of_the_tests_tells_one_field_from_another() -> None:
    assert printed("rl: 0/3 steps\naster: error: rl.steps: no\n").field == "rl.steps"
    with refused("rl"):
        raise UserError("rl.steps: no")
    for field in ("rl.step", "rl.steps.0", "sft"):
        with pytest.raises(AssertionError, match=r"rl\.steps"), refused(field):
            raise UserError("rl.steps: no")
