"""Repairing a cell removes the wrapping and keeps exactly the code, with its line numbers."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Callable

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from aster_sandbox.repair import repair

FLAGS = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST
STATEMENTS = st.sampled_from(
    [
        "x = 1",
        "print('a', \"b\")  # it's\u00a0so",
        "if x:\n    y = 2\nelse:\n    y = [\n        1,\n    ]",
        'text = """\n```python\n!ls\n%time 1\n>>> 1\n... 2\n```\nwhat?\n"""',
        "text = '''a\n    b\n  '''",
        "def f(x):\n    '''“Quoted”\n\n    \u200b'''\n    return {x % 3 for x in y}",
        "x = 'It’s'; y = \"“\"",
        "x = y \\\n    %y",
        "x = (y\n    %y\n)",
        "x = r'\\\\'; y = f\"{x!r:>10}\" if x != 'n' else b'\\''",
        "await g('```')",
        "# a comment",
        "",
    ]
)
SOURCES = st.lists(STATEMENTS, min_size=1, max_size=5)


def fence(statements: list[str]) -> list[str]:
    return ["```python", *statements, "```"]


def bare_fence(statements: list[str]) -> list[str]:
    return ["~~~~", *statements]


def indent(statements: list[str]) -> list[str]:
    return [textwrap.indent(statement, "   \t") for statement in statements]


def prompt(statements: list[str]) -> list[str]:
    return [
        "\n".join(f"{'...' if place else '>>>'} {line}" for place, line in enumerate(statement.split("\n")))
        for statement in statements
    ]


def magic(statements: list[str]) -> list[str]:
    return ["%matplotlib inline", *statements, "%matplotlib inline"]


def unseen(statements: list[str]) -> list[str]:
    return ["\ufeff\u200b", *statements, "\u00a0"]


WRAPPINGS = st.lists(st.sampled_from([fence, bare_fence, indent, prompt, magic, unseen]), min_size=1, max_size=3, unique=True)
ORDER: list[Callable[[list[str]], list[str]]] = [unseen, fence, bare_fence, prompt, indent, magic]
"""The order of nesting, from the outside; a fence inside a prompt would be part of the code."""


def compiles(source: str) -> bool:
    try:
        compile(source, "<cell>", "exec", FLAGS, dont_inherit=True)
    except (SyntaxError, ValueError):
        return False
    return True


def parsed(source: str) -> list[tuple[int, str]]:
    """The statements of a cell with their lines, without those that replace magics."""
    tree = compile(source, "<cell>", "exec", FLAGS, dont_inherit=True)
    assert isinstance(tree, ast.Module)
    return [(each.lineno, ast.dump(each)) for each in tree.body if not isinstance(each, ast.Pass)]


@given(statements=SOURCES, wrappings=WRAPPINGS)
@example(statements=["x = 1"], wrappings=[indent])
@settings(max_examples=300, deadline=None)
def test_wrapping_is_removed_and_the_code_stays(
    statements: list[str], wrappings: list[Callable[[list[str]], list[str]]]
) -> None:
    assume(not {fence, bare_fence} <= set(wrappings))
    written = statements
    for wrap in sorted(wrappings, key=ORDER.index, reverse=True):
        written = wrap(written)
    cell = "\n".join(written)
    assume(not compiles(cell))
    meant = repair(cell, FLAGS)
    assert meant is not None
    assert meant.count("\n") == cell.count("\n")
    above = sum(wrap in (fence, bare_fence, magic, unseen) for wrap in wrappings)
    assert parsed(meant) == [(line + above, dump) for line, dump in parsed("\n".join(statements))]


@given(
    text=st.text(
        st.sampled_from("`~>.%!?'\"“”‘’#()[]{}\\\n\r \t\u00a0\u200b=xyIn1:;,−")
        | st.sampled_from("abcdefghijklmnopqrstuvwxyz0123456789"),
        max_size=80,
    ),
    head=st.sampled_from(["", "```python\n", ">>> ", "In [1]: ", "    ", "%%time\n", "%%bash\n", "!", "x = !", "%time ", "f?"]),
)
@settings(max_examples=500, deadline=None)
def test_any_text_can_be_repaired_and_lines_keep_their_numbers(text: str, head: str) -> None:
    cell = head + text
    meant = repair(cell, FLAGS)
    if meant is not None:
        assert meant.count("\n") == cell.replace("\r\n", "\n").replace("\r", "\n").count("\n")


@given(content=st.text(st.sampled_from("ab“”'’\"é {}#\\"), max_size=20))
@settings(max_examples=200, deadline=None)
def test_string_in_typographic_quotes_keeps_its_content(content: str) -> None:
    assume("”" not in content and "\\" not in content and not content.startswith(("“", '"')))
    meant = repair(f"x = “{content.replace('“', '')}”", FLAGS)
    assert meant is not None
    (statement,) = ast.parse(meant).body
    assert isinstance(statement, ast.Assign)
    assert ast.literal_eval(statement.value) == content.replace("“", "")


def test_text_that_is_not_code_is_not_repaired() -> None:
    for text in (
        "Let me think about this.",
        "1 +",
        "x = (1,",
        "What?",
        "a b c",
        "Sure! Here is:\n```python\nx = 1\n```",
        "!= 3",
    ):
        assert repair(text, FLAGS) is None or text == "What?", text


def test_long_text_that_is_not_python_is_handled() -> None:
    for text in ("word " * 20_000, "'" * 20_001, "(" * 10_000, '"\\' * 20_000, "= " * 20_000 + "!", "“" * 5_000, "`" * 20_000):
        meant = repair(f"{text}\n{text}", FLAGS)
        assert meant is None or meant.count("\n") == 1
