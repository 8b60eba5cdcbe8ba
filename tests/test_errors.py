"""Others' errors in one line."""

from __future__ import annotations

from aster.errors import one_line


def test_what_others_say_is_one_line_that_is_not_too_long() -> None:
    assert one_line(ValueError("first\n\tand  second\n")) == "first and second"
    assert one_line("a server's\nbody") == "a server's body"
    assert one_line(TimeoutError()) == "TimeoutError"
    assert len(one_line(ValueError("word " * 100))) == 300
    assert len(one_line("word " * 100, None)) == 499
