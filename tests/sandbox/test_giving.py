"""Sessions give back memory that is equal to their parent's, and notice nothing of it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from aster.core import recipe
from aster_sandbox import Sandbox
from aster_sandbox.handle import LOG
from aster_sandbox.pressure import _anonymous_mb, _children
from tests.sandbox.conftest import ISOLATION, levels_here, need_pages_given_back
from tests.sandbox.sandbox_bench import Bench
from tests.sandbox.test_random_sessions import Writer, expected, fail, found
from tests.sandbox.test_savepoints import CRASH, KEPT, expensive

SESSIONS, AT_ONCE = 12, 6
GIVEN = "import eager_giving\n"
SYMPY = """
from sympy import *
x = symbols('x')
integrate(x**2 * sin(x), x), simplify(sin(x)**2 + cos(x)**2), factorint(2**64 + 1), Matrix([[1, 2], [3, 4]]).inv()
"""
"""It copies many pages, and goes another way through sympy than the warm parent did."""
ANSWER = "(-x**2*cos(x) + 2*x*sin(x) + 2*cos(x), 1, {274177: 1, 67280421310721: 1}, Matrix([\n[ -2,    1],\n[3/2, -1/2]]))"
LOOK_AT_ALL = """
import sys
here = all(sys.getrefcount(value) > 1 for module in [*sys.modules.values()] for value in [*vars(module).values()])
"""
"""Counts references to very many objects, up and down again."""
STATE = """
import numpy
numbers = {n: n * n for n in range(5000)}
texts = [str(n) for n in numbers]
array = numpy.arange(100_000)
def f(n):
    return numbers[n], texts[n], int(array[n])
"""


@pytest.fixture(autouse=True)
def _preloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent / "preloaded")


@contextmanager
def sandbox(*preload: str, isolation: Any = ISOLATION, cell_seconds: float = 20.0) -> Iterator[Bench]:
    """A sandbox of its own, with these packages."""
    loop = asyncio.new_event_loop()
    settings = recipe.Sandbox(
        preload=[*preload], isolation=isolation, cell_seconds=cell_seconds, sessions=AT_ONCE, output_characters=10_000
    )
    bench = Bench(loop, loop.run_until_complete(Sandbox(settings).__aenter__()))
    try:
        yield bench
    finally:
        bench.close_sessions()
        loop.run_until_complete(bench.sandbox.__aexit__(None, None, None))
        loop.close()


@pytest.mark.parametrize("isolation", levels_here())
def test_state_and_answers_are_those_of_a_session_that_keeps_its_pages(isolation: Any) -> None:
    need_pages_given_back()
    with sandbox("sympy", "numpy", "eager_giving", isolation=isolation) as bench:
        session = bench.open()
        first, *_, given = [bench.do(session.run(code)) for code in (SYMPY, STATE, "1", f"{GIVEN}eager_giving.given")]
        assert first.output == ANSWER
        assert min(eval(given.output)[1:]) > 1 << 20
        branch = bench.fork(session)
        bench.do(session.run(expensive("numbers[1] = 'changed'")))
        assert bench.do(session.run(CRASH)).output.endswith(KEPT)
        for one, value in ((session, "'changed'"), (branch, "1")):
            calls = [bench.do(one.run(code)).output for code in ("f(1), f(4999)", SYMPY, "sum(numbers) + int(array.sum())")]
            assert calls == [f"(({value}, '1', 1), (24990001, '4999', 4999))", ANSWER, "5012447500"]


def test_random_sessions_that_give_back_after_each_cell_are_those_of_cpython(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    need_pages_given_back()

    async def one(bench: Bench, seed: int) -> None:
        cells = Writer(seed).cells()
        answers = expected(cells, str(tmp_path_factory.mktemp(f"session{seed}")))
        draw = random.Random(seed)
        async with await bench.sandbox.open(seed) as session:
            for code, answer in zip(cells, answers, strict=True):
                assert found(await session.run(code)) == answer, (seed, code)
                if draw.random() < 0.2:
                    await fail(session, draw)

    async def all_of_them(bench: Bench) -> None:
        await asyncio.gather(*(one(bench, seed) for seed in range(SESSIONS)))

    with sandbox("eager_giving", cell_seconds=2.0) as bench:
        bench.do(all_of_them(bench))


def test_a_session_with_a_second_thread_is_left_alone() -> None:
    need_pages_given_back()
    start = "import threading\nend = threading.Event()\nthread = threading.Thread(target=end.wait)\nthread.start()"
    look = f"{GIVEN}len(eager_giving.given), eager_giving.given[-1]"
    with sandbox("eager_giving") as bench:
        session = bench.open()
        texts = [bench.do(session.run(code)).output for code in (look, start, look, "end.set(); thread.join()", "1", look)]
        (count, before), (later, during), (_, after) = (eval(texts[place]) for place in (0, 2, 5))
        assert later > count
        assert before > 0 == during
        assert after > 0


def test_an_idle_session_holds_less() -> None:
    need_pages_given_back()
    with sandbox("sympy", "late_giving") as bench:
        session = bench.open()
        bench.do(session.run(LOOK_AT_ALL))
        assert session.keeper is not None
        session.keeper.tell("who")
        bench.do(asyncio.sleep(0.05))
        assert session.keeper.pid is not None
        (runner,) = _children(session.keeper.pid)
        held = _anonymous_mb(runner)
        for _ in range(100):
            if _anonymous_mb(runner) < held - 2:
                break
            bench.do(asyncio.sleep(0.2))
        assert _anonymous_mb(runner) < held - 2
        assert bench.do(session.run("here")).output == "True"


def test_sessions_work_where_pages_cannot_be_given_back() -> None:
    with sandbox("sympy", "numpy", "no_machine_code") as bench:
        session = bench.open()
        assert [bench.do(session.run(code)).output for code in (SYMPY, STATE, "f(7)")] == [
            ANSWER,
            "[no output]",
            "(49, '7', 7)",
        ]
        assert bench.sandbox._plan is not None
        log = Path(bench.sandbox._plan.root) / LOG
        assert "sessions keep pages that are equal to their parent's: not built for m68k" in log.read_text()
