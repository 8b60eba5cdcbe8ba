"""Problems are filtered: only English ones, without duplicates and without problems of a benchmark."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from aster.cli import main
from aster.data.benchmarks import REGISTRY
from aster.data.curation.contamination import Contamination
from aster.data.curation.duplicates import Duplicates
from aster.data.curation.language import is_english
from aster.data.curation.normalize import tokens
from aster.data.curation.questions import Questions, load_benchmarks, problem_line
from aster.data.problems import BOX_REQUEST, load_problems
from aster.types import Problem

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the public problems in {DATA}")


@pytest.mark.parametrize(
    "same",
    [
        (r"Find $\dfrac{1}{2} \cdot x$.", r"find \(\frac12 x\)", "Find 1/2 × x"),
        (r"Let $\triangle ABC$ have $\angle A = 60^\circ$", "Let △ABC have ∠A = 60°"),
        ("1{,}000 and 2,500", "1000 and 2500"),
        (r"$\left( a_{10} \right)^{2} \leq \pi$", r"(a_10)^2 ≤ π"),
        (r"\text{if } x\geqslant 3", "if x >= 3"),
        ("$x^2$", "x²"),
        ("\x0crac{1}{2}", r"\frac{1}{2}"),
        (f"How many?\n{BOX_REQUEST}", "how   many?"),
    ],
)
def test_notation_does_not_matter(same: tuple[str, ...]) -> None:
    assert len({"".join(tokens(text)) for text in same}) == 1


@pytest.mark.parametrize(
    "prompt",
    [
        "Evaluate $\\int_0^1 x^2\\,dx$.",
        "Find $x$.",
        "Solve for $x$: $x^2=2$",
        "$1+1=$",
        "Compute $\\sum_{\\alpha} \\alpha^2$ where α ranges over β, γ, δ.",
        "Determine all primes $p$ such that $p^2+2$ is prime.",
        "Let $ABC$ be a triangle. Let $I$ be its incenter.",
        "In Cauchy's and Erdős's notation, is $f$ Lipschitz?",
    ],
)
def test_short_and_mathematical_english_is_english(prompt: str) -> None:
    assert is_english(prompt)


@pytest.mark.parametrize(
    "prompt",
    [
        "设正数 $a, b$ 满足 $a+b=1$, 求 $ab$ 的最大值.",
        f"求 $x$ 的值.\n{BOX_REQUEST}",
        "Пусть $n$ — натуральное число. Найдите $n$.",
        "Soit $n$ un entier naturel tel que $n^2+1$ soit premier. Trouver la somme de toutes les valeurs possibles.",
        "Sea $n$ un entero positivo tal que $n+1$ divide a $n^2+7$. Halla la suma de todos los valores posibles.",
        "Sei $n$ eine natürliche Zahl, für die $n^2+1$ eine Primzahl ist. Bestimme die kleinste solche Zahl.",
    ],
)
def test_other_languages_are_not_english(prompt: str) -> None:
    assert not is_english(prompt)


LONG = (
    "A farmer has {n} sheep and {m} cows, and every day he sells one of the animals at the market in the next town, where "
    "nobody has ever bought a cow before noon. In how many ways can he sell all of his animals one after the other?"
)


def test_exact_and_near_duplicates_are_found_unless_numbers_differ() -> None:
    seen = Duplicates()

    def check(name: str, prompt: str, answer: str = "1") -> tuple[str, str, bool] | None:
        found = seen.check(Problem(name, prompt, answer))
        return None if found is None else (found.kind, found.first, found.answers_differ)

    first = LONG.format(n=13, m=7)
    assert check("a", first) is None
    assert check("b", first.upper().replace(" ", "  "), "2") == ("exact", "a", True)
    assert check("c", first.replace("one after the other", "one after another")) == ("near", "a", False)
    assert check("d", first.replace("one after the other", "one after another")) == ("exact", "a", False)
    assert check("e", LONG.format(n=13, m=8)) is None
    assert check("f", "What is 1+1?") is None
    assert check("g", "What is 1+1") == ("exact", "f", False)
    plain = Duplicates(near=False)
    assert plain.check(Problem("a", first, "1")) is None
    assert plain.check(Problem("c", first.replace("one after the other", "one after another"), "1")) is None


def reworded(prompt: str) -> str:
    """The same problem with other LaTeX commands and a few other words."""
    text = prompt.replace("\\frac", "\\dfrac").replace("\x0crac", "\\tfrac").replace("\\cdot", "\\times")
    text = re.sub(r"\$\$?([^$]+)\$\$?", r"\\( \1 \\)", text)
    text = text.replace("\\triangle", "△").replace("\\angle", "∠").replace("^\\circ", "°").replace("\\le ", "\\leq ")
    return text.replace("Find the", "Determine the").replace("Suppose", "Assume").replace("Let ", "let ")


def respaced(prompt: str) -> str:
    """The same problem with other spaces and line breaks."""
    text = re.sub(r"\s*([=+<>,])\s*", r" \1 ", prompt)
    return re.sub(r"([A-Z])(?=[A-Z])", r"\1 ", text).replace(". ", ".\n\n")


def embedded(prompt: str) -> str:
    return (
        f"Here is a well-known competition problem that I could not solve last year: {prompt} Explain every step of it, please."
    )


@needs_data
@pytest.mark.parametrize(
    "change", [lambda prompt: prompt, reworded, respaced, embedded, lambda prompt: respaced(reworded(prompt))]
)
def test_planted_copies_of_a_benchmark_are_found(change: object) -> None:
    benchmark = load_problems(DATA / "aime25.parquet")
    contamination = Contamination({"aime25": benchmark})
    for problem in benchmark:
        planted = dataclasses.replace(problem, id="planted", prompt=change(problem.prompt))  # type: ignore[operator]
        hit = contamination.check(planted)
        assert hit is not None, planted.prompt
        assert (hit.problem_id, hit.benchmark, hit.benchmark_id) == ("planted", "aime25", problem.id)


@needs_data
def test_unrelated_problems_are_not_flagged() -> None:
    contamination = Contamination(load_benchmarks([str(DATA / "aime25.parquet"), str(DATA / "hmmt25.parquet")]))
    unrelated = load_problems(DATA / "dapo_sample.parquet")
    assert len(unrelated) >= 990
    assert sum(contamination.check(problem) is not None for problem in unrelated) <= 2


def test_a_shared_phrase_is_not_a_copy_but_a_small_change_is() -> None:
    asked = "Find the number of positive integers $n$ less than $1000$ for which $n^2+17n+3$ is divisible by $41$."
    contamination = Contamination({"own": [Problem("q", asked, "48")]})
    phrase = "Find the number of positive integers $n$ less than $500$ for which the digits of $7^n$ are all different."
    assert contamination.check(Problem("p", phrase, "1")) is None
    assert contamination.check(Problem("p", "", "1")) is None
    changed = "Determine the number of positive integers $n$, less than $1000$, such that $n^2+17n+3$ is divisible by $41$."
    hit = contamination.check(Problem("p", changed, "48"))
    assert hit is not None
    assert (hit.prompt, hit.benchmark_prompt) == (changed, asked)


def test_every_problem_gets_a_unique_id(tmp_path: Path) -> None:
    """Also if a numbered id is already the id of another problem."""
    rows = [
        {"id": name, "problem": f"What is {n} plus {n}?", "answer": "1"} for n, name in enumerate(["a", "a", "a-2", "a", "a-2"])
    ]
    for part in range(5):  # one file each: repeated ids in one file are an error
        (tmp_path / f"{part}.jsonl").write_text(json.dumps(rows[part]) + "\n")
    kept = list(Questions(english=False).select([str(tmp_path / f"{part}.jsonl") for part in range(5)]))
    assert [problem.id for problem in kept] == ["a", "a-2", "a-2-2", "a-3", "a-2-3"]
    (tmp_path / "out.jsonl").write_text("".join(map(problem_line, kept)))
    assert load_problems(tmp_path / "out.jsonl") == kept


def test_problems_through_all_filters(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "problem": LONG.format(n=13, m=7), "answer": "1", "difficulty": "2/8"},
        {"id": "b", "problem": "求 $x$ 的值.", "answer": "1"},
        {"id": "c", "problem": LONG.format(n=13, m=7).replace("one after the", "one  after the"), "answer": "2"},
        {"id": "d", "problem": "No answer."},
        {"id": "e", "problem": "What is the value of the smallest prime above $1000$?", "answer": "1009"},
        {"id": "a", "problem": LONG.format(n=1, m=2), "answer": "1"},
    ]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    benchmark = [Problem("q", "What is the value of the smallest prime above 1000?", "1009")]
    questions = Questions(duplicates=Duplicates(), contamination=Contamination({"own": benchmark}))
    kept = list(questions.select([str(tmp_path / "all.jsonl")]))
    assert [(problem.id, problem.metadata) for problem in kept] == [("a", {"difficulty": 0.75}), ("a-2", {})]
    assert [(step.filter, step.kept) for step in questions.funnel] == [
        ("rows", 6),
        ("a problem with an answer", 5),
        ("English", 4),
        ("no exact duplicate", 3),
        ("no near duplicate", 3),
        ("not of a benchmark", 2),
    ]
    assert questions.answers_differ == 1
    assert [hit.problem_id for hit in questions.hits] == ["e"]
    assert questions.faults[0].startswith(f"{tmp_path}/all.jsonl, line 4: ")
    (tmp_path / "kept.jsonl").write_text("".join(map(problem_line, kept)))
    assert load_problems(tmp_path / "kept.jsonl") == kept


@pytest.mark.parametrize("content", ["", '{"problem": "Without an answer."}\n'])
def test_an_empty_result_does_not_replace_an_existing_file(content: str, tmp_path: Path) -> None:
    (tmp_path / "source.jsonl").write_text(content)
    (tmp_path / "out.jsonl").write_text("what was there")
    arguments = ["data", "problems", str(tmp_path / "source.jsonl"), "--out", str(tmp_path / "out.jsonl")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert f"{tmp_path}/out.jsonl" in result.output
    assert (tmp_path / "out.jsonl").read_text() == "what was there"


@pytest.mark.parametrize("against", ["", " , "])
def test_an_empty_list_of_benchmarks_is_an_error(against: str, tmp_path: Path) -> None:
    (tmp_path / "source.jsonl").write_text('{"problem": "What is it?", "answer": "1"}\n')
    arguments = ["data", "problems", str(tmp_path / "source.jsonl"), "--out", str(tmp_path / "out.jsonl"), "--against", against]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "--against: " in result.output
    assert not (tmp_path / "out.jsonl").exists()


def test_all_names_every_benchmark_of_the_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {name: [Problem(name, f"The problem of {name}.", "1")] for name in REGISTRY}
    monkeypatch.setattr("aster.data.benchmarks.load_benchmark", lambda name: asked[name])
    (tmp_path / "own.jsonl").write_text('{"problem": "My own?", "answer": "1"}\n')
    own = str(tmp_path / "own.jsonl")
    assert list(load_benchmarks(["aime25", own, "all"])) == [*REGISTRY, own]
