"""``aster evaluate --policy``: its folder, interrupts, shards, comparisons, and what it refuses."""

from __future__ import annotations

import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from aster.evaluation.folder import EvaluationFolder
from aster.run import read_json, read_json_lines, read_trajectories
from aster.types import StopReason, Trajectory
from tests.refusals import printed, require
from tests.stages.runs import Commands, Ended

FIELDS = ("model.threads=1", "model.device=cpu", "sandbox.preload=[]", "rollout.cache_tokens=8192")


class Evaluations:
    """Commands on the coin model and its problems."""

    def __init__(self, commands: Commands, model: Path, problems: Path, folder: Path) -> None:
        self.commands, self.model, self.problems, self.folder = commands, model, problems, folder

    def arguments(self, out: str, *more: str) -> list[str]:
        given = ["evaluate", "--policy", str(self.model), "--benchmark", str(self.problems), "--out", str(self.folder / out)]
        given += ["--k", "3", "--budget", "100", "--temperature", "1", "--top-p", "1", "--prompt-suffix", ""]
        return [*given, *more, *FIELDS]

    def run(self, out: str, *more: str) -> Ended:
        return self.commands.run(*self.arguments(out, *more))

    def outcomes(self, out: str) -> list[dict[str, Any]]:
        """What was sampled and how it ended, without what a clock decides."""
        records = read_json_lines(self.folder / out / "outcomes.jsonl")
        return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


@pytest.fixture(scope="session")
def evaluations(
    commands: Commands, coin_model: Path, coin_problems: Path, tmp_path_factory: pytest.TempPathFactory
) -> Evaluations:
    return Evaluations(commands, coin_model, coin_problems, tmp_path_factory.mktemp("evaluations"))


@pytest.fixture(scope="session")
def whole(evaluations: Evaluations) -> Ended:
    """One that was not interrupted, with a label, prices and a check of a smaller budget."""
    ended = evaluations.run(
        "whole", "--label", "coins", "--price-in", "1", "--price-out", "2", "--check-budget", "70", "--concurrency", "4"
    )
    assert ended.code == 0, ended.err
    return ended


def test_a_result_says_under_which_settings_it_was_made(whole: Ended, evaluations: Evaluations) -> None:
    for part in (
        "avg@3",
        "pass@3",
        "maj@3",
        "24 attempts at 8 problems ended: ",
        "k 3, temperature 1, top-p 1, seed 1",
        "budget 100 tokens (prompt, sampled and tool tokens), 256 calls",
        "tool: stateful Python, 10 s a cell",
        "token budget",
        "money",
        "versions: python",
    ):
        assert part in whole.out
    assert "budget 70: cut off " in whole.out
    assert "all attempts end the same way" in whole.out
    summary = read_json(evaluations.folder / "whole" / "summary.json")
    assert summary["settings"]["context_tokens"] == 100
    assert summary["notes"]["isolation"] in whole.out
    assert 0 < summary["accuracy"] < 1
    assert "<svg" in (evaluations.folder / "whole" / "report.html").read_text()
    # The last file of attempts has one to eight: how many ended together is the clock's.
    shown = evaluations.commands.run("show", evaluations.folder / "whole", "--index", "0")
    assert "Toss" in shown.out, shown.err


def test_a_finished_evaluation_does_nothing_and_says_the_same(whole: Ended, evaluations: Evaluations) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in (evaluations.folder / "whole" / "attempts").iterdir())
    again = evaluations.run("whole")
    # One line about the folder, and none about attempts.
    assert re.fullmatch(rf"{re.escape(str(evaluations.folder / 'whole'))}: .*\n", again.err)
    assert again.out.splitlines()[:5] == whole.out.splitlines()[:5]
    assert before == sorted((path, path.stat().st_mtime_ns) for path in (evaluations.folder / "whole" / "attempts").iterdir())


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_evaluation_goes_on_with_the_same_command(number: int, evaluations: Evaluations) -> None:
    out = f"interrupted-{number}"
    folder = evaluations.folder / out
    ended = evaluations.commands.killed(
        lambda: any((folder / "attempts").glob("part_*")), *evaluations.arguments(out, "--concurrency", "1"), number=number
    )
    assert ended.code == (130 if number == signal.SIGINT else -number)
    assert "Traceback" not in ended.err
    kept = sum(len(read_trajectories(path)) for path in (folder / "attempts").glob("part_*.jsonl.gz"))
    assert 16 <= kept <= 24
    again = evaluations.run(out)
    assert again.code == 0, again.err
    # Ctrl-C may come when the last attempts are done already, and only the result is missing.
    assert kept == 24 or re.search(rf"^evaluate: .*\b{kept} \w+ 24$", again.err, re.MULTILINE)
    # The seeds belong to problem and sample: neither the interrupt nor how many ran at once changes an attempt.
    assert evaluations.outcomes(out) == evaluations.outcomes("whole")


def test_shards_are_the_whole(whole: Ended, evaluations: Evaluations) -> None:
    for part in (1, 2):
        ended = evaluations.run(f"shard{part}", "--shard", f"{part}/2")
        assert ended.code == 0, ended.err
    folders = [evaluations.folder / f"shard{part}" for part in (1, 2)]
    target = evaluations.folder / "merged"
    merged = evaluations.commands.run("merge", target, *folders)
    assert merged.code == 0, merged.err
    assert evaluations.outcomes("merged") == evaluations.outcomes("whole")
    assert merged.out.splitlines()[:5] == whole.out.splitlines()[:5]
    other = evaluations.folder / "whole"
    for shards, field, shard in (
        ([folders[0]], "", "2/2"),
        ([folders[0], folders[1], folders[1]], str(folders[1]), "2/2"),
        ([folders[0], other], str(other), "1/1"),
    ):
        ended = evaluations.commands.run("merge", evaluations.folder / "other", *shards)
        assert (ended.code, len(ended.err.splitlines())) == (2, 1)
        require(printed(ended.err), field, shard)
        assert not (evaluations.folder / "other").exists()
    for taken in (target, target / "summary.json"):
        require(printed(evaluations.commands.run("merge", taken, *folders).err), str(taken))


@pytest.mark.usefixtures("whole")
def test_two_results_and_many_budgets_are_tables(evaluations: Evaluations) -> None:
    ended = evaluations.run("text", "--no-tools")
    assert ended.code == 0, ended.err
    assert "no tool" in ended.out
    folders = [evaluations.folder / name for name in ("whole", "text")]
    compared = evaluations.commands.run("compare", *folders)
    assert compared.code == 0, compared.err
    assert "coins" in compared.out
    assert "paired permutation test over 8 problems" in compared.out
    assert "their settings differ in tool_calls, tools" in compared.out
    grid = evaluations.commands.run("budgets", *folders, "--at", "50,100")
    assert grid.code == 0, grid.err
    assert [line.split()[0] for line in grid.out.splitlines()] == ["policy", "------", "coins", "text"]
    assert "100 tokens" in grid.out
    require(printed(evaluations.commands.run("budgets", *folders, "--at", "200").err), "--at 200", "100")


@pytest.mark.usefixtures("whole")
def test_other_settings_in_the_same_folder_are_refused_by_name(evaluations: Evaluations) -> None:
    ended = evaluations.run("whole", "--seed", "2")
    assert ended.code == 2
    require(printed(ended.err), str(evaluations.folder / "whole"), "--out")
    assert re.search(r"\bseed\b.*\b1\b.*\b2\b", ended.err)
    (evaluations.folder / "taken").mkdir()
    (evaluations.folder / "taken" / "letter").write_text("x")
    require(printed(evaluations.run("taken").err), str(evaluations.folder / "taken"))
    # Nothing is left in a folder that has other files.
    assert [path.name for path in (evaluations.folder / "taken").iterdir()] == ["letter"]


@pytest.mark.usefixtures("whole")
def test_label_and_prices_of_a_finished_evaluation_may_change(evaluations: Evaluations) -> None:
    path = Path(shutil.copytree(evaluations.folder / "whole", evaluations.folder / "priced"))
    before = read_json(path / "summary.json")
    again = evaluations.run("priced", "--price-in", "10", "--price-out", "20", "--label", "dear")
    assert again.code == 0, again.err
    assert re.search(rf"^{re.escape(str(path))}: .*\blabel\b.*\bprices\b", again.err, re.MULTILINE)
    after = read_json(path / "summary.json")
    assert after["totals"]["cost"] == pytest.approx(10 * before["totals"]["cost"])
    assert (after["accuracy"], after["notes"]["label"]) == (before["accuracy"], "dear")


@pytest.mark.usefixtures("whole")
def test_an_evaluation_that_goes_on_repeats_its_faults(evaluations: Evaluations) -> None:
    """An attempt that failed because of an engine, a sandbox or an environment is not a result."""
    path = Path(shutil.copytree(evaluations.folder / "whole", evaluations.folder / "faulty"))
    folder = EvaluationFolder.load(path)
    faulty = next(iter(folder.attempts()))
    assert isinstance(faulty, Trajectory)
    faulty.stop_reason, faulty.error, faulty.answer, faulty.reward = StopReason.ENGINE_ERROR, "gone", None, 0.0
    folder.add([faulty])
    folder.unfinish()
    again = evaluations.run("faulty")
    assert re.search(r"^evaluate coins: .*\b23 \w+ 24$", again.err, re.MULTILINE)
    assert evaluations.outcomes("faulty") == evaluations.outcomes("whole")


@pytest.mark.parametrize(
    ("more", "field", "named"),
    [
        (["--policy", "nowhere"], "model.path", "nowhere"),
        (["--policy", "http://127.0.0.1:9"], "--policy http://127.0.0.1:9", "--tokenizer"),
        (["--policy", "tinker:10.0.0.5"], "--policy tinker:10.0.0.5", "tinker:http://"),
        (["--benchmark", "aime99"], "aime99", ""),
        (["--benchmark", "none.jsonl"], "none.jsonl", ""),
        (["--budget", "30q"], "30q", ""),
        (["--shard", "3/2"], "--shard 3/2", ""),
        (["--shard", "9/9"], "--shard 9/9", "8"),
        (["rl.steps=3"], "override 'rl.steps=3'", "--policy"),
        (["--checkpoint", "nowhere"], "--checkpoint nowhere", ""),
        (["--temperature", "nan"], "--temperature nan", ""),
        (["--budget", "99999999999999999999"], "99999999999999999999", ""),
        (["--policy", "chat:http://127.0.0.1:9", "--check-budget", "50"], "--check-budget", "chat:http://127.0.0.1:9"),
    ],
)
def test_bad_input_is_one_line(more: list[str], field: str, named: str, evaluations: Evaluations, tmp_path: Path) -> None:
    given = evaluations.arguments("bad", *more)
    given[given.index("--out") + 1] = str(tmp_path / "bad")
    ended = evaluations.commands.run(*given)
    assert (ended.code, ended.out) == (2, "")
    assert "Traceback" not in ended.err
    require(printed(ended.err), field, named)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], {"RECIPE", "--policy", "--benchmark"}),
        (["--policy", "lab"], {"RECIPE", "--policy", "--benchmark"}),
        (["recipe.yaml", "--k", "2"], {"RECIPE", "FIELD=VALUE", "--run", "--retry-faults", "--k"}),
        (["--policy", "lab", "--benchmark", "lab", "--run", "x"], {"--run", "RECIPE", "--policy", "--out"}),
        (["--policy", "lab", "--benchmark", "lab", "--price-in", "1"], {"--price-in", "--price-out"}),
    ],
)
def test_the_two_forms_do_not_mix(arguments: list[str], named: set[str]) -> None:
    from click.testing import CliRunner

    from aster.cli import main

    result = CliRunner().invoke(main, ["evaluate", *arguments])
    assert result.exit_code == 2
    (said,) = re.findall(r"^Error: (.*)$", result.output, re.MULTILINE)
    assert set(re.findall(r"--[a-z-]+|RECIPE|FIELD=VALUE", said)) == named
