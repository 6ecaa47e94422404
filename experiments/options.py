"""Reading the command line: argparse whose errors are one line, and numbers as people write them (7B, 1.4T, 3e-4)."""

from __future__ import annotations

import argparse
import difflib
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from experiments.errors import InputError

_SUFFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_NUMBER = re.compile(r"([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:e[+-]?\d+)?)([kmbgt]?)", re.IGNORECASE)


class Parser(argparse.ArgumentParser):
    """One command's options. Errors are InputErrors; misspelt options get a suggestion; negative values are values."""

    def __init__(self, command: str, description: str, *, examples: str = ""):
        super().__init__(
            prog=f"stepseer {command}",
            description=description,
            epilog=examples and "examples:\n" + examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._options = {"--help", "-h"}
        self.add_argument("--json", action="store_true", help="print JSON instead of a table")

    def add_argument(self, *names: str, **kwargs: Any) -> Any:
        action = super().add_argument(*names, **kwargs)
        if hasattr(self, "_options"):
            self._options |= {name for name in names if name.startswith("-")}
        return action

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Raises InputError, in one line, on anything that does not fit."""
        words: list[str] = []
        for word in argv:
            option = word.partition("=")[0]
            if words and words[-1] in self._options and _NUMBER.fullmatch(word) and word.startswith("-"):
                words[-1] += f"={word}"  # argparse would take -7e9 for an option
                continue
            if option.startswith("--") and len(option) > 2 and option not in self._options:
                known = nearest(option, self._options) or f"; options: {', '.join(sorted(self._options))}"
                raise InputError(f"no option {option!r} in {self.prog!r}{known}")
            words.append(word)
        return self.parse_args(words)

    def error(self, message: str) -> NoReturn:
        """argparse calls this; it prints usage and exits there by default."""
        raise InputError(f"{message}; see: {self.prog} --help")


def number(text: str) -> float | None:
    """'7e9', '7B', '1.4T', '125M', '512k' as a number; None where it is none."""
    match = _NUMBER.fullmatch(text.strip())
    return float(match[1]) * _SUFFIXES[match[2].lower()] if match else None


def positive(text: str, option: str) -> float:
    """A `number` above 0. Raises InputError naming option and value."""
    value = number(text)
    if value is None:
        raise InputError(f"{option} is {text!r}; write a number, such as 7e9 or 7B")
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{option} is {text!r}; it must be finite and above 0")
    return value


def positives(text: str, option: str) -> list[float]:
    """Comma-separated numbers above 0."""
    return [positive(part, option) for part in text.split(",")]


def share(text: str, option: str, example: str) -> float:
    """'0.1%' or '0.001' as a number above 0."""
    number = text.removesuffix("%")
    if _NUMBER.fullmatch(number.strip()) is None:
        raise InputError(f"{option} is {text!r}; write a share, such as {example}")
    return positive(number, option) / (100 if number != text else 1)


def whole(text: str, option: str) -> int:
    """A whole number above 0."""
    if not (text.isdigit() and int(text) > 0):
        raise InputError(f"{option} is {text!r}; it must be a whole number above 0")
    return int(text)


def fraction(text: str, option: str) -> float:
    """A number strictly between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise InputError(f"{option} is {text!r}; it must be between 0 and 1, such as 0.9")
    return value


def settings(pairs: Sequence[str]) -> dict[str, str]:
    """['optim.lr=1e-3', ...] as a dict. Raises InputError for one without '=' or given twice."""
    found: dict[str, str] = {}
    for pair in pairs:
        field, equals, value = pair.partition("=")
        if not (equals and field and value):
            raise InputError(f"--set {pair!r}; write field=value, such as optim.lr=1e-3")
        if field in found:
            raise InputError(f"--set gives {field} twice ({found[field]} and {value}); give it once")
        found[field] = value
    return found


def one_of(text: str, known: Sequence[str], option: str) -> str:
    """`text` if it is one of `known`. Raises InputError with the nearest otherwise."""
    if text not in known:
        raise InputError(f"{option} is {text!r}{nearest(text, known) or '; one of: ' + ', '.join(known)}")
    return text


def nearest(word: str, known: Iterable[str]) -> str:
    """'; did you mean X?', or nothing when nothing is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.55)
    return f"; did you mean {near[0]}?" if near else ""
