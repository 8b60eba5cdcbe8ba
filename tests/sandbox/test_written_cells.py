"""Cells as models write them: with fences, prompts, indentation, magics, shell commands, look-alike characters."""

from __future__ import annotations

import re
from importlib import metadata

import pytest

from aster_sandbox import CellResult, CellStatus
from tests.sandbox.sandbox_bench import Bench


def run(bench: Bench, *codes: str) -> list[CellResult]:
    results = bench.cells(*codes)
    assert [result.status for result in results] == [CellStatus.OK] * len(codes), results
    return results


def outputs(bench: Bench, *codes: str) -> list[str]:
    return [result.output for result in run(bench, *codes)]


@pytest.mark.parametrize(
    "cell",
    [
        "```python\nx = 41\nx + 1\n```",
        "```py\nx = 41\nx + 1\n```\n",
        "\n\n``` Python3\n\nx = 41\nx + 1\n```\n\n",
        '```python title="a.py"\nx = 41\nx + 1\n```',
        "```{python}\nx = 41\nx + 1\n```",
        "```\nx = 41\nx + 1\n```",
        "# The answer\n\n```python\nx = 41\nx + 1\n```\n# is 42.",
        "~~~\nx = 41\nx + 1\n~~~",
        "````python\nx = 41\nx + 1\n````",
        "```python\nx = 41\nx + 1",
        "x = 41\nx + 1\n```",
        "```python\nx = 41\n```\n\n```python\nx + 1\n```",
        "  ```python\n  x = 41\n  x + 1\n  ```",
        "    ```python\nx = 41\nx + 1\n    ```",
        "```python\n    x = 41\n    x + 1\n```",
        "`41 + 1`",
        "```python 41 + 1 ```",
        "```python\n>>> x = 41\n>>> x + 1\n42\n```",
    ],
)
def test_fences_are_removed(bench: Bench, cell: str) -> None:
    assert outputs(bench, cell) == ["42"]


@pytest.mark.parametrize(
    "cell",
    [
        "    x = 41\n    x + 1",
        "\tif True:\n\t\tx = 41\n\tx + 1",
        "# The answer.\n    x = 41\n\n    # It is 42.\n    x + 1",
        "x = 41\n    y = 1\n    x + y",
        " x = 41\nx + 1",
        "for x in range(42):\n        y = x\n    x + 1",
        "  x = (41,\n1)\n  sum(x)",
    ],
)
def test_common_indentation_is_removed(bench: Bench, cell: str) -> None:
    assert outputs(bench, cell) == ["42"]


def test_multiline_string_is_dedented_only_if_indented_with_its_cell(bench: Bench) -> None:
    both = '    text = """a\n      b"""\n    text'
    own = '    text = """a\n  b"""\n    text'
    mixed = '    text = """a\n      b\n  c"""\n    text'
    assert outputs(bench, both, own, mixed) == ["'a\\n  b'", "'a\\n  b'", "'a\\n      b\\n  c'"]


@pytest.mark.parametrize(
    ("cell", "output"),
    [
        (">>> x = 41\n>>> x + 1\n42", "42"),
        (">>> for i in range(2):\n...     print(i)\n...\n0\n1\n>>> i + 1\n2", "0\n1\n2"),
        (">>> 1 + 1\n3", "2"),
        (">>> print('a')\na\n>>> 1 / 1\nTraceback (most recent call last):\n  ...\nZeroDivisionError: no", "a\n1.0"),
        (">>> def f(x):\n    return x + 1\n>>> f(41)\n42", "42"),
        (">>> x = 41\nx + 1", "42"),
        (">>> x = 41\n\nx += 1\n>>> x", "42"),
        ("In [3]: 41 + 1\nOut[3]: 43", "42"),
        ("In [1]: def f():\n   ...:     return 42\n   ...: \n\nIn [2]: f()\nOut[2]: 1", "42"),
        ('>>> """\n... >>> a"""', "'\\n>>> a'"),
    ],
)
def test_prompts_and_the_output_between_them_are_removed(bench: Bench, cell: str, output: str) -> None:
    assert outputs(bench, cell) == [output]


@pytest.mark.parametrize(
    "cell",
    [
        "x\u00a0=\u00a041\nx\u00a0+ 1",
        "if True:\n\u00a0\u00a0\u00a0\u00a0x = 41\nx\u3000+\u20091",
        "\ufeffx = 41\nx + 1",
        "x = 41\u200b\nx +\u200d 1\u2060",
        "x = 43 − 1\nx",
        "x = 21\nif x ≠ 3 and x ≤ 21:\n    x = x × 2\nx",
        "print（int（“42”））",
    ],
)
def test_lookalike_characters_are_replaced(bench: Bench, cell: str) -> None:
    assert outputs(bench, cell) == ["42"]


@pytest.mark.parametrize(
    ("cell", "output"),
    [
        ("print(“don’t — “)", "don’t — "),
        ('x = ‘a’ + “b"c”\nx', "'ab\"c'"),
        ("print(‘it’s’)", "it’s"),
        ("d = {“k”: f“{40 + 2}”}\nd[“k”]", "'42'"),
        ("def f():\n    “““What it does.”””\nprint(f.__doc__, 'stays “so”')", "What it does. stays “so”"),
    ],
)
def test_typographic_quotes_delimit_strings(bench: Bench, cell: str, output: str) -> None:
    assert outputs(bench, cell) == [output]


def test_content_of_strings_is_not_changed(bench: Bench) -> None:
    text = "```python\n!echo no\n%time 1\n>>> x\n    y?\n\u00a0“”\u200b"
    cell = f'text = """{text}"""\ntext'
    assert outputs(bench, cell, f"{cell}\n%matplotlib inline", f"```python\n{cell}\n```") == [
        repr(text),
        "[no output]",
        repr(text),
    ]
    assert outputs(bench, f"%matplotlib inline\n{cell}") == [repr(text)]


def test_magic_with_code_runs_the_code_and_prints_one_note(bench: Bench) -> None:
    note = "[%time is not available here; the code was run without it]"
    cell_note = note.replace("%time", "%%time")
    assert outputs(
        bench,
        "%time 41 + 1",
        "%time x = 41\nx + 1",
        "x = %time 41 + 1\nx",
        "for i in range(3):\n    %time x = 40 + i\nx",
        "%time for i in range(43): y = i\ny",
        "%%time\nx = 41\nx + 1",
        "import math\n\n%%time\nx = 41\nx + 1",
        "%time sum([40,\n    2])",
    ) == [f"{cell_note if '%%' in cell else note}\n42" for cell in ["", "", "", "", "", "%%", "%%", ""]]
    assert outputs(bench, "%timeit -n 10 -r3 41 + 1") == [f"{note.replace('%time', '%timeit')}\n42"]
    assert outputs(bench, "%%timeit -n 10 x = 41\nx + 1") == [f"{note.replace('%time', '%%timeit')}\n42"]
    assert outputs(bench, "%%capture out --no-stderr\n41 + 1") == [f"{note.replace('%time', '%%capture')}\n42"]


def test_harmless_magics_are_silent_and_unsupported_ones_print_a_note(bench: Bench) -> None:
    assert outputs(bench, "%matplotlib inline\n%config InlineBackend.figure_format = 'retina'\n41 + 1") == ["42"]
    assert outputs(bench, "if True:\n    %matplotlib inline\n41 + 1") == ["42"]
    assert outputs(bench, "%load_ext autoreload\n%autoreload 2\n%load_ext rust\n41 + 1") == [
        "[%load_ext is not available here; the line was left out]\n"
        "[%autoreload is not available here; the line was left out]\n42"
    ]
    assert outputs(bench, "%%html\n<b>x</b>") == ["[%%html is not available here; the cell was not run]"]


def test_magics_for_files_folders_and_environment_work_as_in_ipython(bench: Bench) -> None:
    found = outputs(
        bench,
        "%%writefile tool.py\nimport sys\nvalue = 42\nprint('tool', sys.argv[1:])",
        "%%writefile -a tool.py\nprint('more')",
        "%run tool.py a b\nvalue",
        "import os\nhome = os.getcwd()\n%mkdir sub\n%cd sub\nos.getcwd() == os.path.join(home, 'sub')",
        "here = %pwd\nhere == os.getcwd()",
        "%cd ..",
        "%ls",
        "%env COLOUR=blue\nos.environ['COLOUR']",
        "%env COLOUR",
        "x = %sx echo a; echo b\nx",
        "home",
    )
    home = found[-1].strip("'")
    assert found[:-1] == [
        "Writing tool.py",
        "Appending to tool.py",
        "tool ['a', 'b']\nmore\n42",
        f"{home}/sub\nTrue",
        "True",
        home,
        "sub\ntool.py",
        "env: COLOUR=blue\n'blue'",
        "'blue'",
        "['a', 'b']",
    ]


def test_shell_lines_run_with_the_cells_variables(bench: Bench) -> None:
    cells = (
        "x = 42",
        "!echo {x} $x {x + 1}% $HOME | sed s:/.*:home:",
        "print('a', end='')\n!echo b; echo c >&2",
        "!awk 'BEGIN {print 6*7}'",
        "!exit 3\n_exit_code",
        "lines = !echo a; echo b\nlines, lines.n, lines.s",
        "!!echo a",
        "!echo one \\\n    two\n41 + 1",
        "def f(word):\n    !echo $word\nf('inner')",
        "for i in range(2):\n    !echo $i",
        "%%bash\nfor i in 1 2\ndo echo $i\ndone",
        "%%script python\nprint(6 * 7)",
        "!printf 'no line end'\n7",
    )
    assert outputs(bench, *cells)[1:] == [
        "42 42 43% home",
        "ab\nc",
        "42",
        "3",
        "(['a', 'b'], 'a\\nb', 'a b')",
        "['a']",
        "one two\n42",
        "inner",
        "0\n1",
        "1\n2",
        "42",
        "no line end\n7",
    ]


def test_failing_script_magic_is_an_error(bench: Bench) -> None:
    failed, after = bench.cells("%%bash\necho so far\nexit 3", "_exit_code")
    assert failed.status is CellStatus.ERROR
    assert failed.output.startswith("so far\nTraceback")
    assert failed.output.endswith("CalledProcessError: Command 'bash' returned non-zero exit status 3.")
    assert after.output == "3"


def test_shell_command_is_interrupted_at_the_time_limit(hasty: Bench) -> None:
    _, late, after = hasty.cells("x = 42", "!sleep 60; echo never", "x")
    assert late.status is CellStatus.TIMEOUT
    assert "never" not in late.output.splitlines()
    assert after.output == "42"


def test_exception_during_a_command_kills_everything_it_started(bench: Bench) -> None:
    _, ended, after = bench.cells(
        """
import os, signal, threading, time
def stop(*_):
    raise TimeoutError("enough")
signal.signal(signal.SIGUSR1, stop)
def wait_and_stop():
    while not os.path.exists("pids"):
        time.sleep(0.01)
    signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
""",
        "threading.Thread(target=wait_and_stop).start()\n!sleep 60 & echo $! $$ > new; mv new pids; sleep 60",
        """
for pid in map(int, open("pids").read().split()):
    try:
        while True:
            os.kill(pid, 0)
            time.sleep(0.01)
    except ProcessLookupError:
        print("gone")
""",
    )
    assert ended.output.endswith("TimeoutError: enough")
    assert after.output == "gone\ngone"


def test_question_mark_describes_an_object(bench: Bench) -> None:
    cells = (
        "def f(x, y=1):\n    '''Adds.'''\n    return x + y\nz = 5",
        "f?",
        "?f",
        "f??",
        "z?",
        "f.__name__?",
        "nobody?",
        "len?",
    )
    _, f, also, source, z, name, nobody, builtin = outputs(bench, *cells)
    assert f == also == "Signature: f(x, y=1)\nType: function\nDocstring:\nAdds."
    assert "    return x + y\n" in source
    assert z.startswith("Value: 5\nType: int\n")
    assert name.startswith("Value: 'f'\n")
    assert nobody == "Object `nobody` not found."
    assert builtin.startswith("Signature: len(obj, /)\n")


@pytest.mark.parametrize(
    "command",
    [
        "!pip install {}",
        "!pip3 install -q --upgrade -i https://pypi.org/simple {} 2>&1 > /dev/null",
        "!python -m pip install --quiet {}",
        "import sys\n!{{sys.executable}} -m pip install {}",
        "!uv pip install {}",
        "!conda install -y -c conda-forge {}",
        "!pip install {} | tail -1",
        "%pip install {}",
        "%conda install {}",
        "pip install {}",
    ],
)
def test_install_commands_are_answered_with_what_is_installed(bench: Bench, command: str) -> None:
    numpy, yaml = metadata.version("numpy"), metadata.version("pyyaml")
    (found,) = outputs(bench, command.format("numpy 'pyyaml>=1.0' json not-a-package[extra]==2.0"))
    assert found == (
        "[nothing can be installed, because there is no network; "
        f"already here: numpy {numpy}, pyyaml {yaml} (import yaml), json (a part of Python); "
        "not here: not-a-package[extra]==2.0]"
    )


def test_rest_of_a_command_line_after_an_installation_runs(bench: Bench) -> None:
    here = f"[nothing can be installed, because there is no network; already here: numpy {metadata.version('numpy')}]"
    missing = "[nothing can be installed, because there is no network; not here: nothere]"
    assert outputs(
        bench,
        "!pip install numpy && echo then",
        "!pip install nothere && echo then",
        "!pip install nothere || echo else",
        "!pip install nothere; pip install numpy",
        "x = !pip install nothere\nx",
        "!pip install nothere\n_exit_code",
        "!pip uninstall -y numpy",
        "!pip install -r requirements.txt",
    ) == [
        f"{here}\nthen",
        missing,
        f"{missing}\nelse",
        f"{missing}\n{here}",
        f"['{missing}']",
        f"{missing}\n1",
        "[nothing can be removed here]",
        "[nothing can be installed, because there is no network; !pip list shows what is here]",
    ]


def test_installed_packages_are_listed(bench: Bench) -> None:
    numpy = metadata.version("numpy")
    table, frozen, shown, magic = outputs(
        bench,
        "!pip list | grep -E '^(Package|numpy) '",
        "!pip freeze | grep numpy=",
        "!pip show numpy nothere",
        "x = %pip list\nx",
    )
    assert [line.split() for line in table.splitlines()] == [["Package", "Version"], ["numpy", numpy]]
    assert frozen == f"numpy=={numpy}"
    assert shown.startswith(f"Name: numpy\nVersion: {numpy}\nSummary: ")
    assert shown.endswith("---\n[not here: nothere]")
    assert magic.startswith("Package ")


def test_tracebacks_of_repaired_cells_have_the_original_line_numbers(bench: Bench) -> None:
    fenced, timed, prompted, wrong = bench.cells(
        "```python\n\nx = 1\n1 / 0\n```", "x = 1\n%time 1 / 0", ">>> 1\n1\n>>> 1 / 0", "%matplotlib inline\n%time 1\nx = = 2"
    )
    assert '  File "<cell 1>", line 4, in <module>\n    1 / 0\n' in fenced.output
    assert '  File "<cell 2>", line 2, in <module>\n    %time 1 / 0\n' in timed.output
    assert '  File "<cell 3>", line 3, in <module>\n    1 / 0\n' in prompted.output
    assert wrong.output.splitlines()[:2] == ['  File "<cell 4>", line 3', "    x = = 2"]
    assert wrong.output.count("SyntaxError") == 1
    looped, rewritten = bench.cells("x = 1\n%time for i in [0]: 1 / i", "x = 1\n%time x = = 2")
    assert '  File "<cell 1>", line 2, in <module>\n    %time for i in [0]: 1 / i\n' in looped.output
    assert ", line 1, " not in looped.output
    assert rewritten.output.splitlines()[:2] == ['  File "<cell 2>", line 2', "    %time x = = 2"]


def test_interrupted_cell_with_magics_is_replayed_up_to_its_interrupt(hasty: Bench) -> None:
    session = hasty.open()
    late = hasty.do(session.run("```python\n%time x = 41\nx += 1\nwhile True: pass\n```"))
    assert late.status is CellStatus.TIMEOUT
    assert hasty.do(session.run("import os\nos._exit(0)")).status is CellStatus.CRASHED
    assert hasty.do(session.run("x")).output == "42"


@pytest.mark.parametrize(
    ("cell", "word"),
    [
        ("Here it is:\n```python\nx = 1\n```", "text around"),
        ("```bash\nls -l | wc\n```", "'bash'"),
        ("import math\\nprint(math.pi)", "line ends"),
        ("if 1 &lt; 2:\n    print(&quot;a&quot;)", "HTML"),
        ("print('a\nb')", "triple quotes"),
        ("cat file.txt", "shell"),
        ("$ cat file.txt", "shell"),
    ],
)
def test_unrepairable_cell_gets_pythons_error_and_a_line_of_advice(bench: Bench, cell: str, word: str) -> None:
    (result,) = bench.cells(cell)
    *_, error, advice = result.output.splitlines()
    assert error.startswith("SyntaxError: ")
    assert re.fullmatch(r"\[.*\]", advice)
    assert word in advice


def test_ordinary_errors_get_no_advice(bench: Bench) -> None:
    module = "%%writefile broken.py\n```bash\nls"
    load = "import linecache, os\nlinecache.getline(os.path.abspath('broken.py'), 1)\nimport broken"
    for result in bench.cells(module, load)[1:] + bench.cells(
        "1 +", "def f(:\n    pass", "eval('```')", "x = 5 5", "exec('print(\"a')"
    ):
        assert result.output.splitlines()[-1].startswith("SyntaxError: "), result


def test_hidden_builtins_are_restored_and_display_can_be_a_variable(bench: Bench) -> None:
    cells = (
        "import builtins\nfor name in dir(builtins):\n"
        "    if 'sandbox' in name or name == 'display':\n        delattr(builtins, name)",
        "!echo still",
        "display(42)",
        "display = 5\ndisplay",
    )
    assert outputs(bench, *cells)[1:] == ["still", "42", "5"]
