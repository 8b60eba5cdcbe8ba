"""Isolation levels, limits and mounts. The attacks are in tests/sandbox/attacks."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aster_sandbox import Sandbox, Settings, SettingsError, make_sandbox, supervisor
from aster_sandbox.isolation import Level, Report, make_plan, paths, probe, seccomp, syscalls
from aster_sandbox.isolation.doctor import describe
from aster_sandbox.isolation.machine import _autogroups
from tests.sandbox.conftest import levels_here
from tests.sandbox.sandbox_bench import Bench
from tests.sandbox.test_lifecycle import soon

ORDINARY = [
    "import sqlite3\nbase = sqlite3.connect('a.db')\nbase.execute('create table t (x)')\n"
    "base.execute('insert into t values (41)')\nbase.commit()\nbase.execute('select x + 1 from t').fetchone()[0]",
    "import tempfile\nwith tempfile.NamedTemporaryFile('w+') as file:\n    n = file.write('x' * 42)\nn",
    "import subprocess, sys\nint(subprocess.run([sys.executable, '-c', 'print(42)'], capture_output=True, text=True).stdout)",
    "import threading\nfound = []\nt = threading.Thread(target=found.append, args=[42])\nt.start()\nt.join()\nfound[0]",
    "import os, pathlib\npathlib.Path('d/e').mkdir(parents=True)\nos.rename('d/e', 'e')\nos.symlink('e', 'l')\n"
    "len(os.listdir('l')) + 42",
    "from concurrent.futures import ThreadPoolExecutor\nsum(ThreadPoolExecutor(4).map(int, ['20', '22']))",
    "import numpy, scipy.linalg, sympy\nint(numpy.trace(scipy.linalg.inv(numpy.eye(2)))) * int(sympy.Integer(21))",
    "import json.tool, xml.dom, wave, zipfile\n42",
    "import asyncio, socket\na, b = socket.socketpair()\na.send(bytes([42]))\nb.recv(1)[0]",
    "import os, subprocess\nchild = subprocess.Popen(['sleep', '1000'], process_group=0)\nos.killpg(child.pid, 9)\n"
    "51 + child.wait()",
    "import datetime, time\ntime.tzset()\ndatetime.datetime.now().year > 2000 and 42",
    "import shutil, os\n42 if shutil.disk_usage('.').total and os.getcwd() and os.cpu_count() else 0",
    "int(subprocess.run('echo 42 | cat', shell=True, capture_output=True, text=True).stdout)",
]


def test_ordinary_programs_work(bench: Bench) -> None:
    assert [(call.status, call.output) for call in bench.cells(*ORDINARY)] == [("ok", "42")] * len(ORDINARY)


def in_sandbox(settings: Settings, *codes: str) -> list[str]:
    async def main() -> list[str]:
        async with Sandbox(settings) as sandbox, await sandbox.open(0) as session:
            return [(await session.run(code)).output for code in codes]

    return asyncio.run(main())


@pytest.mark.parametrize("level", levels_here())
def test_sandbox_uses_the_level_in_its_settings(level: Any, capfd: pytest.CaptureFixture[str]) -> None:
    async def main() -> Level:
        async with Sandbox(Settings(isolation=level, preload=[])) as sandbox:
            return sandbox.level

    supervisor._print_once.cache_clear()
    assert asyncio.run(main()) == level
    assert ("NOT ISOLATED" if level == "rlimits" else level) in capfd.readouterr().err


def test_unavailable_level_is_a_settings_error(monkeypatch: pytest.MonkeyPatch) -> None:
    report = dataclasses.replace(probe(), failures={Level.NAMESPACES: "unshare: no", Level.LANDLOCK: "Landlock is missing"})
    monkeypatch.setattr("aster_sandbox.isolation.machine.probe", lambda: report)
    with pytest.raises(SettingsError, match=r"sandbox\.isolation: .*'landlock'.*Landlock is missing.*`aster doctor`"):
        in_sandbox(Settings(isolation="landlock"))
    assert report.best is Level.RLIMITS


@pytest.mark.parametrize("level", levels_here())
def test_mounts_are_readable_at_their_path_and_not_writable(level: Any, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "numbers").write_text("42")
    (tmp_path / "other").write_text("secret")
    outputs = in_sandbox(
        Settings(isolation=level, preload=[], mounts=[str(tmp_path / "data")]),
        f"open({str(tmp_path / 'data' / 'numbers')!r}).read()",
        f"open({str(tmp_path / 'data' / 'numbers')!r}, 'w')",
        f"open({str(tmp_path / 'other')!r}).read()",
    )
    assert outputs[0] == "'42'"
    if level != "rlimits":
        assert "Error" in outputs[1]
        assert "secret" not in outputs[2]
        assert (tmp_path / "data" / "numbers").read_text() == "42"


@pytest.mark.parametrize("path", ["data", "/no/such/thing", "/", "/tmp", "/proc/1"])
def test_invalid_mounts_are_settings_errors(path: str) -> None:
    with pytest.raises(SettingsError, match=rf"sandbox\.mounts: '{path}'"):
        in_sandbox(Settings(preload=[], mounts=[path]))


def test_folder_with_installed_packages_is_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mine", "needed"):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}-1.0.dist-info").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("from needed import VALUE\n")
    (tmp_path / "needed" / "__init__.py").write_text("VALUE = 42\n")
    tmp_path.chmod(0o755)  # a sandbox started as root reads it as nobody
    monkeypatch.syspath_prepend(str(tmp_path))
    assert in_sandbox(Settings(preload=["mine"]), "import mine\nmine.VALUE", "import needed\nneeded.VALUE") == ["42", "42"]


def test_preload_that_cannot_be_imported_is_a_one_line_settings_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("from hidden import VALUE\n")
    (tmp_path / "hidden.py").write_text("VALUE = 42\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    if probe().best is Level.RLIMITS:
        pytest.skip("nothing is hidden at this level")
    with pytest.raises(SettingsError, match=r"^sandbox\.preload: 'mine' [^\n]*'hidden'[^\n]*sandbox\.mounts[^\n]*$"):
        in_sandbox(Settings(preload=["mine"]))


def test_preloaded_package_is_visible_and_its_neighbours_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("VALUE = 42\n")
    (tmp_path / "secret.txt").write_text("hidden")
    monkeypatch.syspath_prepend(str(tmp_path))
    outputs = in_sandbox(
        Settings(preload=["mine"]), "import mine\nmine.VALUE", f"open({str(tmp_path / 'secret.txt')!r}).read()"
    )
    assert outputs[0] == "42"
    assert "hidden" not in outputs[1]


def test_working_directory_on_sys_path_is_not_readable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert not any(str(tmp_path).startswith(path) for path in paths.readable_paths())


@pytest.mark.parametrize("level", levels_here())
def test_session_limits(level: Any) -> None:
    settings = Settings(isolation=level, preload=[], processes=16, disk_mb=8, file_mb=4, open_files=600, cell_seconds=20)
    # At other levels root has no process limit, and threads run out of memory instead.
    many = 50 if level == "namespaces" else 3000
    file, disk, descriptors, threads, after = in_sandbox(
        settings,
        "open('a', 'wb').write(bytes(5 << 20))",
        "for n in range(4): open(f'b{n}', 'wb').write(bytes(3 << 20))",
        "kept = [open('/dev/null') for _ in range(700)]",
        f"import threading\nend, threads = threading.Event(), []\nfor _ in range({many}):\n"
        "    threads.append(threading.Thread(target=end.wait))\n"
        "    threads[-1].start()",
        "end.set()\n[t.join() for t in threads if t.ident]\n40 + 2",
    )
    assert "File too large" in file
    if level == "namespaces":
        assert "No space left" in disk
    assert "Too many open files" in descriptors
    assert "can't start new thread" in threads
    assert after == "42"


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
@pytest.mark.parametrize("level", levels_here())
@pytest.mark.parametrize(
    ("beside_sampler", "spare", "left"), [(True, 1, slice(1, None)), (True, 999, slice(-1, None)), (False, 1, slice(None))]
)
def test_spare_processors_are_left_to_a_sampler_in_this_process(
    level: Any, beside_sampler: bool, spare: int, left: slice
) -> None:
    settings = Settings(isolation=level, preload=[], spare_processors=spare)
    processors = sorted(os.sched_getaffinity(0))

    async def main() -> str:
        async with make_sandbox(settings, beside_sampler=beside_sampler) as sandbox:
            session = await sandbox.open(0)
            return (await session.run("import os\nsorted(os.sched_getaffinity(0))")).output

    assert asyncio.run(main()) == str(processors[left])
    assert sorted(os.sched_getaffinity(0)) == processors


def test_affinity_is_not_set_if_no_processor_is_spared(tmp_path: Path) -> None:
    """Setting it may be forbidden, and it would outlast a later change of this process's own affinity."""
    settings = Settings(preload=[])
    assert make_plan(settings, str(tmp_path)).processors == ()
    assert len(make_plan(settings, str(tmp_path), 1).processors) == max(1, len(os.sched_getaffinity(0)) - 1)


def test_host_name_and_working_directory_do_not_depend_on_the_machine(bench: Bench) -> None:
    if bench.sandbox.level is not Level.NAMESPACES:
        pytest.skip("needs namespaces")
    (call,) = bench.cells("import os, socket\nos.getcwd(), socket.gethostname(), os.path.exists('/proc/self')")
    assert call.output == "('/tmp/work', 'sandbox', False)"


def test_killing_the_zygote_or_its_parent_kills_all_its_descendants(hasty: Bench) -> None:
    for choose in (Bench.zygote_pid, lambda bench: parent_of(bench.zygote_pid())):
        session = hasty.open()
        hasty.do(session.run("x = 3\nimport subprocess\nchild = subprocess.Popen(['sleep', '1000'], process_group=0)"))
        pid = choose(hasty)
        below = descendants(pid)
        assert len(below) >= 2
        os.kill(pid, signal.SIGKILL)
        assert soon(functools.partial(all_dead, below))
        assert hasty.do(session.run("x")).output == "3"


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def descendants(pid: int) -> list[int]:
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [deeper for child in children for deeper in descendants(child)]


def all_dead(pids: list[int]) -> bool:
    return not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


HEADERS = Path("/usr/include/asm-generic/unistd.h")


@pytest.mark.skipif(not HEADERS.exists(), reason="no kernel headers")
def test_system_call_numbers_match_the_kernel_headers() -> None:
    generic = HEADERS.read_text()
    known = {
        line.split()[1].removeprefix("__NR_").removeprefix("3264_"): line.split()[2]
        for line in generic.splitlines()
        if line.startswith(("#define __NR_", "#define __NR3264_")) and line.split()[2].isdigit()
    }
    for name, (_, arm) in syscalls.NUMBERS.items():
        if arm is not None and name in known:
            assert known[name] == str(arm), name
    machine = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if machine.exists():
        known = dict(
            line.removeprefix("#define __NR_").split()
            for line in machine.read_text().splitlines()
            if line.startswith("#define __NR_")
        )
        for name, (intel, _) in syscalls.NUMBERS.items():
            if intel is not None and name in known:
                assert known[name] == str(intel), name


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("unix_sockets", [True, False])
def test_filter_allows_and_refuses_the_right_calls_on_both_architectures(
    machine: str, unix_sockets: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seccomp, "MACHINE", machine)
    monkeypatch.setattr(syscalls, "MACHINE", machine)
    code = [
        struct.unpack_from("=HBBI", seccomp.program(() if unix_sockets else seccomp.SOCKETS + seccomp.FILE_RIGHTS), place)
        for place in range(0, len(seccomp.program(() if unix_sockets else seccomp.SOCKETS + seccomp.FILE_RIGHTS)), 8)
    ]

    def run(arch: int, number: int, *arguments: int) -> int:
        memory = {0: number, 4: arch} | {16 + 8 * index: value for index, value in enumerate(arguments)}
        accumulator = place = 0
        while True:
            kind, then, otherwise, value = code[place]
            place += 1
            match kind:
                case 0x20:
                    accumulator = memory.get(value, 0)
                case 0x54:
                    accumulator &= value
                case 0x06:
                    return value
                case _:
                    true = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[kind]
                    place += then if true else otherwise

    arch = seccomp.AUDIT_ARCHITECTURE[machine]
    allow, eperm, enosys = 0x7FFF0000, 0x00050001, 0x00050026

    def call(name: str, *arguments: int) -> int:
        number = syscalls.number(name)
        assert number is not None
        return run(arch, number, *arguments)

    assert run(arch, 0) == run(arch, 63) == allow
    assert run(0x4000_0003, 5) == eperm
    assert call("clone", 0x3D0F00) == allow
    assert call("clone", 0x1000_0011) == eperm
    assert call("clone3") == enosys
    assert call("unshare", 0x1001_0000) == call("unshare", 0) == call("ptrace") == call("io_uring_setup") == eperm
    assert call("flock", 3) == call("inotify_init1") == call("inotify_add_watch") == eperm
    assert call("fcntl", 3, 1) == allow
    assert call("fcntl", 3, 1024) == call("fcntl", 3, 1026) == eperm
    assert call("prlimit64", 0) == allow
    assert call("prlimit64", 77) == eperm
    assert call("setpriority", 0, 0, 5) == allow
    assert call("setpriority", 0, 9, 5) == call("setpriority", 2, 0, 5) == eperm
    assert call("ioctl", 0, 0x5413) == allow
    assert call("ioctl", 0, 0x5412) == eperm
    assert call("fchmodat") == (allow if unix_sockets else eperm)
    assert call("socket", 2, 1) == call("socket", 16, 3) == eperm
    assert call("socket", 1, 1) == (allow if unix_sockets else eperm)
    assert call("socketpair", 1, 0x80001) == call("socketpair", 1, 5) == allow
    assert call("socketpair", 1, 2) == (allow if unix_sockets else eperm)
    if machine == "x86_64":
        assert run(arch, 0x4000_0000 + 165) == enosys


def test_doctor_names_the_level_and_every_mechanism() -> None:
    done = subprocess.run([sys.executable, "-m", "aster", "doctor"], capture_output=True, text=True, check=True)
    for mechanism in probe().mechanisms:
        assert mechanism.name in done.stdout
    assert f"isolation level {probe().best.value}" in done.stdout
    assert done.stderr == ""


def test_doctor_lists_what_is_missing_and_how_to_get_it() -> None:
    bad = tuple(dataclasses.replace(mechanism, works=False, detail="refused") for mechanism in probe().mechanisms)
    text = describe(Report(bad, {Level.NAMESPACES: "user namespaces", Level.LANDLOCK: "Landlock is missing"}, 0, False))
    assert "NOT ISOLATED" in text
    assert "max_user_namespaces" in text
    assert "CONFIG_SECURITY_LANDLOCK" in text
    assert "sandbox.processes" in text


def test_control_group_with_its_own_processor_share_overrides_autogroups(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = next((line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")), None)
    if own is None:
        pytest.skip("no control groups of version 2")
    monkeypatch.setattr("aster_sandbox.isolation.machine.CGROUP_TOPS", (str(tmp_path),))
    place = Path(f"{tmp_path}{own[3:]}")
    place.mkdir(parents=True, exist_ok=True)
    if not _autogroups().works:
        pytest.skip("no autogroups")
    (place / "cpu.weight").write_text("100")
    assert not _autogroups().works
