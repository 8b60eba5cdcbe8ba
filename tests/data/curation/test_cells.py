"""The names that a cell reads and binds, checked by running the cell."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aster.data.curation.cells import read_cell, telling_numbers


@pytest.mark.parametrize(
    ("code", "needs", "binds"),
    [
        ("x = 1\nprint(x + y)", {"y"}, {"x"}),
        ("x = x + 1", {"x"}, {"x"}),
        ("x += 1", {"x"}, {"x"}),
        ("for i in range(3):\n    s = s + i", {"s"}, {"i", "s"}),
        ("s = 0\nfor i in range(3):\n    s += i", set(), {"i", "s"}),
        ("[q * k for q in zs if q]", {"zs", "k"}, set()),
        ("d[key] = value", {"d", "key", "value"}, set()),
        ("a.b = 3", {"a"}, set()),
        ("(n := 4) + n", set(), {"n"}),
        ("def f(n, m=base):\n    t = n * k\n    return t + f(n - 1)\nf(2)", {"k", "base"}, {"f"}),
        ("def f():\n    return g\ng = 2\nf()", set(), {"f", "g"}),
        ("def f():\n    global total\n    total = 1", set(), {"f", "total"}),
        ("class A(B):\n    y = z", {"B", "z"}, {"A"}),
        ("try:\n    work()\nexcept Failure as e:\n    print(e)", {"work", "Failure"}, {"e"}),
        ("with open(p) as stream:\n    data = stream.read()", {"p"}, {"stream", "data"}),
        ("match point:\n    case {'x': a}:\n        print(a, w)", {"point", "w"}, {"a"}),
        ("lambda u: u + w", {"w"}, set()),
        ("if flag:\n    a = 1\nelse:\n    b = c", {"flag", "c"}, {"a", "b"}),
        ("import numpy as np\nfrom math import sqrt\nsqrt(np.pi)", set(), set()),
        ("print(len('abc'), 12)", set(), set()),
    ],
)
def test_the_names_that_a_cell_reads_and_binds(code: str, needs: set[str], binds: set[str]) -> None:
    cell = read_cell(code)
    assert cell is not None
    assert (cell.needs, cell.binds) == (needs, binds)


def test_imports_are_kept_apart_from_results() -> None:
    cell = read_cell("import numpy as np\nimport os.path\nfrom math import sqrt as root")
    assert cell is not None
    assert (cell.imports, cell.binds) == ({"np", "os", "root"}, set())


@pytest.mark.parametrize("code", ["%timeit f(x)", "x = (", "\0", "(" * 5000 + ")" * 5000])
def test_code_that_is_not_python_gives_no_result(code: str) -> None:
    assert read_cell(code) is None


NAMES = st.sampled_from("abcd")
LINES = st.one_of(
    st.tuples(NAMES, NAMES).map(lambda p: f"{p[0]} = {p[1]} + 1"),
    st.tuples(NAMES).map(lambda p: f"{p[0]} = 3"),
    st.tuples(NAMES, NAMES).map(lambda p: f"{p[0]} += {p[1]}"),
    st.tuples(NAMES, NAMES, NAMES).map(lambda p: f"{p[0]} = [{p[1]} * {p[2]} for {p[1]} in range(2)]; {p[0]} = 2"),
    st.tuples(NAMES, NAMES).map(lambda p: f"for {p[0]} in range(1, 3):\n    {p[1]} = {p[0]} * 2"),
)


@given(st.lists(LINES, min_size=1, max_size=6))
def test_a_cell_runs_only_with_the_names_that_it_needs(lines: list[str]) -> None:
    code = "\n".join(lines)
    cell = read_cell(code)
    assert cell is not None
    session: dict[str, object] = dict.fromkeys(cell.needs, 1)
    exec(code, session)
    assert cell.binds <= session.keys()
    for name in cell.needs:
        with pytest.raises(NameError):
            exec(code, dict.fromkeys(cell.needs - {name}, 1))


def test_numbers_that_can_identify_their_origin() -> None:
    text = "7, 42, 100, 12000, 123, x4567, 3.14159, 1.2.3, 0.001, f(892)"
    assert telling_numbers(text) == {"123", "3.14159", "892"}
