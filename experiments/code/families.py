"""Small programming tasks, made here: a function of one argument, said in words, to be written in one expression.

A task is a chain of operations ("add 3, then double, then negate"); its level is their number. Three families: numbers,
texts and lists, in the languages that can say their operations. A chain belongs to the tasks or to the texts that a
model may be trained on, by a digest of its name, in every language alike: what is asked was never shown.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.code.languages import named
from experiments.code.tasks import Task
from experiments.errors import InputError

SHARE = 5  # one chain in so many is a task; the others are for training
LEVELS = (1, 2, 3, 4)


@dataclass(frozen=True)
class Operation:
    """words: as the prompt says it. result: its value, in Python. code: language -> an expression of {x}. c stands for
    a constant: {c} in words and code."""

    words: str
    result: Callable[[Any, Any], Any]
    code: dict[str, str]
    constants: tuple[int, ...] = (0,)


def _same(code: str, *languages: str, **others: str) -> dict[str, str]:
    return dict.fromkeys(languages, code) | others


_FOUR = ("python", "javascript", "bash", "perl")
_SMALL = (2, 3, 4, 5, 6, 7, 8, 9)
NUMBERS = (
    Operation("add {c}", lambda x, c: x + c, _same("({x} + {c})", *_FOUR), _SMALL),
    Operation("subtract {c}", lambda x, c: x - c, _same("({x} - {c})", *_FOUR), _SMALL),
    Operation("multiply by {c}", lambda x, c: x * c, _same("({x} * {c})", *_FOUR), _SMALL),
    Operation("subtract from {c}", lambda x, c: c - x, _same("({c} - {x})", *_FOUR), _SMALL),
    Operation("negate", lambda x, c: -x, _same("(-{x})", *_FOUR)),
    Operation("double", lambda x, c: 2 * x, _same("(2 * {x})", *_FOUR)),
    Operation("add one", lambda x, c: x + 1, _same("({x} + 1)", *_FOUR)),
    Operation("one if above {c} else zero", lambda x, c: int(x > c),
              _same("({x} > {c} ? 1 : 0)", *_FOUR[1:], python="(1 if {x} > {c} else 0)"), _SMALL),
)  # fmt: skip
TEXTS = (
    Operation("reverse", lambda x, c: x[::-1],
              {"python": "{x}[::-1]", "javascript": "[...{x}].reverse().join('')", "perl": "scalar(reverse({x}))"}),
    Operation("upper case", lambda x, c: x.upper(),
              {"python": "{x}.upper()", "javascript": "{x}.toUpperCase()", "perl": "uc({x})"}),
    Operation("lower case", lambda x, c: x.lower(),
              {"python": "{x}.lower()", "javascript": "{x}.toLowerCase()", "perl": "lc({x})"}),
    Operation("repeat {c} times", lambda x, c: x * c,
              {"python": "({x} * {c})", "javascript": "{x}.repeat({c})", "perl": "({x} x {c})"}, (2, 3, 4)),
    Operation("drop the first {c}", lambda x, c: x[c:],
              {"python": "{x}[{c}:]", "javascript": "{x}.slice({c})", "perl": "substr({x}, {c})"}, (1, 2, 3)),
    Operation("keep the first {c}", lambda x, c: x[:c],
              {"python": "{x}[:{c}]", "javascript": "{x}.slice(0, {c})", "perl": "substr({x}, 0, {c})"}, (2, 3, 4)),
    Operation("put {c} in front", lambda x, c: f"{c}{x}",
              {"python": "('{c}' + {x})", "javascript": "('{c}' + {x})", "perl": "('{c}' . {x})"}, _SMALL),
)  # fmt: skip
LISTS = (
    Operation("reverse", lambda x, c: x[::-1], {"python": "{x}[::-1]", "javascript": "{x}.slice().reverse()"}),
    Operation("sort", lambda x, c: sorted(x),
              {"python": "sorted({x})", "javascript": "{x}.slice().sort((a, b) => a - b)"}),
    Operation("drop the first {c}", lambda x, c: x[c:],
              {"python": "{x}[{c}:]", "javascript": "{x}.slice({c})"}, (1, 2, 3)),
    Operation("keep the first {c}", lambda x, c: x[:c],
              {"python": "{x}[:{c}]", "javascript": "{x}.slice(0, {c})"}, (2, 3, 4)),
    Operation("append {c}", lambda x, c: [*x, c],
              {"python": "({x} + [{c}])", "javascript": "{x}.concat([{c}])"}, _SMALL),
    Operation("add {c} to each", lambda x, c: [y + c for y in x],
              {"python": "[y + {c} for y in {x}]", "javascript": "{x}.map(y => y + {c})"}, _SMALL),
    Operation("keep those above {c}", lambda x, c: [y for y in x if y > c],
              {"python": "[y for y in {x} if y > {c}]", "javascript": "{x}.filter(y => y > {c})"}, _SMALL),
)  # fmt: skip
FAMILIES: dict[str, tuple[tuple[Operation, ...], tuple[Any, ...]]] = {
    "numbers": (NUMBERS, (0, 1, 5, 12, -7)),
    "texts": (TEXTS, ("Stepseer", "abcdefgh", "XyZ wVuT")),
    "lists": (LISTS, ([3, 1, 2, 9, 5], [8, 8, 4, 10, -2, 7])),
}

# language -> what is before the expression, what ends its line, what ends the function, a test, the variable
_SHAPES = {
    "python": ("# f(x), x a {kind}: {words}\ndef f(x):\n    return ", "", "", "assert f({given}) == {wanted}", "x"),
    "javascript": ("// f(x), x a {kind}: {words}\nfunction f(x) {{\n    return ", ";", "}",
                   "if (JSON.stringify(f({given})) !== JSON.stringify({wanted})) throw new Error('wrong');", "x"),
    "bash": ("# f x, x a {kind}: {words}\nf() {{ local x=$1\n    echo $(( ", " ))", "}",
             '[ "$(f {given})" = "{wanted}" ] || exit 1', "x"),
    "perl": ("# f(x), x a {kind}: {words}\nsub f {{ my ($x) = @_;\n    return ", ";", "}",
             "die unless f({given}) eq {wanted};", "$x"),
}  # fmt: skip

Chain = tuple[tuple[Operation, int], ...]


def tasks(
    count: int,
    *,
    seed: int = 0,
    families: Sequence[str] = tuple(FAMILIES),
    languages: Sequence[str] = ("python",),
    levels: Sequence[int] = LEVELS,
) -> list[Task]:
    """`count` different tasks, or as many as there are, evenly over families, languages and levels. Raises InputError
    for a name that is not known."""
    groups = [
        (family, language, level)
        for family, language, level in itertools.product(families, map(named, languages), levels)
        if spoken(family, language)
    ]
    if not groups:
        raise InputError(f"no family of {', '.join(families)} is said in {', '.join(languages)}")
    rng = random.Random(seed)
    streams = {group: _chains(group, rng.getrandbits(64)) for group in groups}
    found: list[Task] = []
    while streams and len(found) < count:
        for group in list(streams):
            chain = next(streams[group], None)
            if chain is None:
                del streams[group]
            elif len(found) < count:
                found.append(_task(*group, chain))
    return found


def texts(
    count: int,
    *,
    seed: int = 0,
    families: Sequence[str] = tuple(FAMILIES),
    languages: Sequence[str] = ("python",),
    levels: Sequence[int] = LEVELS,
) -> Iterator[str]:
    """`count` solved examples to train on, as the tasks are said, of no chain that `tasks` asks for. They repeat."""
    for task in solved(count, seed=seed, families=families, languages=languages, levels=levels):
        yield "\n".join([task.prompt + task.reference, *_SHAPES[task.language][2:3]]).rstrip() + "\n"


def solved(
    count: int,
    *,
    seed: int = 0,
    families: Sequence[str] = tuple(FAMILIES),
    languages: Sequence[str] = ("python",),
    levels: Sequence[int] = LEVELS,
) -> Iterator[Task]:
    """`count` tasks of chains that `tasks` never asks for, to train on. They repeat."""
    rng = random.Random(f"texts {seed}")
    groups = [
        (family, named(language)) for family in families for language in languages if spoken(family, named(language))
    ]
    for _ in range(count):
        family, language = rng.choice(groups)
        while True:
            chain = _drawn(family, rng.choice(list(levels)), rng)
            if not _asked(chain):
                break
        yield _task(family, language, len(chain), chain)


def spoken(family: str, language: str) -> bool:
    """Whether `language` can say a family's operations. Raises InputError for an unknown family."""
    if family not in FAMILIES:
        raise InputError(f"family is {family!r}; one of: {', '.join(FAMILIES)}")
    return language in _SHAPES and all(language in operation.code for operation in FAMILIES[family][0])


def _drawn(family: str, level: int, rng: random.Random) -> Chain:
    if level not in LEVELS:
        raise InputError(f"level is {level}; one of {', '.join(map(str, LEVELS))}")
    operations = FAMILIES[family][0]
    return tuple((o := rng.choice(operations), rng.choice(o.constants)) for _ in range(level))


def _chains(group: tuple[str, str, int], seed: int) -> Iterator[Chain]:
    """Different chains that are asked for, in a random order; ends when new ones are no longer found."""
    family, _, level = group
    rng, seen, missed = random.Random(seed), set(), 0
    while missed < 2000:
        chain = _drawn(family, level, rng)
        name = _said(chain)
        if name in seen or not _asked(chain) or _constant(family, chain):
            missed += 1
            continue
        missed = 0
        seen.add(name)
        yield chain


def _said(chain: Chain) -> str:
    return ", then ".join(operation.words.format(c=c) for operation, c in chain)


def _asked(chain: Chain) -> bool:
    digest = hashlib.sha256(_said(chain).encode()).digest()
    return int.from_bytes(digest[:8], "big") % SHARE == 0


def _results(family: str, chain: Chain) -> list[Any]:
    found = list(FAMILIES[family][1])
    for operation, c in chain:
        found = [operation.result(x, c) for x in found]
    return found


def _constant(family: str, chain: Chain) -> bool:
    """Whether the argument does not matter, and a constant would pass."""
    return len({repr(result) for result in _results(family, chain)}) == 1


def _task(family: str, language: str, level: int, chain: Chain) -> Task:
    head, line_end, end, test, expression = _SHAPES[language]
    checks = [end]
    for given, wanted in zip(FAMILIES[family][1], _results(family, chain)):
        checks.append(test.format(given=_literal(given, language), wanted=_literal(wanted, language)))
    for operation, c in chain:
        expression = operation.code[language].format(x=expression, c=c)
    words = _said(chain)
    before = head.format(kind=family.removesuffix("s"), words=words)
    return Task(
        task_id=f"{family}/{language}/{level}/{hashlib.sha256(words.encode()).hexdigest()[:10]}",
        prompt=before,
        tests="\n".join(checks),
        language=language,
        entry_point="f",
        before=before,
        family=family,
        level=level,
        stop=("\n",),
        reference=expression + line_end,
    )


def _literal(value: Any, language: str) -> str:
    """Numbers, texts without quotes, and lists are written alike, but for bash, which has no quotes here."""
    return str(value) if language == "bash" else repr(value)
