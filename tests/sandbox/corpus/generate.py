"""Write ``cells.jsonl``: ``python -m tests.sandbox.corpus.generate``. The result is the same every time.

Every ingredient occurs alone in two entries. The other entries combine several, in different cells or in one. Each entry also
has a cell with ordinary work, whose expected values come from plain Python.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import io
import itertools
import random
from collections.abc import Iterable

from tests.sandbox.corpus.corpus import FILE, Entry
from tests.sandbox.corpus.harmless import LOOKS, WORKS, Look, Work, leans, names_of
from tests.sandbox.corpus.ingredients import Ingredient, bound_by, load

ENTRIES = 2000
SEED = 13
ASIDE = {"builtins", "modules", "interpreter", "places", "limits", "memory"}
"""Kinds after which ordinary work in the same cell may fail."""
SLOW = {"forks", "memory", "pools", "subprocesses"}
LOOP = "while True:\n    pass"


def entries() -> Iterable[Entry]:
    """All entries; no two have the same code."""
    draw = random.Random(SEED)
    ingredients = load()
    seen: set[str] = set()
    singles = [(ingredient,) for _ in range(2) for ingredient in ingredients]
    while len(seen) < ENTRIES:
        some = singles.pop(0) if singles else tuple(draw.sample(ingredients, draw.choice([2, 2, 3])))
        entry = compose(some, draw)
        if entry is not None and "".join(entry.cells) not in seen:
            seen.add("".join(entry.cells))
            yield entry


def compose(ingredients: tuple[Ingredient, ...], draw: random.Random, layout: str = "") -> Entry | None:
    """An entry with these ingredients; None if they cannot be combined. ``layout``: one of those in ``_lay_out``; else it is
    drawn."""
    broken: set[str] = set().union(*(ingredient.spoils for ingredient in ingredients))
    bound: set[str] = set().union(*map(bound_by, ingredients))
    if sum(bool(ingredient.ends & {"interrupted", "killed"}) for ingredient in ingredients) > 1:
        return None  # it would take too long
    works = [work for work in WORKS if not names_of(work) & bound]
    usable = [(work, ask) for work in works for ask in work.asks if not (work.needs | leans(f"{work.code}\n{ask}")) & broken]
    if not usable or {"builtins", "echo"} <= broken:
        return None
    work, ask = draw.choices(usable, [1 / len(work.code) for work, _ in usable])[0]
    if any(ingredient.ends & {"interrupted", "killed"} for ingredient in ingredients):
        # Cells have a shorter time limit then, which may be too short for filling memory or starting processes.
        ingredients = tuple(
            dataclasses.replace(each, ends=each.ends | {"interrupted"}) if each.kind in SLOW else each for each in ingredients
        )
    possible = [look for look in LOOKS if _fits(look, ingredients, broken)]
    looks = draw.sample(possible, 0 if "memory" in broken else min(draw.choice([0, 1, 1, 2]), len(possible)))
    cells, ends, home = _lay_out(ingredients, work, "names" in broken, draw, layout)
    after, prints, value, lost = _ask(work, ask, looks, draw, "builtins" not in broken, "echo" in broken)
    flags = set().union(*(ingredient.flags for ingredient in ingredients))
    return Entry(
        kinds=[f"{ingredient.kind}: {ingredient.name}" for ingredient in ingredients],
        cells=cells,
        ends=[sorted(each) for each in ends],
        after=after,
        prints=prints,
        value=value,
        home=home,
        lost=lost,
        late="late" in flags,
        haunted="haunts" in flags,
        inside="inside" in flags,
        short="memory" in broken,
    )


def _fits(look: Look, ingredients: tuple[Ingredient, ...], broken: set[str]) -> bool:
    if "resource" in look.needs and any("replaced" in ingredient.flags for ingredient in ingredients):
        return False
    return not look.needs & broken


def _lay_out(
    ingredients: tuple[Ingredient, ...], work: Work, last: bool, draw: random.Random, layout: str
) -> tuple[list[str], list[set[str]], int]:
    """The cells, how each may end, and the number of the cell with the work. ``last``: whether the work must come after the
    ingredients."""
    codes = [ingredient.filled(draw) for ingredient in ingredients]
    ends = [set(ingredient.ends) for ingredient in ingredients]
    for before, each in itertools.pairwise(ingredients):
        ends[ingredients.index(each)] |= {"ok", "error"}  # the ingredient before may prevent its effect
        ends[ingredients.index(each)] |= {"crashed", "error"} if "haunts" in before.flags else set()
    if last:
        return [*codes, work.code], [*ends, {"ok"}], len(codes) + 1
    free = all(
        ingredient.ends == {"ok"} and ingredient.kind not in ASIDE | {"ends", "forks", "pools"} for ingredient in ingredients
    )
    layouts = ["apart", "apart", "before", "together", "loop", "between"]
    match layout or draw.choice(layouts + ["behind"] * free):
        case "before":  # in the cell of the first ingredient
            return [f"{work.code}\n{codes[0]}", *codes[1:]], ends, 1
        case "behind":
            return [*codes[:-1], f"{codes[-1]}\n{work.code}"], ends, len(codes)
        case "together":
            both = set().union(*ends)
            if len(codes) > 1:
                both |= {"interrupted", "killed"}  # one may wait for something that another removed
            if sum(ingredient.kind == "signals" for ingredient in ingredients) > 1:
                both.add("crashed")  # one may remove the handler of a signal that another sends
            return [work.code, "\n".join(codes)], [{"ok"}, both if len(codes) > 1 else ends[0]], 1
        case "loop" if (
            not any(ingredient.kind in SLOW for ingredient in ingredients)
            and not any(each & {"interrupted", "killed"} for each in ends)
            and draw.random() < 0.3
        ):
            return [work.code, *codes, LOOP], [{"ok"}, *ends, {"interrupted"}], 1
        case "between" if len(codes) > 1 and free:
            return [codes[0], work.code, *codes[1:]], [ends[0], {"ok"}, *ends[1:]], 2
    return [work.code, *codes], [{"ok"}, *ends], 1


def _ask(
    work: Work, ask: str, looks: list[Look], draw: random.Random, may_print: bool, shows_nothing: bool
) -> tuple[str, str, str, str]:
    """The cell that comes after, what it always prints, what it prints of the work, and the name that is undefined without the
    work."""
    names = {"g": 0}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(work.code, "work", "exec"), names)
        value = eval(ask, names)
    seen = "".join(f"{look.prints}\n" for look in looks)
    style = draw.choice(["echo", "echo", "name", *["print"] * may_print])
    if shows_nothing:
        code, expected = f"print({ask})\npass", _printed(ask, value)  # so that the last statement is no expression
    elif style == "print":
        code, expected = f"print({ask})", _printed(ask, value)
    elif style == "name":
        code, expected = f"result_of_work = {ask}\nresult_of_work", repr(value)
    else:
        code, expected = ask, repr(value)
    return "\n".join([*(look.code for look in looks), code]), seen, expected, _first_lost(work, ask)


def _printed(ask: str, value: object) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        if isinstance(ast.parse(ask, mode="eval").body, ast.Tuple):
            print(*value)  # type: ignore[misc]
        else:
            print(value)
    return out.getvalue().removesuffix("\n")


def _first_lost(work: Work, ask: str) -> str:
    """The first undefined name if the work's cell has not run."""
    try:
        eval(ask, {})
    except NameError as error:
        return str(error.name)
    raise ValueError(f"{ask!r} uses no variable of {work.code!r}")


def main() -> None:
    """Write ``cells.jsonl``."""
    FILE.write_text("".join(f"{entry.to_json()}\n" for entry in entries()), "utf-8")


if __name__ == "__main__":
    main()
