"""How the echo and ``display`` show values."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from IPython.lib.pretty import pretty

from aster_sandbox import Sandbox, Settings, SettingsError
from tests.sandbox.conftest import ISOLATION, Benches
from tests.sandbox.sandbox_bench import Bench

ATOMS = st.one_of(
    st.integers(),
    st.text("ab\n'é", max_size=30),
    st.none(),
    st.booleans(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.binary(max_size=9),
)
KEYS = st.one_of(st.integers(), st.text(max_size=20), st.tuples(st.integers(), st.text(max_size=5)))
VALUES = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=12),
        st.lists(inner, max_size=5).map(tuple),
        st.dictionaries(KEYS, inner, max_size=8),
        st.sets(KEYS, max_size=20),
        st.frozensets(st.integers(), max_size=40),
    ),
    max_leaves=40,
)


@pytest.fixture
def notebook(_benches: Benches) -> Bench:
    """A sandbox that echoes as IPython does."""
    level: Any = ISOLATION
    return _benches.get(Settings(isolation=level, echo="ipython", output_characters=100_000, preload=[]))


@given(values=st.lists(VALUES, min_size=1, max_size=10))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_values_match_ipythons_echo(notebook: Bench, values: list[object]) -> None:
    cells = [repr(value) for value in values]
    try:
        shown = [result.output for result in notebook.cells(*cells, f"display({', '.join(cells)})")]
    finally:
        notebook.close_sessions()
    # The order of a set depends on how it was built, so build the value as its cell does.
    expected = [pretty(eval(cell)) for cell in cells]
    assert shown[:-1] == ["[no output]" if value is None else text for value, text in zip(values, expected, strict=True)]
    assert shown[-1] == "\n".join(expected)


def test_long_containers_and_pretty_methods_match_ipython(notebook: Bench) -> None:
    long, own = notebook.cells(
        "list(range(1001))",
        "class Long:\n    def __repr__(self): return 'L' * 70\n"
        "class Own:\n    def _repr_pretty_(self, p, cycle): p.text('own')\n[Long(), Own()]",
    )
    notebook.close_sessions()
    assert long.output == pretty(list(range(1001)))
    assert own.output == f"[{'L' * 70}, own]"


def test_plain_echo_is_one_line(bench: Bench) -> None:
    numbers, shown, nothing = bench.cells("list(range(60))", "display([1] * 40, 'a', None)", "display()")
    assert numbers.output == repr(list(range(60)))
    assert shown.output == f"{[1] * 40}\n'a'\nNone"
    assert nothing.output == "[no output]"


def test_display_writes_to_stdout_and_keeps_the_last_value(bench: Bench) -> None:
    cell = "import io, contextlib\n5\nwith contextlib.redirect_stdout(io.StringIO()) as out:\n    display(1)\nout.getvalue()"
    assert [result.output for result in bench.cells("41", cell, "display(7)", "_", "print('a', end='')\ndisplay(7)")] == [
        "41",
        "'1\\n'",
        "7",
        "'1\\n'",
        "a\n7",
    ]


def test_echo_ipython_without_ipython_is_a_settings_error(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "IPython" else find_spec(name, *rest))

    async def start() -> None:
        async with Sandbox(echo="ipython"):
            pass

    with pytest.raises(SettingsError, match=r"sandbox\.echo.*IPython"):
        bench.do(start())
