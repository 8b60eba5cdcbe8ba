"""A whole synthesis against a real OpenAI-compatible server: vLLM on a CPU, with a small model that really calls the tool.

The model is trained here, in seconds, to answer any problem with one or two calls and a random digit: so calls pass through
vLLM's parsers and our sandbox, and some answers are right."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from aster.chat import Qwen3Dialect
from aster.data.problems import load_problems
from aster.data.sets import iterate_set
from aster.engines import TrainingSample
from aster.run import drop_torn_line, read_json
from tests.stages.runs import Commands
from tests.stages.taught import teach_model
from tests.vllm.conftest import vllm_server

DAPO = Path(__file__).parents[3] / "shared" / "data" / "dapo_sample.parquet"
ATTEMPTS = 4
PROBLEMS = 50
LIMITS = {"context_tokens": 2048, "turn_tokens": 64, "tool_calls": 4, "turns": 6}


@pytest.fixture(scope="session")
def dapo() -> Path:
    """Problems as the field has them."""
    if not DAPO.exists():
        pytest.skip(f"NOT RUN: {DAPO} is missing")
    return DAPO


@pytest.fixture(scope="session")
def calling_model(dapo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers in the lab's architecture, taught by SFT to call and to answer with a digit."""
    prompts = [problem.prompt for problem in load_problems(dapo)]

    def example(dialect: Qwen3Dialect, rng: random.Random) -> TrainingSample:
        ids = dialect.prompt_ids(rng.choice(prompts))
        mask = [0] * len(ids)
        for _ in range(rng.choice((1, 2))):
            digit = rng.randrange(10)
            for span, trained in ((dialect.turn_ids("run", "", [f"v={digit}\nv"]), 1), (dialect.tool_ids([str(digit)]), 0)):
                ids = ids + span
                mask += [trained] * len(span)
        last = dialect.turn_ids("end", f"\\boxed{{{rng.randrange(10)}}}", [])
        return TrainingSample(ids + last, mask + [1] * len(last), 1.0)

    return teach_model(tmp_path_factory.mktemp("calling") / "model", example, steps=80, batch=8)


@pytest.fixture(scope="session")
def chat_server(vllm_python: str, calling_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a vLLM server that takes calls and reasoning out of the text, as docs/teacher.md starts it."""
    options = ["--max-model-len", "2048", "--served-model-name", "teacher", "--enable-auto-tool-choice"]
    options += ["--tool-call-parser", "hermes", "--reasoning-parser", "deepseek_r1"]
    with vllm_server(vllm_python, calling_model, options, tmp_path_factory.mktemp("chat") / "log") as address:
        yield address


def test_a_synthesis_killed_twice_ends_with_every_attempt_once_and_a_funnel(
    chat_server: str, calling_model: Path, dapo: Path, commands: Commands, tmp_path: Path
) -> None:
    run, file = tmp_path / "run", tmp_path / "recipe.yaml"
    recipe = {
        "name": "taught",
        "cold_start": "program",  # one or two calls
        "model": {"path": str(calling_model), "threads": 1},
        "problems": {"train": str(dapo)},
        "sandbox": {"preload": []},
        "synthesize": {
            "teacher": "endpoint",
            "base_url": chat_server,
            "problems": PROBLEMS,
            "attempts": ATTEMPTS,
            "concurrency": 8,
            "limits": LIMITS,
        },
    }
    file.write_text(yaml.safe_dump(recipe))
    transcripts = run / "synthesize" / "transcripts.jsonl"

    def made(count: int) -> bool:
        return transcripts.exists() and transcripts.read_bytes().count(b"\n") >= count

    kept = b""
    for count in (40, 110):
        assert commands.killed(lambda: made(count), "synthesize", file, "--run", run).code == -signal.SIGKILL  # noqa: B023
        drop_torn_line(transcripts)
        content = transcripts.read_bytes()
        assert content.startswith(kept)
        kept = content
    last = commands.run("synthesize", file, "--run", run)
    assert last.code == 0, last.err
    assert transcripts.read_bytes().startswith(kept)
    found = list(iterate_set(transcripts))
    keys = {(t.problem_id, t.sample) for t in found}
    assert len(found) == len(keys) == PROBLEMS * ATTEMPTS
    called = [t for t in found if t.tool_calls]
    assert len(called) >= len(found) // 2, [t.steps for t in found[:3]]
    assert any(call.output == call.code[2] for t in called for call in t.calls)
    assert all(t.steps[0].thinking for t in called)
    curated = commands.run("curate", file, "--run", run)
    print(last.err, curated.err, sep="\n")
    if curated.code == 0:
        funnel = read_json(run / "curate" / "summary.json")["funnel"]
        assert funnel[0]["kept"] == PROBLEMS * ATTEMPTS
        print(funnel)
    else:  # so small a model may have no luck; the funnel is in the error's line
        assert f"curate: no trajectory is left (attempts: {PROBLEMS * ATTEMPTS}, answer verified: " in curated.err
