"""The measures of the filters, on dialogues for which the right value is obvious."""

from __future__ import annotations

import pytest

from aster.data.curation.measures import Measures
from aster.transcript import Transcript
from aster.types import CallStatus
from tests.data.curation.transcripts import calls, step, transcript


def causal(*steps: object, **more: object) -> list[bool]:
    return Measures(transcript("p", *steps, **more)).causal  # type: ignore[arg-type]


def test_a_call_that_uses_a_name_of_an_earlier_call_is_causal() -> None:
    assert causal(step("", "a = 3"), step("", "a + 1"), step("", "import math\nmath.pi"), step("", "math.e")) == [
        False,
        True,
        False,
        False,  # an import is not a result
    ]


def test_calling_a_function_of_an_earlier_cell_is_causal() -> None:
    assert causal(step("", "def f(n):\n    return n"), step("", "f(2)")) == [False, True]


def test_using_a_number_of_an_earlier_output_is_causal() -> None:
    assert causal(step("", ("2**12", "4096")), step("", "4096 % 7")) == [False, True]


@pytest.mark.parametrize(
    "steps",
    [
        (step("", ("2**12", "4096")), step("", "4097 % 7")),
        (step("", ("len(x)", "12")), step("", "12 + 1")),  # too short
        (step("it is 4096", ("2**12", "4096")), step("", "4096 % 7")),  # the model wrote it before the output
        (step("", ("4096 + 0", "4096")), step("", "4096 % 7")),
        (step("", ("f(x)", "1000")), step("", "range(1000)")),
    ],
)
def test_a_number_that_may_have_another_origin_is_not_causal(steps: tuple[object, ...]) -> None:
    assert causal(*steps) == [False, False]


def test_a_number_of_the_problem_is_not_causal() -> None:
    assert causal(step("", ("f()", "2025")), step("", "2025 % 7"), prompt="Of 2025?") == [False, False]


def test_malformed_calls_do_not_count() -> None:
    steps = (step("", "a = 3"), step("", "a", status=CallStatus.MALFORMED), step("", "a"))
    assert causal(*steps) == [False, True]
    assert Measures(transcript("p", *steps)).causal_share == 1.0


def test_the_causal_share_ignores_the_first_call() -> None:
    assert Measures(calls("p", 1)).causal_share == 1.0
    assert Measures(transcript("p", step("", "a = 1"), step("", "a"), step("", "3"))).causal_share == 0.5


def known(*steps: object, answer: str, **more: object) -> list[bool]:
    return Measures(transcript("p", *steps, answer=answer, **more)).known_before  # type: ignore[arg-type]


def test_calls_after_a_long_answer_was_printed_are_rechecks() -> None:
    steps = (step("try", ("f(3)", "17")), step("more", ("f(9)", "n = 2187")), step("check", ("3**7", "2187")), step("", "1"))
    assert known(*steps, answer="2187") == [False, False, True, True]


def test_calls_after_the_answer_is_announced_are_rechecks() -> None:
    steps = (step("So the answer is 7. Let me check.", ("f()", "7")), step("", ("g()", "7")))
    assert known(*steps, answer="7") == [True, True]
    assert known(step("Hence $\\boxed{7}$.", "f()"), answer="7") == [True]


def test_a_short_answer_that_occurs_without_being_announced_is_not_known() -> None:
    steps = (step("Take 7 of them.", ("f(7)", "7")), step("", ("g()", "17")))
    assert known(*steps, answer="7") == [False, False]


def test_part_of_a_longer_number_is_not_the_answer() -> None:
    assert known(step("", ("f()", "21870 2187.5 12187")), step("", "1"), answer="2187") == [False, False]


def test_an_answer_in_the_problem_is_known_only_when_announced() -> None:
    assert known(step("2187 again", "f()"), answer="2187", prompt="Is it 2187 or 2188?") == [False]


def test_without_an_answer_nothing_is_known() -> None:
    assert known(step("the answer is clear", "f()"), answer="") == [False]
    assert Measures(transcript("p")).recheck_share == 0.0


def test_lengths_are_the_authors_counts_or_words() -> None:
    counted = transcript("p", step("ab " * 5, "x" * 15, tokens=60), step("abcde", text="12345", tokens=10))
    measures = Measures(counted)
    assert (measures.counted, measures.tokens) == (True, 70)
    assert measures.thinking == [30, 5]  # the turn's tokens are split by characters
    assert measures.thinking_per_call == 35
    partly = Measures(transcript("p", step("one two", "three four", tokens=60), step("", text="five")))
    assert (partly.counted, partly.tokens, partly.thinking) == (False, 5, [2, 0])
    assert Measures(counted, count=len).tokens == 15 + 15 + 10


def loop(text: str, times: int) -> Transcript:
    return transcript("p", step("first I will look at all the small cases one by one now " + text * times))


def test_repeated_thinking_is_measured() -> None:
    line = "wait let me reconsider this problem from the very start again "
    assert Measures(loop(line, 40)).repeated_text > 0.9
    assert Measures(loop(line, 1)).repeated_text == 0.0
    assert Measures(loop("", 1)).repeated_text == 0.0


def test_repeated_cells_are_measured() -> None:
    assert (
        Measures(transcript("p", step("", "f( 1)"), step("", " f( 1)\n"), step("", "g"), step("", "f( 1)"))).repeated_cells
        == 0.5
    )
    assert Measures(transcript("p")).repeated_cells == 0.0
