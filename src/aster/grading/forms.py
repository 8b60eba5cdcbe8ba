"""Compare two answers: numbers, sets, tuples, intervals, equations, matrices.

The rules for ambiguous answers are in docs/verifier.md. In doubt, two answers are different.
"""

from __future__ import annotations

from typing import Any

from aster.grading import value
from aster.grading.commands import as_matrix
from aster.grading.nodes import Node, Unreadable
from aster.grading.scalars import Outcome, scalars

MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
INFINITE = Node("const", (), "oo")
MINUS_INFINITE = Node("neg", (INFINITE,))


def compare(given: Node, wanted: Node) -> Outcome:
    """Compare a prediction with the known answer. Raises TooLarge, Undefined or Unreadable if this cannot be decided."""
    if given == wanted and not value.mentions(given, "rel"):
        return Outcome(True, "same expression")
    if inequalities(given) and inequalities(wanted):
        if value.names(given) != value.names(wanted):
            return Outcome(False, "inequalities of different names")
        if given.kind == wanted.kind == "rel" and len(given.data) == len(wanted.data) == 1:
            return _two_relations(given, wanted)
    given, wanted = normal(given), normal(wanted)
    if given == wanted:
        return Outcome(True, "same expression")
    return _compare(given, wanted)


def inequalities(node: Node) -> bool:
    """Return whether the node is an inequality or a list of inequalities."""
    if node.kind == "list":
        return all(inequalities(item) for item in node.args)
    return node.kind == "rel" and any(operator in MIRRORED for operator in node.data)


def normal(node: Node) -> Node:
    """Return a normal form: ``x in S`` as S, an equation chain as one equation, bounds as an interval, ``a pm b`` as a list."""
    node = _signs(node)
    if node.kind == "rel":
        return _relation(node)
    if node.kind == "list":
        return _list(Node("list", tuple(normal(item) for item in node.args), node.data))
    if node.kind in ("set", "union"):
        items: list[Node] = []
        for item in map(normal, node.args):
            # A plus-minus in a set means two elements.
            items.extend(item.args if item.kind == "list" and item.data == "or" else (item,))
        return Node(node.kind, tuple(items), node.data)
    if node.kind == "tuple" and node.data == "[]":
        return as_matrix(node) or node
    if node.kind == "symbol" and node.data == "R":
        return Node("interval", (MINUS_INFINITE, INFINITE), "()")
    return node


def _signs(node: Node) -> Node:
    """Return ``a pm b`` as a list of both values. In one expression all upper signs belong together, and all lower signs."""
    if node.kind in ("list", "set", "tuple", "union", "matrix") or not value.mentions(node, "pm"):
        return node
    if node.kind == "rel":
        *others, last = node.args
        both = _signs(last)
        if both.kind != "list" or any(value.mentions(side, "pm") for side in others):
            raise Unreadable("plus-minus on both sides")
        return Node("list", tuple(Node("rel", (*others, side), node.data) for side in both.args), "or")
    return Node("list", (_signed(node, False), _signed(node, True)), "or")


def _signed(node: Any, lower: bool) -> Any:
    if isinstance(node, tuple) and not isinstance(node, Node):
        return tuple(_signed(part, lower) for part in node)
    if not isinstance(node, Node):
        return node
    arguments = tuple(_signed(argument, lower) for argument in node.args)
    if node.kind == "pm":
        return Node("neg", arguments) if (node.data == "\\mp") != lower else arguments[0]
    return Node(node.kind, arguments, node.data)


def is_name(node: Node) -> bool:
    """Return whether the node is a name or a bracket of names."""
    return node.kind == "name" or (
        node.kind == "tuple" and node.data == "()" and all(part.kind == "name" for part in node.args)
    )


def _relation(node: Node) -> Node:
    sides, operators = node.args, node.data
    if operators == ("in",):
        if not is_name(sides[0]):
            raise Unreadable("a membership whose left side is not a name")
        # The set is the answer, whatever the name is.
        return normal(sides[1])
    if "~" in operators:
        # The exact value is the answer, not its approximation.
        cut = operators.index("~")
        if any(operator not in ("=", "~") for operator in operators):
            raise Unreadable("an approximation among other relations")
        return normal(Node("rel", sides[: cut + 1], operators[:cut]) if cut else sides[0])
    if all(operator == "=" for operator in operators):
        return _equation(sides)
    return _bounds(sides, operators) or node


def _equation(sides: tuple[Node, ...]) -> Node:
    if len(sides) == 2 and not is_name(sides[0]) and is_name(sides[1]) and not value.names(sides[0]):
        sides = (sides[1], sides[0])
    rest = sides[1:] if is_name(sides[0]) or value.names(sides[0]) else sides
    last = normal(sides[-1])
    for other in rest[:-1]:
        # x = 2 + 3 = 5 states one value, but 2 + 3 = 6 states none.
        if not equal(other, last):
            raise Unreadable("an equation whose sides differ")
    if len(rest) == len(sides):
        return normal(sides[0])
    if sides[0].kind == "tuple" and last.kind == "tuple" and last.data == "()" and len(sides[0].args) == len(last.args):
        pairs = sorted(zip((name.data for name in sides[0].args), last.args, strict=True), key=lambda pair: str(pair[0]))
        return Node("values", tuple(pair[1] for pair in pairs), tuple(pair[0] for pair in pairs))
    return Node("rel", (sides[0], last), ("=",))


def _bounds(sides: tuple[Node, ...], operators: tuple[str, ...]) -> Node | None:
    """Return the bounds of one name as an interval; None if they are not such bounds."""
    if any(operator not in MIRRORED for operator in operators):
        return None
    if len(sides) == 3 and operators[0][0] == operators[1][0] and sides[1].kind == "name":
        low, high, (first, second) = sides[0], sides[2], operators
        if first[0] == ">":
            low, high, first, second = high, low, second, first
        if value.names(low) or value.names(high):
            return None
        return Node("interval", (low, high), ("[" if first.endswith("=") else "(") + ("]" if second.endswith("=") else ")"))
    if len(sides) != 2:
        return None
    (left, right), operator = sides, operators[0]
    if right.kind == "name":
        left, right, operator = right, left, MIRRORED[operator]
    if left.kind != "name" or value.names(right):
        return None
    closed = operator.endswith("=")
    if operator[0] == ">":
        return Node("interval", (right, INFINITE), "[)" if closed else "()")
    return Node("interval", (MINUS_INFINITE, right), "(]" if closed else "()")


def _list(node: Node) -> Node:
    """Return a list with items ``name = value`` as a tuple in the order of the names, or as the values of one name."""
    items: list[Node] = []
    for item in node.args:
        items.extend(item.args if item.kind == "list" and item.data == "or" else (item,))
    node = Node("list", tuple(items), node.data)
    if node.data == "or" and all(item.kind in ("interval", "union") for item in items):
        return Node("union", tuple(items))
    stated = [item for item in items if item.kind == "rel" and item.data == ("=",) and item.args[0].kind == "name"]
    if len(items) == 1:
        return items[0]
    if not stated:
        return node
    names = [item.args[0].data for item in stated]
    if len(stated) == len(items):
        if len(set(names)) == 1 and node.data != "and":
            return Node("list", tuple(item.args[1] for item in items), "or")
        if len(set(names)) == len(names):
            if len({name.partition("_")[0] for name in names}) == 1:
                return Node("list", tuple(item.args[1] for item in items), "or")
            ordered = sorted(items, key=lambda item: str(item.args[0].data))
            return Node("values", tuple(item.args[1] for item in ordered), tuple(sorted(names)))
    if len(stated) == 1 and items[0] is stated[0] and not any(value.names(item) for item in items[1:]):
        # "x = 1, 2" means two values of x.
        return Node("list", (items[0].args[1], *items[1:]), "or")
    return node


def _compare(given: Node, wanted: Node) -> Outcome:
    kinds = {given.kind, wanted.kind}
    if kinds == {"values"}:
        if given.data != wanted.data:
            return Outcome(False, "values of different names")
        return _in_order(given.args, wanted.args, "values")
    if "values" in kinds:
        named, other = (given, wanted) if given.kind == "values" else (wanted, given)
        if (other.kind == "tuple" and other.data == "()") or (other.kind == "list" and other.data == ","):
            return _in_order(named.args, other.args, "values in the order of their names")
        return _different(given, wanted)
    if "rel" in kinds:
        return _compare_relations(given, wanted)
    if kinds <= {"list", "set"}:
        # In lists repetition matters: 1, 1, 2 is not 1, 2, 2. In sets it does not.
        counted = kinds == {"list"} and "or" not in (given.data, wanted.data)
        return _in_any_order(given.args, wanted.args, "set", counted)
    if "list" in kinds or "set" in kinds:
        return _list_and_other(given, wanted)
    if kinds <= {"tuple", "interval"}:
        if given.data != wanted.data and not (len(given.args) > 2 and "<" not in given.data + wanted.data):
            return Outcome(False, f"brackets differ: {given.data} and {wanted.data}")
        return _in_order(given.args, wanted.args, "tuple or interval")
    if kinds == {"union"}:
        return _in_any_order(_members(given), _members(wanted), "union")
    if kinds == {"matrix"}:
        return _matrices(given, wanted)
    if kinds == {"matrix", "tuple"}:
        return _column(given, wanted)
    if kinds & {"tuple", "interval", "union", "matrix", "dots", "symbol"}:
        return _different(given, wanted)
    return scalars(given, wanted)


def _members(node: Node) -> tuple[Node, ...]:
    members: list[Node] = []
    for member in node.args:
        # The union of [1, 2] and {3, 4} is the union of [1, 2], {3} and {4}.
        members.extend(Node("set", (one,)) for one in member.args) if member.kind == "set" else members.append(member)
    return tuple(members)


def _different(given: Node, wanted: Node) -> Outcome:
    return Outcome(False, f"different kinds: {KINDS.get(given.kind, 'number')} and {KINDS.get(wanted.kind, 'number')}")


KINDS = {
    "list": "several values", "set": "set", "tuple": "tuple or interval", "union": "union", "matrix": "matrix",
    "rel": "relation", "interval": "interval", "values": "values of names", "dots": "dots", "symbol": "set",
}  # fmt: skip


def _list_and_other(given: Node, wanted: Node) -> Outcome:
    several, other = (given, wanted) if given.kind in ("list", "set") else (wanted, given)
    if len(several.args) == 1:
        return _compare(several.args[0], other) if several is given else _compare(other, several.args[0])
    bracketless = several.kind == "list" and several.data == "," and other.kind == "tuple"
    # As the known answer, [1, 2] is an interval. As a prediction it may be a list printed by Python.
    if bracketless and (other.data in ("()", "<>") or (other.data == "[]" and (other is given or len(other.args) > 2))):
        return _in_order(several.args, other.args, "tuple without its brackets")
    return _different(given, wanted)


def _in_order(given: tuple[Node, ...], wanted: tuple[Node, ...], what: str) -> Outcome:
    if len(given) != len(wanted):
        return Outcome(False, f"{len(given)} entries, not {len(wanted)}")
    for place, (one, two) in enumerate(zip(given, wanted, strict=True), 1):
        if not equal(one, two):
            return Outcome(False, f"entry {place} differs")
    return Outcome(True, f"equal {what}")


def _in_any_order(given: tuple[Node, ...], wanted: tuple[Node, ...], what: str, counted: bool = False) -> Outcome:
    """Compare elements in any order. ``counted``: each element must occur equally often on both sides."""
    if len(given) > 40 or len(wanted) > 40:
        return Outcome(False, "too many elements to compare")
    if any(item.kind == "dots" for item in (*given, *wanted)):
        return _in_order(given, wanted, "list with dots")
    if counted:
        left = list(wanted)
        for one in given:
            place = next((index for index, two in enumerate(left) if equal(one, two)), None)
            if place is None:
                return Outcome(False, "an element that is not in the answer, or not as often")
            del left[place]
        return Outcome(not left, "an element of the answer is missing" if left else f"equal {what}")
    for one in given:
        if not any(equal(one, two) for two in wanted):
            return Outcome(False, "an element that is not in the answer")
    for two in wanted:
        if not any(equal(one, two) for one in given):
            return Outcome(False, "an element of the answer is missing")
    return Outcome(True, f"equal {what}")


def equal(one: Node, two: Node) -> bool:
    """Return whether two entries are equal."""
    one, two = normal(one), normal(two)
    return one == two or _compare(one, two).equal


def _matrices(given: Node, wanted: Node) -> Outcome:
    if len(given.args) != len(wanted.args) or len(given.args[0]) != len(wanted.args[0]):
        return Outcome(False, "matrices of different shapes")
    flat = [tuple(entry for row in matrix.args for entry in row) for matrix in (given, wanted)]
    return _in_order(flat[0], flat[1], "matrix")


def _column(given: Node, wanted: Node) -> Outcome:
    matrix, other = (given, wanted) if given.kind == "matrix" else (wanted, given)
    if other.data in ("()", "<>") and all(len(row) == 1 for row in matrix.args):
        return _in_order(tuple(row[0] for row in matrix.args), other.args, "vector")
    return _different(given, wanted)


# --- relations


def _compare_relations(given: Node, wanted: Node) -> Outcome:
    if given.kind == wanted.kind == "rel":
        return _two_relations(given, wanted)
    relation, other = (given, wanted) if given.kind == "rel" else (wanted, given)
    if relation.data != ("=",):
        return _different(given, wanted)
    left, right = relation.args
    if not states_value(left, right):
        return Outcome(False, "an equation that states no value")
    if value.names(left) & value.names(other):
        return Outcome(False, "a value that depends on its own name")
    outcome = _compare(right, other) if relation is given else _compare(other, right)
    return Outcome(outcome.equal, f"value of a name, {outcome.reason}")


def states_value(left: Node, right: Node) -> bool:
    """Return whether ``left = right`` states a value: yes for ``x = 5``, ``m + n = 70``; no for ``2x = 10``, ``3x + y = 0``."""
    if is_name(left):
        return True
    if left.kind == "fn" and left.data in ("abs", "sin", "cos", "tan") and left.args[0].kind == "name":
        return right.kind != "num" or right.data[0] != 0
    if right.kind == "num" and right.data[0] == 0:
        return False
    return len(value.names(left)) > 1 and not value.mentions(left, "num") and not value.names(right)


def _two_relations(given: Node, wanted: Node) -> Outcome:
    if given.args == wanted.args and given.data == wanted.data:
        return Outcome(True, "same expression")
    if given.data == wanted.data == ("=",):
        (left, right), (other_left, other_right) = given.args, wanted.args
        simple = is_name(left) and is_name(other_left)
        if simple and (left == other_left or left.kind == "tuple" or other_left.kind == "tuple"):
            if left != other_left:
                return Outcome(False, "values of different names")
            outcome = _compare(normal(right), normal(other_right))
            return Outcome(outcome.equal, f"value of a name, {outcome.reason}")
        if simple and not (value.names(right) or value.names(other_right)):
            return Outcome(False, "values of different names")
        return _multiples(given, wanted, positive=False)
    if len(given.data) == len(wanted.data) == 1:
        (one,), (two,) = given.data, wanted.data
        if one == two == "!=":
            return _multiples(given, wanted, positive=False)
        if one in MIRRORED and two in MIRRORED:
            if one == two:
                return _multiples(given, wanted, positive=True)
            if MIRRORED[one] == two:
                return _multiples(given, Node("rel", wanted.args[::-1], (one,)), positive=True)
        return Outcome(False, "different relations")
    if given.data == wanted.data and all(equal(a, b) for a, b in zip(given.args, wanted.args, strict=True)):
        return Outcome(True, "equal sides")
    return Outcome(False, "different relations")


def _multiples(given: Node, wanted: Node, positive: bool) -> Outcome:
    first, second = (Node("add", (node.args[0], Node("neg", (node.args[1],)))) for node in (given, wanted))
    if value.proportional(first, second, positive):
        return Outcome(True, "the same relation up to a factor")
    return Outcome(False, "different relations")
