"""Statistics of sets, and the commands ``aster data stats`` and ``aster data curate``."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from aster.cli import main
from aster.config import ColdStart, Curate
from aster.data.curation.judging import judge_sources
from aster.data.curation.sources import Source
from aster.data.curation.statistics import statistics_of
from aster.data.sets import iterate_set, write_set
from aster.transcript import Transcript
from aster.types import CallStatus
from tests.data.curation.transcripts import calls, step, transcript
from tests.sandbox.test_lifecycle import children

DENSE = [
    transcript(f"d{n}", step("think", ("a = 1", "")), step("on", ("b = a + 1", "")), step("so", ("b * 2", "4")), answer="4")
    for n in range(4)
]
CHECKS = [transcript(f"c{n}", step("a long thought; the answer is 4", ("2 * 2", "4")), answer="4") for n in range(4)]
NEEDED = [transcript(f"n{n}", step("compute", ("2 * 2", "4")), answer="4") for n in range(4)]
POST_HOC = [transcript(f"p{n}", *(step("the answer is 4", "2 + 2") for _ in range(5)), answer="4") for n in range(4)]


@pytest.mark.parametrize(
    ("transcripts", "beginning"),
    [
        (DENSE, "no sign of risk: 100% "),
        (CHECKS, "high risk: sparse and post-hoc (100% "),
        (NEEDED, "some risk: sparse (100% "),
        (POST_HOC, "some risk: post-hoc (100% "),
        ([calls("none", 0)], "no trajectory"),
        ([], "nothing to say"),
    ],
)
def test_the_verdict_on_the_risk_of_collapse(transcripts: list[Transcript], beginning: str) -> None:
    assert statistics_of("set", transcripts)["verdict"].startswith(beginning)


def test_the_statistics_of_a_set() -> None:
    mixed = [
        *DENSE[:2],
        calls("d0", 1, status=CallStatus.ERROR, reward=0.0),
        transcript("m", step("", "?", status=CallStatus.MALFORMED), reward=None),
    ]
    result = statistics_of("mixed", mixed)
    assert (result["trajectories"], result["problems"]) == (4, 3)
    assert (result["verified"], result["unverified"]) == (0.5, 0.25)
    assert result["calls_histogram"] == [1, 1, 0, 2]
    assert (result["calls_mean"], result["calls_median"], result["sparse"]) == (7 / 4, 2, 0.5)
    assert (result["call_success"], result["malformed"]) == (6 / 7, 1 / 8)
    assert result["causal"] == 1.0
    assert result["unit"] == "words"
    assert sum(result["call_places"]) == pytest.approx(1.0)
    assert result["thinking_per_call"] == pytest.approx((1 + 1 + 0) / 3)
    assert statistics_of("counted", [transcript("p", step("a", "b", tokens=70))])["unit"] == "tokens"
    assert statistics_of("own", mixed, len, "characters")["unit"] == "characters"


def test_calls_are_counted_by_their_place_in_the_thinking() -> None:
    early = transcript("e", step("one", "f()"), step("word " * 99))
    late = transcript("l", step("word " * 99, "f()"), step("end"))
    places = [statistics_of("set", [each])["call_places"] for each in (early, late)]
    assert [place.index(1.0) for place in places] == [0, 9]


def test_stats_on_the_command_line(tmp_path: Path) -> None:
    write_set(tmp_path / "dense.jsonl.gz", DENSE)
    write_set(tmp_path / "checks.jsonl", CHECKS)
    arguments = ["data", "stats", str(tmp_path / "dense.jsonl.gz"), str(tmp_path / "checks.jsonl")]
    result = CliRunner().invoke(main, [*arguments, "--json", str(tmp_path / "s.json"), "--html", str(tmp_path / "s.html")])
    assert result.exit_code == 0, result.output
    assert "tool calls, mean" in result.output
    assert "3.00" in result.output
    assert f"{tmp_path}/checks.jsonl: high risk: sparse and post-hoc" in result.output
    assert [each["calls_mean"] for each in json.loads((tmp_path / "s.json").read_text())] == [3.0, 1.0]
    page = (tmp_path / "s.html").read_text()
    assert page.count("<svg") == 3
    assert "high risk" in page


def test_curate_on_the_command_line(tmp_path: Path) -> None:
    write_set(tmp_path / "a.jsonl", [*DENSE, *CHECKS])
    write_set(tmp_path / "b.jsonl.gz", NEEDED)
    out = tmp_path / "kept.jsonl.gz"
    arguments = ["data", "curate", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl.gz"), "--out", str(out)]
    extra = ["--dropped", str(tmp_path / "d.jsonl"), "--html", str(tmp_path / "f.html"), "--json", str(tmp_path / "f.json")]
    result = CliRunner().invoke(main, [*arguments, *extra, "density.min=3", "size=2", "seed=4"])
    assert result.exit_code == 0, result.output
    assert [line.split()[0] for line in result.output.splitlines()[2:8]] == ["attempts", "answer", "every", "at", "no", "2"]
    kept = list(iterate_set(out))
    assert len(kept) == 2
    assert all(each in DENSE for each in kept)
    dropped = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()]
    assert len(dropped) == 10
    assert {each["filter"] for each in dropped if each["problem_id"].startswith("c")} == {"at least 3 tool calls"}
    assert "<svg" in (tmp_path / "f.html").read_text()
    again = CliRunner().invoke(main, [*arguments, "density.min=3", "size=2", "seed=4"])
    assert again.exit_code == 0
    assert list(iterate_set(out)) == kept


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.jsonl"], "error: none.jsonl: "),
        (["set.csv"], "error: set.csv: "),
        (["."], "error: .: "),
        (["broken.jsonl"], "error: broken.jsonl, line 2: "),
        (["good.jsonl", "densty.min=3"], "'curate.densty'"),
    ],
)
def test_the_error_names_the_wrong_argument(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path / "good.jsonl", DENSE)
    (tmp_path / "broken.jsonl").write_bytes((tmp_path / "good.jsonl").read_bytes().splitlines(keepends=True)[0] + b"{}\n")
    result = CliRunner().invoke(main, ["data", "curate", *arguments, "--out", "out.jsonl"])
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "out.jsonl").exists()


def test_statistics_of_an_empty_set(tmp_path: Path) -> None:
    write_set(tmp_path / "empty.jsonl", [])
    result = CliRunner().invoke(main, ["data", "stats", str(tmp_path / "empty.jsonl"), "--html", str(tmp_path / "s.html")])
    assert result.exit_code == 0, result.output
    assert f"{tmp_path}/empty.jsonl: nothing to say" in result.output


def test_an_empty_result_does_not_replace_an_existing_set(tmp_path: Path) -> None:
    write_set(tmp_path / "checks.jsonl", CHECKS)
    write_set(tmp_path / "out.jsonl", DENSE)
    arguments = ["data", "curate", str(tmp_path / "checks.jsonl"), "--dropped", str(tmp_path / "dropped.jsonl")]
    result = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "out.jsonl")])
    assert result.exit_code == 2
    assert "at least 10 tool calls     0" in result.output
    assert f"{tmp_path}/out.jsonl" in result.output
    assert len((tmp_path / "dropped.jsonl").read_text().splitlines()) == len(CHECKS)
    assert list(iterate_set(tmp_path / "out.jsonl")) == DENSE


def test_an_output_file_that_could_not_be_read_as_a_set_is_refused(tmp_path: Path) -> None:
    write_set(tmp_path / "dense.jsonl", DENSE)
    arguments = ["data", "curate", str(tmp_path / "dense.jsonl"), "density.min=1", "--out", str(tmp_path / "o.json")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert f"--out {tmp_path}/o.json: " in result.output


def test_several_processes_give_the_verdicts_of_one(tmp_path: Path) -> None:
    many = [calls(f"p{number}", number % 13, reward=float(number % 5 > 0)) for number in range(700)]
    write_set(tmp_path / "many.jsonl.gz", many)
    sources = [Source(tmp_path / "many.jsonl.gz")]
    verdicts = [list(judge_sources(sources, Curate(), ColdStart.ASTER, processes)) for processes in (1, 2)]
    assert verdicts[0] == verdicts[1]
    assert [judged.problem_id for judged in verdicts[0]] == [each.problem_id for each in many]


def test_workers_end_when_the_command_is_killed(tmp_path: Path) -> None:
    write_set(tmp_path / "many.jsonl", (calls(f"p{number}", 12) for number in range(3000)))
    out = tmp_path / "o.jsonl"
    command = [sys.executable, "-m", "aster", "data", "curate", str(tmp_path / "many.jsonl"), "--out", str(out), "causal=0.1"]
    # The workers inherit the pipe: reading it ends only when all of them have exited.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    while process.poll() is None and not any(children(child) for child in children(process.pid)):
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)
    assert not out.exists()
