"""The recipes that come with ASTER: found by name from any folder, and written out as files of one's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from aster.cli import main
from aster.config import Rl
from aster.config.comments import read_comments
from aster.config.describe import describe, to_yaml
from aster.config.file import load_recipe
from aster.recipes import FOLDER, locate, shipped_names
from tests.refusals import printed, refused, require

NAMES = ["aster_1p7b", "aster_4b", "lab", "smollm2"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(*arguments: str) -> str:
    """What ``aster recipe ARGUMENTS --yaml`` prints."""
    result = CliRunner().invoke(main, ["recipe", *arguments, "--yaml"])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_names() -> None:
    assert shipped_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_bare_name_is_a_shipped_recipe_in_any_folder(name: str) -> None:
    assert load_recipe(name) == load_recipe(FOLDER / f"{name}.yaml")
    assert f'name = "{load_recipe(name).name}"' in describe(load_recipe(name))
    assert load_recipe(name, ["seed=7"]).seed == 7


def test_a_file_of_that_name_comes_first_and_a_folder_does_not() -> None:
    Path("lab").mkdir()
    assert load_recipe("lab").name == "lab"
    Path("lab").rmdir()
    Path("lab").write_text("name: mine\n")
    assert load_recipe("lab").name == "mine"


@pytest.mark.parametrize("path", ["./lab", "lab.yaml", "here/lab", Path("lab")])
def test_a_path_is_never_a_name(path: str | Path) -> None:
    with refused(str(path)):
        locate(path)
    Path("here").mkdir(exist_ok=True)
    Path(path).write_text("name: mine\n")
    assert load_recipe(path).name == "mine"


@pytest.mark.parametrize("text", ["labb", "", "x" * 5000, "lab.yml"])
def test_an_unknown_name_lists_the_names(text: str) -> None:
    result = CliRunner().invoke(main, ["run", text])
    assert result.exit_code == 2
    assert all(name in result.stderr for name in NAMES)


@pytest.mark.parametrize(
    "command",
    [
        ["recipe", "lab", "name=x y"],
        ["run", "lab", "name=x y"],
        ["sft", "lab", "name=x y"],
        ["evaluate", "lab", "name=x y"],
        ["report", "lab", "name=x y"],
        ["sandbox", "run", "lab", "name=x y"],
        ["data", "curate", "set.jsonl", "--recipe", "lab", "--out", "out.jsonl", "seed=x"],
    ],
)
def test_every_command_takes_a_name(command: list[str]) -> None:
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2
    field = command[-1].partition("=")[0]
    require(printed(result.stderr), str(FOLDER / "lab.yaml"), f"'{field}'")


def test_help_tells_the_names() -> None:
    for command in ([], ["run"], ["rl"], ["recipe"]):
        said = " ".join(CliRunner().invoke(main, [*command, "--help"]).output.split())
        assert f"the name of a recipe that comes with ASTER: {', '.join(NAMES)}." in said


# -- written out


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_written_out_is_the_same_recipe_with_its_comments(name: str) -> None:
    text = written(name)
    Path("my.yaml").write_text(text)
    assert load_recipe("my.yaml") == load_recipe(name)
    comments = re.findall(r"(?:^|\s)(# .*)", (FOLDER / f"{name}.yaml").read_text(), re.MULTILINE)
    assert [comment for comment in comments if comment not in text] == []
    assert written("my.yaml") == text


def test_every_field_is_there_with_its_meaning_and_type() -> None:
    text = written("lab")
    assert f"\nrl:\n  ## {Rl.model_fields['steps'].description} (int > 0)\n  steps: 30\n" in text
    assert "  ## Problems per step. Reproduction: 128. (int > 0; default 128)\n  prompts: 12\n" in text
    assert "  learning_rate: 0.0002  # 3e-4 and 5e-4 lost accuracy at once\n" in text
    assert "  prompts: 128\n" in written()


def test_overrides_are_kept_and_comments_on_what_they_change_are_not() -> None:
    text = written("aster_4b", "rl.learning_rate=2e-6", "sft.stages.1.epochs=1")
    assert "learning_rate: 2.0e-06\n" in text
    assert "  clip_low: 0.2  # paper\n" in text
    assert "\nrl:\n" in text  # its comment told of the whole section
    assert "# reproduction: 3e-5 flat, 6 epochs in all, 32,768\n" in text
    assert "# ours: how the epochs are divided\n" not in text
    Path("my.yaml").write_text(text)
    assert load_recipe("my.yaml") == load_recipe("aster_4b", ["rl.learning_rate=2e-6", "sft.stages.1.epochs=1"])
    assert "learning_rate: 2.0e-06\n" in written("my.yaml")


COMMENTED = """\
# head

---
# of the name
name: x   # beside the name
problems:
  # of the families
  families:   # beside the families
    chain: 1.0
    # of hunt
    hunt: 2.0  # beside hunt
  prompt_suffix: |
    # text
      more text # and more

  # of the columns
  columns: {answer: "a # b",   # beside a part
            prompt: 'c
    # d'}  # beside the end
rl:
  ## ours, and written again
  stages:
    # of the first
    - {steps: 1}  # beside the first
    # of the second
    - limits: {turns: 3}  # beside the second
# foot
"""


def test_comments_are_known_from_text_and_by_their_field() -> None:
    found = read_comments(COMMENTED)
    assert found.head == ["# head", "# of the name"]
    assert found.above == {
        "problems.families": ["# of the families"],
        "problems.families.hunt": ["# of hunt"],
        "problems.columns": ["# of the columns"],
        "rl.stages.0": ["# of the first"],
        "rl.stages.1": ["# of the second"],
    }
    assert found.beside == {
        "name": "# beside the name",
        "problems.families": "# beside the families",
        "problems.families.hunt": "# beside hunt",
        "problems.columns": "# beside a part",
        "problems.columns.prompt": "# beside the end",
        "rl.stages.0": "# beside the first",
        "rl.stages.1": "# beside the second",
    }
    assert found.foot == ["# foot"]


def test_no_comment_is_lost_or_becomes_a_field() -> None:
    Path("my.yaml").write_text(COMMENTED)
    text = to_yaml(load_recipe("my.yaml"), read_comments(COMMENTED))
    assert [comment for comment in re.findall(r"# (?:beside|of|head|foot).*", COMMENTED) if comment not in text] == []
    Path("again.yaml").write_text(text)
    assert load_recipe("again.yaml") == load_recipe("my.yaml")
    assert load_recipe("my.yaml").problems.prompt_suffix == "# text\n  more text # and more\n"
