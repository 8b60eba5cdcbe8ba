"""Random cells give the output of CPython; random output is clipped as documented."""

from __future__ import annotations

import ast
import contextlib
import io

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aster_sandbox.output import Clip
from tests.sandbox.sandbox_bench import Bench

NAMES = st.sampled_from("abc")
ATOMS = st.one_of(
    st.integers(-9, 9).map(str), NAMES, st.sampled_from(["'s'", "[1, 2]", "None", "True", "1.5", "f(3)", "len('xy')"])
)
EXPRESSIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "*", "-", "//", "==", "<"]), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        inner.map(lambda e: f"[{e}]"),
        inner.map(lambda e: f"str({e})"),
    ),
    max_leaves=4,
)
STATEMENTS = st.one_of(
    EXPRESSIONS,
    st.tuples(NAMES, EXPRESSIONS).map(lambda t: f"{t[0]} = {t[1]}"),
    EXPRESSIONS.map(lambda e: f"print({e}, end=';')"),
    EXPRESSIONS.map(lambda e: f"print({e})"),
    st.tuples(NAMES, EXPRESSIONS).map(lambda t: f"for {t[0]} in range(3):\n    print({t[1]})\n    {t[1]}"),
    EXPRESSIONS.map(lambda e: f"def f(x):\n    return (x, {e})"),
    EXPRESSIONS.map(lambda e: f"try:\n    print({e})\nexcept Exception as e:\n    print(type(e).__name__)"),
    EXPRESSIONS.map(lambda e: f"if {e}:\n    c = 1\nelse:\n    c = 2"),
)
CELLS = st.lists(STATEMENTS, min_size=0, max_size=4).map("\n".join)


def reference(code: str, namespace: dict[str, object]) -> tuple[str, str]:
    """A cell's status and output under plain exec and eval; for an error, the output before it and the traceback's last
    line."""
    tree = ast.parse(code)
    last = tree.body[-1] if tree.body else None
    if isinstance(last, ast.Expr):
        tree.body.pop()
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            exec(compile(tree, "cell", "exec"), namespace)
            if isinstance(last, ast.Expr):
                value = eval(compile(ast.Expression(last.value), "cell", "eval"), namespace)
                if value is not None:
                    print(_begin_line(out.getvalue()) + repr(value))
    except Exception as error:  # noqa: BLE001 - whatever the cell raises
        return "error", f"{out.getvalue()}{_begin_line(out.getvalue())}|{type(error).__name__}: {error}"
    return "ok", out.getvalue().removesuffix("\n") or "[no output]"


def _begin_line(before: str) -> str:
    """A newline if the output before does not end with one: echo and traceback begin on a new line."""
    return "" if not before or before.endswith("\n") else "\n"


@given(cells=st.lists(CELLS, min_size=1, max_size=5))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_cells_match_cpython(bench: Bench, cells: list[str]) -> None:
    namespace: dict[str, object] = {}
    expected = [reference(code, namespace) for code in cells]
    found = []
    for call in bench.cells(*cells):
        output = call.output
        if call.status == "error":
            before, _, traceback = output.partition("Traceback (most recent call last):\n")
            output = f"{before}|{traceback.splitlines()[-1]}"
        found.append((str(call.status), output))
    bench.close_sessions()
    assert found == expected


@given(parts=st.lists(st.text(st.sampled_from("aé\n€😀"), max_size=30)), limit=st.integers(1, 50), step=st.integers(1, 7))
@settings(max_examples=200, deadline=None)
def test_clip_does_not_depend_on_how_bytes_arrive(parts: list[str], limit: int, step: int) -> None:
    text = "".join(parts)
    data = text.encode()
    clip = Clip(limit)
    for start in range(0, len(data), step):
        clip.feed(data[start : start + step])
    if len(text) <= limit:
        assert clip.text() == text.removesuffix("\n")
        return
    tail = text[-(limit // 2) :] if limit > 1 else ""
    head = text[: limit - limit // 2]
    assert clip.text() == f"{head}\n[... {len(text) - limit} characters cut ...]\n{tail.removesuffix(chr(10))}"
