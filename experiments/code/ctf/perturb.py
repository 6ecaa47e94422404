"""The embedded generator: edits of a solution's syntax tree, each with the edit of the statement that matches it.

A template's solution has slots: nodes of its tree that may be replaced by others of their type, and each replacement
has its words in the statement. A filling chooses one option of every slot. A seed problem is a filling; its candidate
partners are the fillings that differ in one slot or in two.
"""

from __future__ import annotations

import ast
import hashlib
import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from experiments.code.ctf.problems import Problem
from experiments.errors import InputError

SHARE = 3  # one filling in so many is for benchmarks; the others are for training
PARTS = ("benchmark", "training")
JOIN = " ;; "  # of the parts of an option that stands for several nodes

Filling = tuple[int, ...]

_COMPARE: dict[str, type[ast.cmpop]] = {"<": ast.Lt, "<=": ast.LtE, ">": ast.Gt, ">=": ast.GtE, "==": ast.Eq,
                                        "!=": ast.NotEq}  # fmt: skip
_ARITH: dict[str, type[ast.operator]] = {"+": ast.Add, "-": ast.Sub, "*": ast.Mult, "//": ast.FloorDiv, "%": ast.Mod}
_BOOL: dict[str, type[ast.boolop]] = {"and": ast.And, "or": ast.Or}


@dataclass(frozen=True)
class Slot:
    """kind: compare, arith, bool (an operator), name, constant, or expr (a whole expression; several, if the option is
    several joined by " ;; "). options: what the node may be, in Python -> the words in the statement; the first is that
    of the template's solution."""

    kind: str
    options: Mapping[str, str]


@dataclass(frozen=True)
class Template:
    """statement, with {slot} for each slot's words. solution: of the first options; a slot is the first node in the
    source, not taken by a slot before, that is as its first option says. inputs: arguments of calls, as literals."""

    name: str
    level: int
    statement: str
    solution: str
    slots: Mapping[str, Slot]
    inputs: tuple[str, ...]

    def fillings(self) -> Iterator[Filling]:
        return itertools.product(*(range(len(slot.options)) for slot in self.slots.values()))


def part_of(template: Template, filling: Filling) -> str:
    """benchmark or training, by a digest: what is asked in one is never shown in the other."""
    digest = hashlib.sha256(f"{template.name} {filling}".encode()).digest()
    return PARTS[int.from_bytes(digest[:8], "big") % SHARE != 0]


def problem(template: Template, filling: Filling) -> Problem:
    """The filling's problem; its outputs are not known yet."""
    chosen = {name: list(slot.options.items())[i] for (name, slot), i in zip(template.slots.items(), filling)}
    statement = template.statement.format(**{name: words for name, (_, words) in chosen.items()})
    tree = ast.parse(template.solution)
    edits = [(slot, _nodes(tree, template)[name], chosen[name][0]) for name, slot in template.slots.items()]
    name = f"{template.name}/{'.'.join(map(str, filling))}"
    return Problem(
        problem_id=name,
        statement=statement,
        solution=ast.unparse(ast.fix_missing_locations(_edited(tree, edits))) + "\n",
        entry_point=next(node.name for node in tree.body if isinstance(node, ast.FunctionDef)),
        inputs=template.inputs,
        family=template.name,
        level=template.level,
        group=name,
    )


def seeds(templates: tuple[Template, ...], count: int, part: str, seed: int) -> list[tuple[Template, Filling]]:
    """`count` fillings of `part`, evenly over templates, of each at most half of what it has: the others are for their
    partners. Raises InputError where there are not so many."""
    rng = random.Random(f"{part} {seed}")
    streams = []
    for template in templates:
        own = [filling for filling in template.fillings() if part_of(template, filling) == part]
        rng.shuffle(own)
        streams.append([(template, filling) for filling in own[: (len(own) + 1) // 2]])
    turns = itertools.chain.from_iterable(itertools.zip_longest(*streams))
    found = [turn for turn in turns if turn is not None]
    if count > len(found):
        raise InputError(f"the templates have {len(found)} seed problems for {part}; --count is {count}")
    return found[:count]


def neighbours(template: Template, filling: Filling, part: str) -> list[tuple[Filling, str]]:
    """Fillings of `part` that differ in one slot or two, and what differs."""
    slots = list(template.slots.items())
    found = []
    for other in template.fillings():
        changed = [i for i, (a, b) in enumerate(zip(filling, other)) if a != b]
        if not 1 <= len(changed) <= 2 or part_of(template, other) != part:
            continue
        words = []
        for i in changed:
            name, slot = slots[i]
            codes = list(slot.options)
            words.append(f"{name} ({slot.kind}): {codes[filling[i]]} -> {codes[other[i]]}")
        found.append((other, "; ".join(words)))
    return found


def _nodes(tree: ast.AST, template: Template) -> dict[str, list[ast.AST]]:
    """Slot -> its nodes, one for each part of its first option. Raises InputError for one that is not there."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, (ast.expr, ast.stmt))]
    places = sorted(nodes, key=lambda node: (node.lineno, node.col_offset))
    taken: set[int] = set()
    found: dict[str, list[ast.AST]] = {}
    for name, slot in template.slots.items():
        found[name] = []
        for form in next(iter(slot.options)).split(JOIN):
            node = next((n for n in places if id(n) not in taken and _form(slot.kind, n) == form), None)
            if node is None:
                raise InputError(f"template {template.name} has no {slot.kind} {form!r} for its slot {name}")
            taken.add(id(node))
            found[name].append(node)
    return found


def _form(kind: str, node: ast.AST) -> str | None:
    """What a node is, as options say it; None for one of another kind."""
    if kind == "compare" and isinstance(node, ast.Compare) and len(node.ops) == 1:
        return next((symbol for symbol, op in _COMPARE.items() if type(node.ops[0]) is op), None)
    if kind == "arith" and isinstance(node, (ast.BinOp, ast.AugAssign)):
        return next((symbol for symbol, op in _ARITH.items() if type(node.op) is op), None)
    if kind == "bool" and isinstance(node, ast.BoolOp):
        return next(symbol for symbol, op in _BOOL.items() if type(node.op) is op)
    if kind == "name" and isinstance(node, ast.Name):
        return node.id
    if kind == "constant" and isinstance(node, ast.Constant):
        return repr(node.value)
    if kind == "expr" and isinstance(node, ast.expr):
        return ast.unparse(node)
    return None


def _edited(tree: ast.AST, edits: list[tuple[Slot, list[ast.AST], str]]) -> ast.AST:
    """The tree, changed in place, with every slot's nodes as its option says."""
    to_do = {
        id(node): (slot.kind, code) for slot, nodes, option in edits for node, code in zip(nodes, option.split(JOIN))
    }

    class Edit(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            kind, code = to_do.get(id(node), ("", ""))
            if kind in ("name", "constant", "expr"):
                return ast.parse(code, mode="eval").body
            node = self.generic_visit(node)
            if kind == "compare":
                node.ops = [_COMPARE[code]()]  # type: ignore[attr-defined]
            elif kind in ("arith", "bool"):
                node.op = {**_ARITH, **_BOOL}[code]()  # type: ignore[attr-defined]
            return node

    return Edit().visit(tree)
