"""The stored corpus of cells, and how to run an entry in a session and check the results."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path

from aster_sandbox import CellResult, CellStatus, Session

FILE = Path(__file__).with_name("cells.jsonl")
INTERNAL = re.compile(r"aster_sandbox|worker\.py|streams\.py|cellbuiltins|Exception ignored in: <aster")
"""Text that no output may contain: frames of the sandbox's own code in a traceback."""
NOTE = re.compile(
    r"^\[(the interpreter had to be replaced before this cell|this session's cells had to be run again); .*\]\n", re.M
)
FORK_WARNING = re.compile(r"^<cell \d+>:\d+: DeprecationWarning: This process \(pid=\d+\) is multi-threaded, .*\n.*\n", re.M)
"""Printed by Python 3.12 and later."""
EXCEPT_FOR = re.compile(r"except for what these cells changed: ([^\]]*)\]")
ALL_LOST = "earlier cells are lost"
STATE = re.compile(r"the variables and imports of earlier cells are (kept(, except for what these cells changed: .+)?|lost)\]$")
INTERRUPTED = "; all variables are kept]"


@dataclass(frozen=True, slots=True)
class Entry:
    """Cells that change their process, and a cell after them that checks the result."""

    kinds: list[str]
    """``kind: name`` of each ingredient."""
    cells: list[str]
    ends: list[list[str]]
    """How each cell may end: see ``ingredients.ENDS``."""
    after: str
    """The cell after them."""
    prints: str
    """What that cell prints whatever came before."""
    value: str
    """What it prints next, from the variables of earlier work."""
    home: int
    """The number of the cell with that work."""
    lost: str
    """The first undefined name if that work's variables are lost."""
    late: bool = False
    """Whether something may still write to the output after its cell."""
    haunted: bool = False
    """Whether something may still end the process, or raise, after its cell."""
    inside: bool = False
    """Whether the sandbox's own frames may appear in the output."""
    short: bool = False
    """Whether memory may be exhausted."""

    def to_json(self) -> str:
        """The entry as one line of JSON."""
        return json.dumps(
            {name: value for name, value in dataclasses.asdict(self).items() if value is not False}, ensure_ascii=False
        )

    @property
    def pooled(self) -> bool:
        """Whether it uses multiprocessing."""
        return any(kind.startswith("pools: ") for kind in self.kinds)

    @property
    def endless(self) -> bool:
        """Whether a cell may run until its time limit."""
        return any({"interrupted", "killed"} & set(ends) for ends in self.ends)


def load() -> list[Entry]:
    """All stored entries."""
    return [Entry(**json.loads(line)) for line in FILE.read_text("utf-8").splitlines()]


def how(result: CellResult) -> str:
    """How a cell ended, in the terms of ``ingredients.ENDS``."""
    if result.status is CellStatus.TIMEOUT:
        return "interrupted" if result.output.endswith(INTERRUPTED) else "killed"
    return result.status.value


class Losses:
    """What a session has reported about lost state so far."""

    def __init__(self, inside: bool) -> None:
        self._inside = inside
        self.whole: set[int] = set()
        """Numbers of cells that it reported as lost, or that were rolled back."""
        self.partly: set[int] = set()
        """Numbers of cells that it reported as partly lost."""

    def read(self, number: int, result: CellResult) -> list[str]:
        """Read the result of cell ``number``. Returns what is wrong with it."""
        wrong = []
        ended = how(result)
        if ended in ("crashed", "killed"):
            self.whole.add(number)
            if not STATE.search(result.output):
                wrong.append(f"cell {number} was {ended}, and the output does not report the state")
        reported = EXCEPT_FOR.search(result.output)
        if reported:
            for part in re.findall(r"\d+(?: \(from line \d+ on\))?", reported[1]):
                (self.partly if "(" in part else self.whole).add(int(part.split()[0]))
        if ALL_LOST in result.output:
            self.whole |= set(range(1, number + 1))
        if not self._inside and INTERNAL.search(result.output):
            wrong.append(f"cell {number} shows the sandbox's own frames")
        return wrong


async def play(session: Session, entry: Entry, semaphores: bool = True) -> list[str]:
    """Run an entry's cells in a new session. Returns a list of what is wrong; empty if all is right.

    ``semaphores``: whether multiprocessing's semaphores work, which need shared memory."""
    losses = Losses(entry.inside)
    wrong: list[str] = []
    for number, (cell, ends) in enumerate(zip(entry.cells, entry.ends, strict=True), 1):
        result = await session.run(cell)
        wrong += losses.read(number, result)
        if how(result) not in ends and not (entry.pooled and not semaphores and how(result) == "error"):
            wrong.append(f"cell {number} was {how(result)}, not {' or '.join(ends)}: {result.output[-500:]!r}")
    result = await session.run(entry.after)
    wrong += losses.read(len(entry.cells) + 1, result)
    if entry.haunted and result.status in (CellStatus.CRASHED, CellStatus.ERROR):
        return wrong  # what an earlier cell left behind took effect here, as it would in plain Python
    found = as_answer(result)
    kept, lost = entry.prints + entry.value, f"{entry.prints}NameError: name {entry.lost!r} is not defined"
    right = {lost} if entry.home in losses.whole else {kept, lost} if entry.home in losses.partly else {kept}
    if entry.short:
        right.add("MemoryError")
    if not (found in right or (entry.late and any(_within(each, found) for each in right))):
        wrong.append(f"the next cell's output was {found!r} instead of {' or '.join(map(repr, right))}")
    return wrong


def _within(text: str, longer: str) -> bool:
    """Whether the letters of ``text`` occur in ``longer`` in this order, possibly with others in between."""
    letters = iter(longer)
    return all(letter in letters for letter in text)


def as_answer(result: CellResult) -> str:
    """A result's output without notes about the state, and with only the last line of a traceback."""
    text = FORK_WARNING.sub("", NOTE.sub("", result.output))
    if result.status is CellStatus.ERROR:
        before, found, traceback = text.partition("Traceback (most recent call last):\n")
        text = before + traceback.splitlines()[-1] if found else text
        return text.partition(". Did you mean")[0].removesuffix(" (its traceback cannot be shown)")
    return text


def in_words(entry: Entry, wrong: list[str]) -> str:
    """The description of a failed entry."""
    cells = "\n".join(f"--- {number}\n{cell}" for number, cell in enumerate([*entry.cells, entry.after], 1))
    return f"{', '.join(entry.kinds)}\n{cells}\n--- wrong:\n" + "\n".join(wrong)
