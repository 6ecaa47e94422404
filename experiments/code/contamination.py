"""Is a benchmark's task in a training text?

A generated task is, by its words or by its solution, whole: they are short, and all of a family are alike but for a
few words. Any other task is where NGRAM words in a row of its prompt or solution are (13: Brown et al. 2020).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from experiments.code import families, formats
from experiments.code.tasks import Task

NGRAM = 13


class Benchmark:
    """Tasks that training texts must not hold."""

    def __init__(self, tasks: Sequence[Task]):
        made = [task for task in tasks if task.family in families.FAMILIES]
        self._lines = {_flat(formats.statement(task)) for task in made}
        self._lines |= {_flat(f"return {task.reference}") for task in made if len(task.reference) > 4}
        self._runs: set[tuple[str, ...]] = set()
        for task in tasks:
            if task.family not in families.FAMILIES:
                for text in (task.prompt, task.reference):
                    self._runs |= set(_runs(text))

    def in_text(self, text: str) -> bool:
        """Whether `text` holds any of them."""
        if any(self._ends(line) for line in text.splitlines()):
            return True
        return bool(self._runs) and any(run in self._runs for run in _runs(text))

    def in_task(self, task: Task) -> bool:
        """Whether a solved example asks, or answers, what one of them does."""
        return _flat(formats.statement(task)) in self._lines or _flat(f"return {task.reference}") in self._lines

    def _ends(self, line: str) -> bool:
        """Whether a line ends with what is asked: comment marks and the like may be before it."""
        flat = _flat(line)
        starts = [at for at in (flat.find("f(x), x a"), flat.find("f x, x a"), flat.find("return ")) if at >= 0]
        return any(flat[at:] in self._lines for at in starts)


def clean(texts: Iterable[str], benchmark: Benchmark) -> tuple[list[str], int]:
    """(the texts without any of the tasks, how many were dropped)."""
    kept, dropped = [], 0
    for text in texts:
        if benchmark.in_text(text):
            dropped += 1
        else:
            kept.append(text)
    return kept, dropped


def _flat(text: str) -> str:
    return " ".join(text.split()).rstrip(";")


def _runs(text: str) -> Iterable[tuple[str, ...]]:
    words = re.findall(r"\w+|[^\w\s]", text)
    return zip(*(words[i:] for i in range(NGRAM)))
