"""Values as people write them: counts such as 100k, 7B or 1.4T, and strings as the type of a config's field."""

from __future__ import annotations

import re
import typing
from typing import Any

from engine.errors import InputError

_SUFFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
NUMBER = re.compile(r"([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:e[+-]?\d+)?)([kmbgt]?)", re.IGNORECASE)


def number(text: str) -> float | None:
    """'7e9', '7B', '1.4T', '125M', '512k' as a number; None where it is none."""
    match = NUMBER.fullmatch(text.strip())
    return float(match[1]) * _SUFFIXES[match[2].lower()] if match else None


def _counted(value: Any, kind: Any, name: str) -> float:
    """A number; whole ones and tokens may be written as `number` reads them."""
    found = number(value) if isinstance(value, str) and (kind is int or name == "tokens") else None
    return float(value) if found is None else found


def coerce(value: Any, hint: Any, name: str) -> Any:
    """`value`, a string among others, as the type `hint` of the field `name`. Raises InputError naming both."""
    kinds = typing.get_args(hint) or (hint,)
    if type(None) in kinds and value in (None, "none"):
        return None
    if value is None:
        raise InputError(f"{name} is empty; it needs a value of type {kinds[0].__name__}")
    kind = kinds[0]
    try:
        if kind is bool:
            return {"true": True, "false": False, "1": True, "0": False}[str(value).lower()]
        if kind is int:
            number = _counted(value, kind, name)
            if number != int(number):
                raise ValueError
            return int(number)
        if kind is float:
            return _counted(value, kind, name)
        return str(value)
    except (ValueError, KeyError, TypeError, OverflowError):
        raise InputError(f"{name} is {value!r}; it must be of type {kind.__name__}") from None
