"""Figures that cells show, and matplotlib's font list."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from aster_sandbox import CellStatus, Sandbox, Settings, fonts
from aster_sandbox.handle import environment
from tests.sandbox.conftest import ISOLATION, Benches, level_taken, levels_here
from tests.sandbox.sandbox_bench import Bench

PNG = b"\x89PNG\r\n\x1a\n"
GROWTH = """
import matplotlib.pyplot as plt
plt.plot([1, 2, 4])
plt.title("Growth")
plt.xlabel("n")
plt.ylabel("f(n)")
plt.show()
"""


@pytest.fixture
def gallery(_benches: Benches, request: pytest.FixtureRequest) -> Iterator[Bench]:
    """A sandbox with the memory and time that matplotlib needs."""
    level: Any = level_taken(getattr(request, "param", ISOLATION)).value
    bench = _benches.get(Settings(isolation=level, cell_seconds=60, preload=[], sessions=8))
    yield bench
    bench.close_sessions()


everywhere = pytest.mark.parametrize("gallery", levels_here(), indirect=True)


def outputs(bench: Bench, *codes: str) -> list[str]:
    results = bench.cells(*codes)
    assert [result.status for result in results] == [CellStatus.OK] * len(codes), results
    return [result.output for result in results]


@everywhere
def test_figure_is_described_in_one_line_and_saved(gallery: Bench) -> None:
    session = gallery.open()
    shown = gallery.do(session.run(GROWTH))
    assert shown.output == '[figure 1: "Growth"; x: n, y: f(n); saved as figure-1.png]'
    assert gallery.do(session.download("figure-1.png")).startswith(PNG)
    again = gallery.do(session.run("plt.get_fignums(), plt.show()"))
    assert again.output == "([], None)", "the figure was not closed"


@everywhere
def test_first_matplotlib_import_prints_nothing_and_uses_the_shared_font_list(gallery: Bench) -> None:
    loaded, files, linked, scanned = outputs(
        gallery,
        "import matplotlib.pyplot as plt\nfig = plt.figure()",
        "import os\nos.listdir()",
        "import matplotlib\nplace = matplotlib.get_cachedir()\n"
        "[os.path.islink(f'{place}/{name}') for name in os.listdir(place)]",
        "from matplotlib import font_manager\nfont_manager._get_fontconfig_fonts.cache_info().currsize",
    )
    assert (loaded, files, linked, scanned) == ("[no output]", "[]", "[True]", "0")


def test_every_way_to_show_a_figure(gallery: Bench) -> None:
    first, several, displayed, _, program = outputs(
        gallery,
        "import matplotlib.pyplot as plt\nfig = plt.figure()\nfig.show()",
        """
fig, (left, right) = plt.subplots(1, 2)
fig.suptitle("Two  of\\nthem")
left.set_title("A", loc="left")
right.set_xlabel("t")
other = plt.figure()
other.add_subplot(projection="3d").set_zlabel("height")
print("before", end="")
plt.show()
plt.get_fignums()
""",
        "display(fig)\nfig.show()\nimport matplotlib.figure\ndisplay(matplotlib.figure.Figure(), 5)",
        "%%writefile a.py\nimport matplotlib.pyplot as p; p.plot([1]); p.title('B'); p.show()",
        "!python a.py",
    )
    assert first == "[figure 1; saved as figure-1.png]"
    assert several.splitlines() == [
        "before",
        '[figure 2: "Two of them"; 2 axes: ("A"), (x: t); saved as figure-2.png]',
        "[figure 3: z: height; saved as figure-3.png]",
        "[]",
    ]
    assert displayed.splitlines() == [
        '[figure 4: "Two of them"; 2 axes: ("A"), (x: t); saved as figure-4.png]',
        '[figure 5: "Two of them"; 2 axes: ("A"), (x: t); saved as figure-5.png]',
        "[figure 6; saved as figure-6.png]",
        "5",
    ]
    assert program == '[figure 7: "B"; saved as figure-7.png]'


def test_figure_does_not_overwrite_a_file(gallery: Bench) -> None:
    session = gallery.open()
    cell = "import matplotlib.pyplot as plt\nplt.plot([1])\nplt.savefig('figure-1.png')\nplt.show()"
    assert gallery.do(session.run(cell)).output == "[figure 2; saved as figure-2.png]"
    assert gallery.do(session.download("figure-1.png")).startswith(PNG)
    moved = gallery.do(session.run("import os\nos.mkdir('sub')\nos.chdir('sub')\nplt.figure()\nplt.show()\nos.listdir()"))
    assert moved.output.endswith("/figure-3.png]\n[]")
    assert gallery.do(session.download("figure-3.png")).startswith(PNG)


def test_figure_that_cannot_be_drawn_is_an_error_and_leaves_no_file(gallery: Bench) -> None:
    wrong, after, files = gallery.cells(
        "import matplotlib.pyplot as plt\nplt.title('$\\\\frac{$')\nplt.show()",
        "plt.plot([1])\nplt.show()",
        "import os\nos.listdir()",
    )
    assert wrong.status is CellStatus.ERROR
    assert "ValueError" in wrong.output
    assert after.output == "[figure 2; saved as figure-2.png]"
    assert files.output == "['figure-2.png']"


def test_figures_are_restored_by_replay(gallery: Bench) -> None:
    session = gallery.open()
    gallery.do(session.run(GROWTH))
    assert gallery.do(session.run("import os\nos._exit(1)")).status is CellStatus.CRASHED
    assert gallery.do(session.run(GROWTH)).output.endswith("saved as figure-2.png]")
    assert gallery.do(session.download("figure-1.png")).startswith(PNG)


def test_long_figure_descriptions_are_cut(gallery: Bench) -> None:
    (shown,) = outputs(
        gallery,
        """
import matplotlib.pyplot as plt
fig, axes = plt.subplots(3, 3)
for number, each in enumerate(axes.flat):
    each.set_title(f"{number}" + "x" * 500)
plt.show()
""",
    )
    assert "9 axes: " in shown
    assert "and 3 more" in shown
    assert len(shown) < 1000


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with a font list that two concurrent builds have written."""
    home = tmp_path_factory.mktemp("home")
    folders = [tmp_path_factory.mktemp("sandbox") for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor() as threads:
        patch.setenv("XDG_CACHE_HOME", str(home))
        list(threads.map(lambda folder: fonts.make_list(str(folder), environment(folder)), folders))
    for folder in folders:
        assert [json.loads(path.read_text())["__class__"] for path in folder.iterdir()] == ["FontManager"]
    return home


def test_concurrent_builds_leave_one_font_list(made: Path) -> None:
    (cache,) = made.iterdir()
    assert len(list(cache.iterdir())) == 1


def use_cache(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Use a copy of the cache. Returns the cached list's path and the folder of a new sandbox."""
    home, folder = tmp_path / "home", tmp_path / "sandbox"
    shutil.copytree(made, home)
    folder.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return next(home.glob("*/*")), folder


def test_cached_font_list_is_used(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, folder = use_cache(made, tmp_path, monkeypatch)
    kept.write_text('{"kept": 1}')
    fonts.make_list(str(folder), {})
    assert [path.read_text() for path in folder.iterdir()] == ['{"kept": 1}']


def test_broken_font_list_is_rebuilt(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, folder = use_cache(made, tmp_path, monkeypatch)
    whole = kept.read_bytes()
    kept.write_bytes(whole[:100])
    fonts.make_list(str(folder), environment(folder))
    assert json.loads(kept.read_text()) == json.loads(whole)
    assert len(list(folder.iterdir())) == 1


def test_font_list_is_built_without_a_writable_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    folder = tmp_path / "sandbox"
    folder.mkdir()
    fonts.make_list(str(folder), environment(folder))
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize(
    ("setup", "cell"),
    [
        ("import matplotlib.pyplot", "1"),
        ("", "import networkx\nnetworkx.draw(networkx.path_graph(2))"),
        (
            "",
            "import os, subprocess, sys\n_ = subprocess.run([sys.executable, '-c', 'import ' + 'matplotlib' + '.py' + 'plot'])",
        ),
    ],
)
def test_matplotlib_finds_the_font_list_wherever_it_is_imported(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setup: str, cell: str
) -> None:
    use_cache(made, tmp_path, monkeypatch)

    async def look() -> list[str]:
        async with Sandbox(preload=[], cell_seconds=60) as sandbox, await sandbox.open(setup=setup) as session:
            look = "import os\n[os.path.islink(f) for f in os.scandir(os.environ['MPLCONFIGDIR']) if 'fontlist' in f.name]"
            return [(await session.run(code)).output for code in (cell, look)]

    assert asyncio.run(look())[1] == "[True]"


@pytest.mark.parametrize("level", levels_here())
def test_running_sandbox_does_not_need_the_cache(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: Any
) -> None:
    kept, _ = use_cache(made, tmp_path, monkeypatch)

    async def show() -> str:
        async with Sandbox(isolation=level, preload=[], cell_seconds=60) as sandbox:
            shutil.rmtree(kept.parent)
            async with await sandbox.open() as session:
                return (await session.run(GROWTH)).output

    assert asyncio.run(show()) == '[figure 1: "Growth"; x: n, y: f(n); saved as figure-1.png]'
