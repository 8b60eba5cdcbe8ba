"""Extracting the content of the last box of a text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aster.grading.boxed import extract_boxed


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{5}.", "5"),
        (r"\boxed{1} no, \boxed{2}", "2"),
        (r"\fbox{7}", "7"),
        (r"\boxed {\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{ 5 }", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{[0, 1\}}", r"[0, 1\}"),
        (r"\boxed{a \\} b}", r"a \\"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{}", ""),
        ("\\boxed{x\n= 3}", "x\n= 3"),
    ],
)
def test_the_content_of_the_last_box_is_returned(text: str, content: str) -> None:
    assert extract_boxed(text) == content


@pytest.mark.parametrize(
    "text", ["", "5", r"\boxed", r"\boxed 5", r"\boxed{5", r"\boxed{1} then \boxed{\frac{1}{2}", r"\boxed{5\}", r"\boxed{5\\"]
)
def test_none_is_returned_unless_the_last_box_is_closed(text: str) -> None:
    assert extract_boxed(text) is None


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(["\\", "\\boxed{", "\\fbox {", "{", "}", "\\{", "\\}", "5", " ", "\n", "é", "\ud800"]), max_size=30
    )
)
def test_the_content_is_a_part_of_the_text(parts: list[str]) -> None:
    text = "".join(parts)
    content = extract_boxed(text)
    assert content is None or content in text


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30), st.text(alphabet="ab1 +{}", max_size=20), st.text(max_size=30))
def test_a_balanced_box_is_found_in_any_text(before: str, content: str, after: str) -> None:
    depth = 0
    for character in content:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth < 0:
            return
    if depth or "boxed" in after or "fbox" in after:
        return
    assert extract_boxed(f"{before}\\boxed{{{content}}}{after}") == content.strip()
