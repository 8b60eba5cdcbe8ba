r"""The benchmarks that can be named: where each comes from, and whether a local copy is unchanged.

A benchmark is looked for in a folder (``folder``, else the environment variable ASTER_BENCHMARKS), under these names:

    NAME.parquet, NAME.jsonl                       for example aime25.parquet
    REPOSITORY.parquet, REPOSITORY.jsonl           the data set's own name, aime_2025.parquet
    REPOSITORY/**/SPLIT*.parquet (or .jsonl)       a copy of its repository, aime_2025/data/train-0...parquet

and otherwise on the hub, with the library ``datasets``. Prompts are reduced to the bare problem: the request for a ``\boxed{}``
that some copies append is removed, and so is white space at the ends of lines. A problem's id is the benchmark's name and a
hash of the bare problem. It is the same in all copies, and so are the seeds derived from it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from aster.data.problems import BOX_REQUEST, HUB, digest, load_problems
from aster.errors import UserError
from aster.terminal import aligned, say
from aster.types import Problem

VARIABLE = "ASTER_BENCHMARKS"
ENDINGS = (".parquet", ".jsonl")


@dataclass(frozen=True)
class Benchmark:
    """One entry of the registry."""

    name: str
    title: str
    dataset: str
    """Id on the hub."""
    split: str
    columns: tuple[str, str]
    """Columns of the problem and of the answer."""
    licence: str | None
    """From the data set's card; None if the card names none."""
    count: int
    """Number of problems."""
    checksum: str | None
    """:func:`checksum` of the problems; None if it is not recorded."""

    @property
    def repository(self) -> str:
        """The last part of the data set's id."""
        return self.dataset.split("/")[-1]


REGISTRY = {
    entry.name: entry
    for entry in (
        Benchmark("aime24", "AIME 2024 I and II", "HuggingFaceH4/aime_2024", "train", ("problem", "answer"), None, 30, None),
        Benchmark(
            "aime25",
            "AIME 2025 I and II",
            "MathArena/aime_2025",
            "train",
            ("problem", "answer"),
            "CC BY-NC-SA 4.0",
            30,
            "84a6cf595878947aa47c1260c5987325c5b0e0fe3198f1cd466f7572a6298ea7",
        ),
        Benchmark(
            "hmmt25",
            "HMMT February 2025",
            "MathArena/hmmt_feb_2025",
            "train",
            ("problem", "answer"),
            "CC BY-NC-SA 4.0",
            30,
            "9d04b2439785502c89ba68dda1dbdd69e40316c5fa71514103da7ddb80ad23ee",
        ),
        Benchmark(
            "hmmt25nov",
            "HMMT November 2025",
            "MathArena/hmmt_nov_2025",
            "train",
            ("problem", "answer"),
            "CC BY-NC-SA 4.0",
            30,
            None,
        ),
        Benchmark("beyondaime", "BeyondAIME", "ByteDance-Seed/BeyondAIME", "test", ("problem", "answer"), None, 100, None),
        Benchmark("math500", "MATH-500", "HuggingFaceH4/MATH-500", "test", ("problem", "answer"), None, 500, None),
    )
}
"""The recorded checksums were computed from copies in verl's layout (``prompt``, ``reward_model.ground_truth``)."""


def find_benchmark(name: str) -> Benchmark:
    """Return the entry of a name. Raises UserError if there is none."""
    if name not in REGISTRY:
        raise UserError(
            f"{name}: no such benchmark or file; the benchmarks are {', '.join(REGISTRY)} (see aster benchmarks), and files "
            f"must end in {' or '.join(ENDINGS)}"
        )
    return REGISTRY[name]


def load_benchmark(name: str, folder: str | Path | None = None, *, changed: bool = False) -> list[Problem]:
    """Return the bare problems of a benchmark, or of a file if ``name`` is a path.

    ``folder`` holds local copies (default: the folder that ASTER_BENCHMARKS names). Raises UserError if there is no copy and
    the hub cannot be reached, and if the number of problems or the checksum differs from the recorded one; with ``changed``,
    such a difference is only reported on stderr.
    """
    if name.endswith(ENDINGS):
        return _bare(Path(name).stem, load_problems(name))
    entry = find_benchmark(name)
    path = local_copy(entry, folder)
    problems = _bare(entry.name, load_problems(path) if path is not None else _from_hub(entry))
    where = str(path) if path is not None else entry.dataset
    faults = []
    if len(problems) != entry.count:
        faults.append(f"it has {len(problems)} problems, but {entry.title} has {entry.count}")
    found = checksum(problems)
    if entry.checksum is not None and found != entry.checksum:
        faults.append(f"its checksum is {found}, but the recorded one is {entry.checksum}")
    if faults and not changed:
        raise UserError(f"{where}: not the benchmark {name}: {'; '.join(faults)} (--changed-benchmark uses it anyway)")
    for fault in faults:
        say(f"{name}: {where}: {fault}; using it anyway")
    return problems


def checksum(problems: list[Problem]) -> str:
    """Return the SHA-256 of the bare prompts and answers, as sorted JSON lines: the copy's layout and order do not matter."""
    lines = sorted(json.dumps([_bare_prompt(problem.prompt), problem.answer.strip()]) for problem in problems)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def benchmark_folder(folder: str | Path | None = None) -> Path | None:
    """Return the folder of local copies: the given one, else that of the environment variable, else None.

    Raises UserError if that folder does not exist.
    """
    given = folder or os.environ.get(VARIABLE)
    if not given:
        return None
    if not Path(given).is_dir():
        raise UserError(f"{given}: no such folder; {'--data' if folder else VARIABLE} must name a folder of benchmark files")
    return Path(given)


def local_copy(entry: Benchmark, folder: str | Path | None = None) -> Path | None:
    """Return the file that holds a benchmark, or None. Raises UserError if the split is in several files."""
    root = benchmark_folder(folder)
    if root is None:
        return None
    for stem in (entry.name, entry.repository):
        for ending in ENDINGS:
            if (root / f"{stem}{ending}").is_file():
                return root / f"{stem}{ending}"
    found = sorted(path for ending in ENDINGS for path in (root / entry.repository).rglob(f"{entry.split}*{ending}"))
    if len(found) > 1:
        raise UserError(
            f"{root / entry.repository}: {len(found)} files of the split {entry.split}; join them into one file "
            f"{entry.name}.parquet in {root}"
        )
    return found[0] if found else None


def describe(folder: str | Path | None = None) -> str:
    """Return the registry as a table, followed by a line about each local copy."""

    rows = [("name", "title", "data set", "split", "columns", "licence", "problems", "sha256")]
    copies = []
    for entry in REGISTRY.values():
        rows.append(
            (
                entry.name,
                entry.title,
                entry.dataset,
                entry.split,
                ", ".join(entry.columns),
                entry.licence or "not recorded",
                str(entry.count),
                entry.checksum[:12] if entry.checksum else "not recorded",
            )
        )
        copies.append(f"{entry.name}: {_copy_line(entry, folder)}")
    place = benchmark_folder(folder)
    where = f"local copies in {place}" if place is not None else f"no folder of local copies (set --data or {VARIABLE})"
    return "\n".join([*aligned(rows), "", f"{where}:", *copies])


def _copy_line(entry: Benchmark, folder: str | Path | None) -> str:
    path = local_copy(entry, folder)
    if path is None:
        return "none"
    problems = _bare(entry.name, load_problems(path))
    found = checksum(problems)
    if len(problems) != entry.count:
        return f"{path}: {len(problems)} problems, not {entry.count}"
    if entry.checksum is None:
        return f"{path}: {len(problems)} problems, sha256 {found} (no recorded one to compare with)"
    return f"{path}: {len(problems)} problems, sha256 " + (
        "as recorded" if found == entry.checksum else f"{found}, not the recorded one"
    )


def _from_hub(entry: Benchmark, source: str | None = None) -> list[Problem]:
    """Download with ``datasets``. ``source`` replaces the hub's id, for example by a local folder."""
    advice = (
        f"put a copy named {entry.name}.parquet or .jsonl into a folder and give that folder with --data or {VARIABLE} (with a "
        f"network: huggingface-cli download --repo-type dataset {entry.dataset} --local-dir FOLDER/{entry.repository})"
    )
    try:
        return load_problems(f"{HUB}{source or entry.dataset}:{entry.split}")
    except UserError as error:
        raise UserError(f"{entry.name}: no local copy, and {error}; or {advice}") from error


def _bare(name: str, problems: list[Problem]) -> list[Problem]:
    """Return each bare problem once. Raises UserError if one occurs with two answers, because both would have one id."""
    bare: dict[str, Problem] = {}
    for problem in problems:
        prompt = _bare_prompt(problem.prompt)
        found = dataclasses.replace(problem, id=f"{name}-{digest(prompt, 6)}", prompt=prompt, source=name)
        first = bare.setdefault(found.id, found)
        if first.answer.strip() != found.answer.strip():
            raise UserError(
                f"{name}: the same problem has the answers {first.answer!r} and {found.answer!r} (id {problem.id}): "
                f"{' '.join(prompt.split())[:60]!r}; delete one"
            )
    if len(bare) < len(problems):
        say(f"{name}: {len(problems) - len(bare)} of {len(problems)} problems repeat an earlier one and are left out")
    return list(bare.values())


def _bare_prompt(prompt: str) -> str:
    """Return the problem without the request for a box and without spaces at the ends of lines."""
    prompt = "\n".join(line.rstrip() for line in prompt.strip().splitlines())
    return prompt.removesuffix(BOX_REQUEST).strip()
