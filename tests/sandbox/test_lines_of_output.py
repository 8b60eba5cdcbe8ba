"""Lines of a cell's output: progress bars, echo on a new line, floods, paths in tracebacks."""

from __future__ import annotations

import itertools
import os
import re
import sys
import traceback
from types import CodeType

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aster_sandbox import CellStatus
from aster_sandbox.isolation import Level
from aster_sandbox.output import Clip
from aster_sandbox.protocol import line_mark
from aster_sandbox.traces import short_traceback
from tests.sandbox.conftest import level_taken
from tests.sandbox.sandbox_bench import Bench

MARK = line_mark(bytes(range(16)))


def outputs(bench: Bench, *codes: str) -> list[str]:
    results = bench.cells(*codes)
    assert [result.status for result in results] == [CellStatus.OK] * len(codes), results
    return [result.output for result in results]


def clipped(*parts: bytes, limit: int = 1000) -> str:
    clip = Clip(limit)
    clip.begin(MARK)
    for part in parts:
        clip.feed(part)
    return clip.text()


def test_a_carriage_return_overwrites_its_line() -> None:
    assert clipped(b"10%\r20%\r30%") == "30%"
    assert clipped(b"10%\r20%\r") == "20%"
    assert clipped(b"a\r\nb\r\n\nc") == "a\nb\n\nc"
    assert clipped(b"before\n10%\r", b"100%\nafter") == "before\n100%\nafter"
    assert clipped(b"10%\r" * 10_000 + b"100%\n", limit=10) == "100%", "overwritten text counts"


def test_mark_begins_a_line() -> None:
    mark = MARK.encode()
    assert clipped(b"1,2," + mark + b"7\n") == "1,2,\n7"
    assert clipped(b"1\n" + mark + b"7\n") == "1\n7"
    assert clipped(mark + b"7\n" + mark + b"8\n") == "7\n8"
    assert clipped(b"50%\r" + mark + b"7\n") == "50%\n7"
    assert clipped(b"\0" + mark[:5] + b"x" + mark + b"7") == f"\0{MARK[:5]}x\n7"


PIECES = st.lists(
    st.sampled_from([b"\r", b"\n", b"\0", b"a", "é€😀".encode(), b"\xff", MARK.encode(), MARK.encode()[:9]]), max_size=30
)


@given(pieces=PIECES, cuts=st.lists(st.integers(0, 400)), limit=st.integers(1, 60))
@example(pieces=[b"a", MARK.encode(), b"b"], cuts=[2], limit=50)
@settings(max_examples=300, deadline=None)
def test_output_does_not_depend_on_how_bytes_arrive(pieces: list[bytes], cuts: list[int], limit: int) -> None:
    data = b"".join(pieces)
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    parts = [data[start:end] for start, end in itertools.pairwise(places)]
    assert clipped(*parts, limit=limit) == clipped(data, limit=limit)
    assert clipped(*(data[place : place + 1] for place in range(len(data))), limit=limit) == clipped(data, limit=limit)


def test_progress_bar_shows_its_last_state(bench: Bench) -> None:
    bar, words = outputs(
        bench,
        "from tqdm import tqdm\nfor i in tqdm(range(300), mininterval=0):\n    pass\n'done'",
        "import sys\nfor i in range(1000):\n"
        "    sys.stdout.write(f'\\rstep {i}')\n    sys.stdout.flush()\nprint()\nprint('end')",
    )
    # tqdm pads its last line with spaces if an earlier one was longer.
    assert re.fullmatch(r"100%\|.*\| 300/300 \[.*\] *\n'done'", bar)
    assert words == "step 999\nend"


def test_echo_and_traceback_begin_on_a_new_line(bench: Bench) -> None:
    assert outputs(
        bench,
        "for d in [1, 2, 4]: print(d, end=',')\n7",
        "import subprocess\n_ = subprocess.run(['printf', 'abc'])\n7",
        "import os\n_ = os.write(1, b'abc')\n7",
        "import sys\n_ = sys.stderr.write('abc')\n7",
        "print('abc')\n7",
    ) == ["1,2,4,\n7", "abc\n7", "abc\n7", "abc\n7", "abc\n7"]
    for failing in ("print('abc', end='')\n1 / 0", "import os\n_ = os.write(1, b'abc')\n1 / 0"):
        assert bench.cells(failing)[0].output.startswith("abc\nTraceback (most recent call last):\n")


def test_a_million_prints_are_cut(bench: Bench) -> None:
    flood, after = outputs(bench, "for i in range(1_000_000):\n    print(i)\n'last'", "print('a', end='')\n1")
    assert flood.startswith("0\n1\n2\n")
    assert flood.endswith("999999\n'last'")
    assert after == "a\n1"


def test_python_in_a_subprocess_is_this_interpreter(bench: Bench) -> None:
    cell = "import subprocess\nsubprocess.check_output(['python', '-c', 'import sys; print(sys.prefix)'], text=True)"
    assert outputs(bench, cell) == [repr(f"{sys.prefix}\n")]


def test_spawned_process_finds_the_cells_functions(bench: Bench) -> None:
    cells = (
        "import multiprocessing\ndef double(x):\n    print(2 * x)",
        "context = multiprocessing.get_context('spawn')\n"
        "p = context.Process(target=double, args=(21,))\np.start()\np.join()\np.exitcode",
        "multiprocessing.set_start_method('forkserver', force=True)\n"
        "p = multiprocessing.Process(target=double, args=(4,))\np.start()\np.join()\np.exitcode",
    )
    assert outputs(bench, *cells)[1:] == ["42\n0", "8\n0"]


@pytest.mark.skipif(level_taken() is Level.LANDLOCK, reason="the locks of pools need /dev/shm, which landlock does not open")
def test_spawned_pool_finds_the_cells_functions(bench: Bench) -> None:
    cells = (
        "import multiprocessing\ndef double(x):\n    return 2 * x",
        "with multiprocessing.get_context('spawn').Pool(2) as pool:\n    out = pool.map(double, [1, 2, 3])\nout",
    )
    assert outputs(bench, *cells)[1:] == ["[2, 4, 6]"]


def test_library_files_are_shown_without_the_hosts_folders(bench: Bench) -> None:
    caught, printed, warned, ours, thread = bench.cells(
        "import json\njson.loads('{')",
        "import traceback, numpy\n"
        "try:\n    numpy.linalg.inv(numpy.zeros((2, 2)))\nexcept Exception:\n    traceback.print_exc()",
        "import warnings, numpy\nwarnings.warn('careful')\nnumpy.polyfit([1, 1, 1], [1, 2, 3], 2) is None",
        "import warnings\nwarnings.warn('careful', stacklevel=2)",
        "import threading, json\nt = threading.Thread(target=json.loads, args=('{',), name='reader')\nt.start()\nt.join()",
    )
    assert re.search(r'  File "python3\.\d+/json/decoder\.py", line \d+, in ', caught.output)
    assert re.search(r'  File "numpy/linalg/[\w/]+\.py", line \d+, in ', printed.output)
    assert warned.output.startswith("<cell 3>:2: UserWarning: careful\n  warnings.warn('careful')\n")
    assert ours.output == "UserWarning: careful"
    assert thread.output.startswith("Exception in thread reader:\nTraceback (most recent call last):\n")
    for result in (caught, printed, warned, ours, thread):
        assert os.path.dirname(os.__file__) not in result.output
        assert sys.prefix not in result.output


def without_lines(code: CodeType) -> CodeType:
    """The same code, without a line number for any instruction, as cleanup code has none."""
    units = len(code.co_code) // 2
    table = bytes([0xFF] * (units // 8) + ([0xF8 | (units % 8 - 1)] if units % 8 else []))
    return code.replace(co_linetable=table)


def test_every_frame_of_a_traceback_has_a_line() -> None:
    code = without_lines(compile("\n\n1 / 0", "<cell 1>", "exec"))
    with pytest.raises(ZeroDivisionError) as caught:
        exec(code)
    assert "line None" in "".join(traceback.format_exception(caught.value))
    text = short_traceback(caught.value)
    assert 'File "<cell 1>", line 1, in <module>' in text
    assert "None" not in text
