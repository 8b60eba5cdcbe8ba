"""Benchmarks by name: local copies, their checks, downloads from the hub, and the registry's table."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest

from aster.data import benchmarks
from aster.data.benchmarks import REGISTRY, VARIABLE, checksum, describe, load_benchmark, local_copy
from aster.data.problems import BOX_REQUEST
from aster.errors import UserError
from aster.evaluation.published import BENCHMARKS, ROWS, published_on

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
ENTRY = REGISTRY["aime24"]


def write(path: Path, count: int = 30, suffix: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"problem": f"What is {i}+{i}?{suffix}", "answer": 2 * i, "solution": "-"} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.skipif(not DATA.is_dir(), reason=f"NOT RUN: the published benchmarks; {DATA} is missing")
@pytest.mark.parametrize("name", ["aime25", "hmmt25"])
def test_the_published_copies_have_the_recorded_checksums(name: str) -> None:
    problems = load_benchmark(name, DATA)
    assert len({problem.id for problem in problems}) == REGISTRY[name].count == len(problems)
    assert checksum(problems) == REGISTRY[name].checksum
    assert not any(BOX_REQUEST in problem.prompt for problem in problems)
    assert all(problem.id.startswith(f"{name}-") and problem.source == name for problem in problems)


@pytest.mark.parametrize("place", ["aime24.jsonl", "aime_2024.jsonl", "aime_2024/data/train-00000.jsonl"])
def test_a_copy_is_found_under_each_name(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / place)
    assert local_copy(ENTRY, tmp_path) == path
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert len(load_benchmark("aime24")) == 30


def test_ids_and_checksum_do_not_depend_on_the_layout_and_order_of_a_copy(tmp_path: Path) -> None:
    bare = load_benchmark("aime24", write(tmp_path / "a" / "aime24.jsonl").parent)
    asking = write(tmp_path / "b" / "aime24.jsonl", suffix=f"  \n{BOX_REQUEST}\n")
    asking.write_text("".join(reversed(asking.read_text().splitlines(keepends=True))))
    other = load_benchmark("aime24", asking.parent)
    assert sorted(p.id for p in bare) == sorted(p.id for p in other)
    assert checksum(bare) == checksum(other) != checksum(bare[:-1])


def test_a_copy_with_another_count_or_checksum_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "aime25.jsonl", count=29)
    record = REGISTRY["aime25"].checksum
    with pytest.raises(UserError) as caught:
        load_benchmark("aime25", tmp_path)
    for part in ("aime25.jsonl", "29 problems", "30", str(record), "--changed-benchmark"):
        assert part in str(caught.value)
    assert len(load_benchmark("aime25", tmp_path, changed=True)) == 29
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_the_error_names_what_is_missing_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(UserError, match=r"aime99: .*aime24, aime25"):
        load_benchmark("aime99")
    with pytest.raises(UserError, match=r"nowhere: .*--data"):
        load_benchmark("aime24", tmp_path / "nowhere")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"aime24: .*hf:HuggingFaceH4/aime_2024:train: .*pip install .*aime24\.parquet"):
        load_benchmark("aime24", tmp_path)
    for part in ("one", "two"):
        write(tmp_path / "aime_2024" / f"train-{part}.jsonl")
    with pytest.raises(UserError, match=r"aime_2024: 2 files .*train.*aime24\.parquet"):
        load_benchmark("aime24", tmp_path)


def test_the_library_datasets_reads_a_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real library, on a local folder."""
    pytest.importorskip("datasets", reason="NOT RUN: the hub's library; make install sets it up")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "set" / "train.jsonl")
    problems = benchmarks._from_hub(ENTRY, str(tmp_path / "set"))
    assert (len(problems), problems[3].answer) == (30, "6")
    with pytest.raises(UserError, match=r"aime24: .*hf:.*none:train: .*aime24\.parquet"):
        benchmarks._from_hub(ENTRY, str(tmp_path / "none"))


def test_an_unreachable_hub_gives_one_line(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """A FAKE of the library's call, which logs a warning for each retry as the real one does."""
    datasets = pytest.importorskip("datasets", reason="NOT RUN: the hub's library; make install sets it up")

    def unreachable(*_: object, **__: object) -> None:
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s")
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match=r"aime24: .*hf:.*ConnectionError: no network.*aime24\.parquet"):
        benchmarks._from_hub(ENTRY)
    assert capfd.readouterr().err == "hf:HuggingFaceH4/aime_2024:train: reading\n"


def test_any_file_is_a_benchmark(tmp_path: Path) -> None:
    problems = load_benchmark(str(write(tmp_path / "mine.jsonl", count=3)))
    assert [problem.source for problem in problems] == ["mine"] * 3


def test_a_repeated_problem_is_kept_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ids are hashes of the text, so attempts at both would count as attempts at one."""
    rows = [{"id": "a", "prompt": "What is 1+1?", "answer": "2"}, {"id": "b", "prompt": "What is 1+1? ", "answer": "2"}]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(load_benchmark(str(path))) == 1
    assert "1 of 2 problems" in capsys.readouterr().err
    rows[1]["answer"] = "3"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="'2' and '3'"):
        load_benchmark(str(path))


def test_the_table_lists_the_registry_and_the_local_copies(tmp_path: Path) -> None:
    write(tmp_path / "aime24.jsonl")
    write(tmp_path / "aime25.jsonl")
    write(tmp_path / "math500.jsonl", count=2)
    text = describe(tmp_path)
    assert all(entry.dataset in text and entry.title in text for entry in REGISTRY.values())
    copies = {name: line for name in REGISTRY for line in text.splitlines() if line.startswith(f"{name}: ")}
    assert f"{tmp_path}/aime24.jsonl: 30 problems, sha256 {checksum(load_benchmark('aime24', tmp_path))}" in copies["aime24"]
    assert checksum(load_benchmark("aime25", tmp_path, changed=True)) in copies["aime25"]
    assert all(part in copies["math500"] for part in ("math500.jsonl: 2 problems", "500"))
    assert copies["beyondaime"] == "beyondaime: none"


def test_every_published_result_has_a_source_and_a_score_per_benchmark() -> None:
    assert all(row.source and len(row.scores) == len(BENCHMARKS) for row in ROWS)
    assert set(BENCHMARKS) <= set(REGISTRY)
    best = [score for _, score in published_on("aime25")]
    assert best == sorted(best, reverse=True)
    assert published_on("math500") == []
