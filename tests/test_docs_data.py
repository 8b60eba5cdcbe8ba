"""Every command of docs/data.md, run in order in one folder. The folder has small files with the names that the page uses; the
scripted fake stands in for the teacher's server.

A command stands in an indented block under a line ``<!-- run -->``. New commands of the page need a change here only where they
read files that no earlier command wrote: :func:`prepare` writes those.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from aster.cli import main
from aster.cli.data import data_group
from aster.data.sets import iterate_set, write_set
from aster.run import read_trajectories
from tests.data.curation.transcripts import calls, step, transcript
from tests.data.formats.test_layouts import ROWS
from tests.teacher.fake_teacher import FakeTeacher, serving

PAGE = Path(__file__).resolve().parents[1] / "docs" / "data.md"


def commands() -> list[list[str]]:
    """The commands of the page, as lists of arguments; a line that ends in a backslash goes on in the next."""
    found = []
    for block in re.findall(r"<!-- run -->\n((?:    .*\n)+)", PAGE.read_text(encoding="utf-8")):
        text = re.sub(r"\\\n\s*", "", "\n".join(line[4:] for line in block.splitlines()))
        found += [shlex.split(line) for line in text.splitlines() if line.strip()]
    return found


def prepare(folder: Path, teacher: str) -> None:
    """Write what the page expects to be there: files of problems, a teacher's set, other sets, recipes."""
    import pyarrow
    import pyarrow.parquet

    bases = "Find the sum of all integer bases $b>9$ for which $17_b$ is a divisor of $97_b$."
    asked = [bases, "What is the value of $6 \\cdot 7$?"]
    rows = [
        {"data_source": "own", "prompt": [{"role": "user", "content": text}], "reward_model": {"ground_truth": "42"}}
        for text in (asked[1], asked[0])
    ]
    for name, row in zip(("train", "aime25"), rows, strict=True):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), folder / f"{name}.parquet")
    lines: dict[str, list[dict[str, object]]] = {
        "more.jsonl": [{"problem": asked[0], "answer": "70"}, {"problem": asked[1], "answer": "42"}],
        "hmmt25.jsonl": [{"problem": "Compute the sum of those divisors of $9!$ that end in the digit $1$.", "answer": 103}],
        "mine.jsonl": [{"task": {"text": "What is $1+1$?", "final": "2"}}],
    }
    for name, records in lines.items():
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    dense = [
        transcript(
            f"p{number}", step("run", "a = 2"), *(step("on", f"a = a + {n}") for n in range(11)), answer="57", expected="57"
        )
        for number in range(24)
    ]
    write_set(folder / "teacher.jsonl.gz", [*dense, calls("wrong", 12, reward=0.0), calls("sparse", 2)])
    _, row = ROWS["ReTool-SFT"]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), folder / "retool.parquet")
    write_set(folder / "other.jsonl.gz", [transcript("q", step("The answer is 4.", ("2 * 2", "4")), answer="4")])
    recipe = {"name": "lab", "model": {"path": "lab"}, "sandbox": {"preload": []}}
    (folder / "lab.yaml").write_text(yaml.safe_dump(recipe))
    shown = re.search(r"```yaml\n(.*?)```", PAGE.with_name("teacher.md").read_text(encoding="utf-8"), re.DOTALL)
    assert shown is not None
    taught = yaml.safe_load(shown[1]) | {key: recipe[key] for key in ("model", "sandbox")}
    taught["synthesize"]["base_url"] = teacher
    (folder / "taught.yaml").write_text(yaml.safe_dump(taught))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all commands of the page have been run."""
    place = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch, serving(FakeTeacher()) as teacher:
        prepare(place, teacher.address)
        patch.chdir(place)
        for command in commands():
            assert command[0] == "aster"
            # Warming up the libraries takes seconds, and these cells use none.
            quick = ["sandbox.preload=[]"] if command[1] == "replay" else []
            result = CliRunner().invoke(main, [*command[1:], *quick])
            assert result.exit_code == 0, f"{shlex.join(command)}\n{result.output}"
    return place


def test_the_page_has_commands() -> None:
    data = {f"data {name}" for name in data_group.commands}
    found = {" ".join(command[1 : 3 if command[1] == "data" else 2]) for command in commands()}
    assert found >= data | {"synthesize", "curate", "replay"}


def test_what_the_commands_leave(folder: Path) -> None:
    report = json.loads((folder / "problems.json").read_text())
    assert [step["kept"] for step in report["funnel"]] == [3, 3, 3, 2, 2, 1]
    assert [hit["benchmark"] for hit in report["contaminated"]] == ["aime25.parquet"]
    assert json.loads((folder / "mine-problems.jsonl").read_text())["answer"] == "2"
    assert len(list(iterate_set(folder / "cold-start.jsonl.gz"))) == 24
    assert len((folder / "dropped.jsonl").read_text().splitlines()) == 2
    assert len(list(iterate_set(folder / "chosen.jsonl.gz"))) == 20
    verdicts = [result["verdict"].partition(":")[0] for result in json.loads((folder / "stats.json").read_text())]
    assert verdicts == ["no sign of risk", "high risk", "some risk"]
    taught = list(iterate_set(folder / "taught.jsonl"))
    assert [(each.author, each.tool_calls, each.reward) for each in taught] == [("teacher", 2, 1.0)] * 4
    assert json.loads((folder / "replayed.json").read_text())["same"] == 1
    assert list(iterate_set(folder / "back.jsonl")) == list(iterate_set(folder / "chosen.jsonl.gz"))
    kept = read_trajectories(folder / "runs" / "brought" / "curate" / "trajectories" / "kept.jsonl.gz")
    assert len(kept) == 20
    assert all(trajectory.tool_calls == 12 for trajectory in kept)
