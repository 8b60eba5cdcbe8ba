r"""Benchmarks by name: where each comes from, and whether a copy of it is the one that is meant.

A benchmark is looked for in a folder (``folder``, else the environment variable ASTER_BENCHMARKS), under these names:

    NAME.parquet, NAME.jsonl                       for instance aime25.parquet
    REPOSITORY.parquet, REPOSITORY.jsonl           the data set's own name, aime_2025.parquet
    REPOSITORY/**/SPLIT*.parquet (or .jsonl)       a copy of its repository, aime_2025/data/train-0...parquet

and otherwise on the hub, through the library ``datasets``. What is read is reduced to the bare problem: without the request for
a ``\boxed{}`` that some copies append, and with the ends of lines made alike. An id is the benchmark's name and a hash of the
bare problem, so all copies give a problem the same id, and with it the same seeds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from aster.data.problems import BOX_REQUEST, HUB, load_problems
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
    """Its id on the hub."""
    split: str
    columns: tuple[str, str]
    """Where the problem and the answer are."""
    licence: str | None
    """As its card has it; None where none was found."""
    count: int
    checksum: str | None
    """:func:`checksum` of its problems; None: not on record."""

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
"""The checksums on record are of copies in verl's layout (``prompt``, ``reward_model.ground_truth``)."""


def find_benchmark(name: str) -> Benchmark:
    """The entry of a name. UserError where there is none."""
    if name not in REGISTRY:
        raise UserError(
            f"{name}: no such benchmark or file; benchmarks are {', '.join(REGISTRY)} (aster benchmarks), files end "
            f"in {' or '.join(ENDINGS)}"
        )
    return REGISTRY[name]


def load_benchmark(name: str, folder: str | Path | None = None, *, changed: bool = False) -> list[Problem]:
    """The bare problems of a benchmark, or of a file where ``name`` is the path of one.

    ``folder``: where local copies are; None: what ASTER_BENCHMARKS names. ``changed``: go on, with a word to stderr, where
    count or checksum are not those on record. UserError otherwise then, and where there is neither a copy nor a way to the hub.
    """
    if name.endswith(ENDINGS):
        return _bare(Path(name).stem, load_problems(name))
    entry = find_benchmark(name)
    path = local_copy(entry, folder)
    problems = _bare(entry.name, load_problems(path) if path is not None else _from_hub(entry))
    where = str(path) if path is not None else entry.dataset
    faults = []
    if len(problems) != entry.count:
        faults.append(f"it has {len(problems)} problems, and {entry.title} has {entry.count}")
    found = checksum(problems)
    if entry.checksum is not None and found != entry.checksum:
        faults.append(f"its checksum is {found}, and {entry.checksum} is on record")
    if faults and not changed:
        raise UserError(f"{where}: not the benchmark {name}: {'; '.join(faults)} (--changed-benchmark goes on all the same)")
    for fault in faults:
        say(f"{name}: {where}: {fault}; going on")
    return problems


def checksum(problems: list[Problem]) -> str:
    """SHA-256 over the bare prompts and answers, as JSON lines in sorted order: neither layout nor order of a copy matters."""
    lines = sorted(json.dumps([_bare_prompt(problem.prompt), problem.answer.strip()]) for problem in problems)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def benchmark_folder(folder: str | Path | None = None) -> Path | None:
    """The folder of local copies: the given one, else that of the environment variable. UserError where it is none."""
    given = folder or os.environ.get(VARIABLE)
    if not given:
        return None
    if not Path(given).is_dir():
        raise UserError(f"{given}: no such folder; {'--data' if folder else VARIABLE} must name one with copies of benchmarks")
    return Path(given)


def local_copy(entry: Benchmark, folder: str | Path | None = None) -> Path | None:
    """The file that holds a benchmark, or None. UserError where several parts of a split are there: that is no copy to read."""
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
            f"{root / entry.repository}: {len(found)} files of the split {entry.split}; put one as {entry.name}"
            f".parquet into {root}"
        )
    return found[0] if found else None


def describe(folder: str | Path | None = None) -> str:
    """The registry as a table, and below it what is known of each local copy."""
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
                entry.licence or "not on record",
                str(entry.count),
                entry.checksum[:12] if entry.checksum else "not on record",
            )
        )
        copies.append(f"{entry.name}: {_copy_line(entry, folder)}")
    place = benchmark_folder(folder)
    where = f"local copies in {place}" if place is not None else f"no folder of local copies (--data, or {VARIABLE})"
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
        return f"{path}: {len(problems)} problems, sha256 {found} (not on record)"
    return f"{path}: {len(problems)} problems, sha256 " + (
        "as on record" if found == entry.checksum else f"{found}, not the one on record"
    )


def _from_hub(entry: Benchmark, source: str | None = None) -> list[Problem]:
    """Download through ``datasets``. ``source``: another place that it reads, such as a local folder."""
    advice = (
        f"put a copy as {entry.name}.parquet or .jsonl into a folder and name it with --data or {VARIABLE} (on a machine with "
        f"network: huggingface-cli download --repo-type dataset {entry.dataset} --local-dir FOLDER/{entry.repository})"
    )
    try:
        return load_problems(f"{HUB}{source or entry.dataset}:{entry.split}")
    except UserError as error:
        raise UserError(f"{entry.name}: no local copy, and {error}; or {advice}") from error


def _bare(name: str, problems: list[Problem]) -> list[Problem]:
    """The bare problems, each once. UserError where one is there with two answers: attempts at both would have one id."""
    bare: dict[str, Problem] = {}
    for problem in problems:
        prompt = _bare_prompt(problem.prompt)
        digest = hashlib.blake2b(prompt.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
        found = dataclasses.replace(problem, id=f"{name}-{digest}", prompt=prompt, source=name)
        first = bare.setdefault(found.id, found)
        if first.answer.strip() != found.answer.strip():
            raise UserError(
                f"{name}: one problem is there with the answers {first.answer!r} and {found.answer!r} (id {problem.id}): "
                f"{' '.join(prompt.split())[:60]!r}; delete one"
            )
    if len(bare) < len(problems):
        say(f"{name}: {len(problems) - len(bare)} of {len(problems)} problems repeat an earlier one and are asked once")
    return list(bare.values())


def _bare_prompt(prompt: str) -> str:
    """The problem without the request for a box, and without spaces at the ends of its lines."""
    prompt = "\n".join(line.rstrip() for line in prompt.strip().splitlines())
    return prompt.removesuffix(BOX_REQUEST).strip()
