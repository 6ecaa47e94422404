"""The languages that programs may be in: how each is started, and whether this machine has it.

Only interpreters and compilers under /usr are used, the one folder of programs that the sandbox shows. Where there is
no Python there, the installation that this process runs on is shown too, read-only.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from experiments.errors import InputError

PATH = "/usr/local/bin:/usr/bin:/bin"


@dataclass(frozen=True)
class Language:
    """file: the source's name; tool: the program that must be there; command: with {tool}, run beside the source."""

    file: str
    tool: str
    command: tuple[str, ...]


LANGUAGES = {
    "python": Language("main.py", "python3", ("{tool}", "-s", "main.py")),
    "javascript": Language("main.js", "node", ("{tool}", "main.js")),
    "bash": Language("main.sh", "bash", ("{tool}", "main.sh")),
    "perl": Language("main.pl", "perl", ("{tool}", "main.pl")),
    "ruby": Language("main.rb", "ruby", ("{tool}", "main.rb")),
    "lua": Language("main.lua", "lua", ("{tool}", "main.lua")),
    "c": Language("main.c", "gcc", ("/bin/sh", "-c", "{tool} -O1 -w -o main main.c -lm && exec ./main")),
    "c++": Language("main.cc", "g++", ("/bin/sh", "-c", "{tool} -O1 -w -o main main.cc && exec ./main")),
}
ALIASES = {"js": "javascript", "node": "javascript", "py": "python", "python3": "python", "sh": "bash", "cpp": "c++"}


def named(name: str) -> str:
    """The name in LANGUAGES. Raises InputError for a language that is not known."""
    found = ALIASES.get(name.lower(), name.lower())
    if found not in LANGUAGES:
        raise InputError(f"language is {name!r}; one of: {', '.join(LANGUAGES)}")
    return found


@lru_cache(maxsize=64)
def tool(name: str) -> str | None:
    """The path of the program that runs language `name` inside the sandbox, or None where it is not installed."""
    wanted = LANGUAGES[name].tool
    found = shutil.which(wanted, path=PATH)
    if found and os.path.realpath(found).startswith("/usr/"):
        return found
    if name == "python" and sys.executable:
        return str(own_python() / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}")
    return None


def own_python() -> Path:
    """The installation of the Python that runs this."""
    return Path(os.path.realpath(sys.base_prefix))


def installed() -> list[str]:
    """The languages that this machine can run."""
    return [name for name in LANGUAGES if tool(name)]


def start(name: str) -> list[str]:
    """The words that start language `name`. Raises InputError where it is not installed."""
    found = tool(name)
    if found is None:
        raise InputError(f"{name} needs {LANGUAGES[name].tool} under /usr; installed here: {', '.join(installed())}")
    return [word.format(tool=found) for word in LANGUAGES[name].command]
