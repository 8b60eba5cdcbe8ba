"""The HTML report is complete, self-contained and escaped, and works with missing parts."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from aster.config.recipe import Recipe
from aster.errors import UserError
from aster.report import render_table, write_report
from aster.run import RunFolder
from tests.report.conftest import HOSTILE, fill


class Elements(HTMLParser):
    """Collects the tags, attributes and text that a browser would see."""

    VOID = frozenset({"meta", "br", "img", "link", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.unclosed: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.unclosed.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.unclosed, f"</{tag}> closes nothing"
        assert self.unclosed.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_shows_every_part_of_a_complete_run(filled_page: str) -> None:
    page = Elements(filled_page)
    assert page.unclosed == []
    for expected in (
        "84.4%",
        "[81.4, 87.4]",
        "8.61",
        "filled, cold start aster, seed 1",
        "aster run recipe.yaml",
        "85.8",
        "53.9",
    ):
        assert expected in page.text
    assert '<p class="good" id="verdict">' in filled_page
    for title in ("Reward on training problems", "Tool calls per trajectory", "Policy entropy", "SFT loss", "Stop reasons"):
        assert title in page.text
    assert re.search(r"correct\s*31", page.text)
    assert "Missing" not in page.text
    assert "print(1) # " in page.text
    assert "plan 0" in page.text
    # Details: the versions; p1 and p3 (solved), p0 and p2 (failed) of the evaluation; one of each of the last RL step.
    assert page.tags.count("details") == 1 + 4 + 2
    assert page.text.count("RL step 000012") == 2
    assert "000011" not in page.text


def test_the_models_text_is_escaped_and_the_page_loads_nothing(filled_page: str) -> None:
    page = Elements(filled_page)
    assert "script" not in page.tags
    assert HOSTILE in page.text, "the model's text must be shown unchanged"
    assert "{{ 7 * 7 }}" in html.unescape(filled_page)
    for name, value in page.attributes:
        if name in ("src", "href", "xlink:href"):
            assert (value or "").startswith("#"), f"{name}={value} is outside the page"
    assert "@import" not in filled_page
    assert not re.search(r"url\((?!#)", filled_page)


def test_charts_are_well_formed_and_have_different_ids(filled_page: str) -> None:
    charts = re.findall(r"<svg.*?</svg>", filled_page, re.DOTALL)
    assert len(charts) == 8
    seen: set[str] = set()
    for chart in charts:
        ids = {element.get("id") for element in ElementTree.fromstring(chart).iter()} - {None}
        for reference in re.findall(r'(?:href="#|url\(#)([^")]+)', chart):
            assert reference in ids
        assert not ids & seen, "two charts have the same id"
        seen |= {str(name) for name in ids}


def test_the_report_of_an_empty_run_names_what_is_missing(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "empty", Recipe()) as run:
        text = write_report(run).read_text()
    missing = re.findall(r'<h2>(.*?)</h2>|<p class="missing">', text)
    # A paragraph is matched as "". Under "Cold start" both curation and SFT are missing.
    sections = ["Results", "", "Reinforcement learning", "", "Tool use", "", "Cold start", "", "", "Sample trajectories", ""]
    assert missing == sections


@pytest.mark.parametrize(
    "gone", [["tokenizer", "curate", "run.json"], ["evaluate/rl", "summary.json"], ["rl", "metrics.jsonl"]]
)
def test_the_report_works_with_missing_parts(filled_run: RunFolder, gone: list[str]) -> None:
    for name in gone:
        target = filled_run.path / name
        target.rename(target.with_name(f"not-{target.name}"))
    path = write_report(filled_run)
    assert path == filled_run.path / "report.html"
    page = Elements(path.read_text())
    assert page.unclosed == []
    if "tokenizer" in gone:
        assert "print(1) # " in page.text, "calls and outputs need no tokenizer"


def test_the_error_names_a_broken_file(filled_run: RunFolder) -> None:
    path = filled_run.trajectory_file("evaluate/rl", "all")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"evaluate/rl/trajectories/all\.jsonl\.gz: "):
        write_report(filled_run)


def test_charts_show_other_runs_by_name(filled_run: RunFolder, tmp_path: Path) -> None:
    other = fill(tmp_path / "other-$x$-<b>")
    page = Elements(write_report(filled_run, [other]).read_text())
    assert page.text.count("other-$x$-<b>") == 4  # the legends of four charts
    assert "b" not in page.tags


def test_collapse_is_reported(filled_run: RunFolder) -> None:
    for step in range(13, 30):
        filled_run.log("rl", step, stage_index=1, tool_calls=1.0)
    assert '<p class="bad" id="verdict">' in write_report(filled_run).read_text()


def test_the_table_has_a_row_for_each_evaluated_policy() -> None:
    result = {"accuracy": 0.844, "low": 0.81, "high": 0.871, "k": 16, "problems": 128, "tool_calls": 8.6}
    lines = render_table({"rl": result, "base": result | {"accuracy": 0.0}}, Path("runs/x/report.html")).splitlines()
    assert lines[0].split() == ["policy", "avg@16", "95%", "interval", "problems", "tool", "calls"]
    assert lines[2].split() == ["base", "0.0%", "[81.0,", "87.1]", "128", "8.60"]
    assert lines[3].split() == ["after", "RL", "84.4%", "[81.0,", "87.1]", "128", "8.60"]
    assert lines[4] == "report: runs/x/report.html"
    assert len(render_table({}).splitlines()) == 1
