"""Candidates from a model behind an OpenAI-compatible endpoint: chat completions, with retries, a budget and a cache.

What it returns is text; programs in it run only in the sandbox.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from experiments.code.ctf.build import Candidate
from experiments.code.ctf.problems import Pair, Problem
from experiments.errors import InputError

RETRIED = (408, 409, 429, 500, 502, 503, 504)
MAX_ANSWER = 4 << 20  # bytes of a reply that are read
LONGEST_WAIT_S = 60.0

RULES = """\
You write counterfactual partners of programming problems. Given a statement and its {language} solution, change both:
1. Change the statement as little as possible: at most {share:.0%} of its characters, counted as an edit distance.
2. The change is one of meaning, not of word order, synonyms, names or punctuation.
3. The right solution changes as much as possible: its algorithm, data structures, control flow or boundaries.
4. The problem stays solvable and about as hard; every input of the original is still valid; {form}.
Answer with one JSON object and nothing else: {{"reasoning": [steps], "statement": text, "solution": program}}."""


class SpentError(Exception):
    """The budget does not allow another request."""


@dataclass
class Endpoint:
    """url: up to and with the version, such as http://localhost:8000/v1. key: sent as a bearer token, if there is one.
    max_requests, max_tokens: the budget, of what is really sent; cached answers are free. sleep: waits, in seconds."""

    url: str
    model: str
    key: str = ""
    max_requests: int = 1000
    max_tokens: int = 2_000_000
    cache: Path | None = None
    retries: int = 5
    timeout_s: float = 120.0
    temperature: float = 1.0
    sleep: Callable[[float], None] = time.sleep
    requests: int = 0
    tokens: int = 0
    cached: int = 0
    failed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"--endpoint is {self.url!r}; write an address such as http://localhost:8000/v1")
        if self.key and any(not 32 < ord(c) < 127 for c in self.key):
            raise InputError("the endpoint's key has characters that no HTTP header may have; is it whole?")

    def chat(self, messages: Sequence[Mapping[str, str]], number: int = 0) -> str:
        """The text of the answer. number: of answers to the same messages. Raises SpentError without budget, InputError
        for an endpoint that refuses, cannot be reached or speaks another protocol."""
        body = {"model": self.model, "messages": list(messages), "temperature": self.temperature, "n": 1}
        name = hashlib.sha256(json.dumps([self.url, body, number], sort_keys=True).encode()).hexdigest()
        file = None if self.cache is None else self.cache / f"{name}.json"
        if file is not None and (text := _kept(file)) is not None:
            self.cached += 1
            return text
        reply = self._post(body)
        try:
            text = reply["choices"][0]["message"]["content"] or ""
            self.tokens += int((reply.get("usage") or {}).get("total_tokens") or 0)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise InputError(f"{self.url} answered, but not as chat completions do: {str(reply)[:200]}") from None
        if file is not None:
            _keep(file, text)
        return str(text)

    def _post(self, body: Mapping[str, Any]) -> Any:
        url = f"{self.url.rstrip('/')}/chat/completions"
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        data = json.dumps(body).encode()
        for attempt in range(self.retries + 1):
            if self.requests >= self.max_requests or self.tokens >= self.max_tokens:
                raise SpentError(f"the budget is spent: {self.requests} requests, {self.tokens} tokens")
            self.requests += 1
            wait = min(LONGEST_WAIT_S, 2.0**attempt) * random.uniform(0.5, 1.0)
            try:
                with _OPENER.open(urllib.request.Request(url, data, headers), timeout=self.timeout_s) as reply:
                    content = reply.read(MAX_ANSWER + 1)
                if len(content) <= MAX_ANSWER:
                    return json.loads(content)
                problem = f"an answer of more than {MAX_ANSWER} bytes"
            except urllib.error.HTTPError as error:
                said = error.read(300).decode("utf-8", "replace")
                problem = f"{error.code} {error.reason}: {' '.join(said.split())}"
                if error.code not in RETRIED:
                    raise InputError(f"{url} refuses: {problem}") from None
                asked = error.headers.get("Retry-After", "")
                if asked.isdigit():
                    wait = min(LONGEST_WAIT_S, float(asked))
            except (OSError, HTTPException) as error:  # not there, cut off, or silent
                problem = str(getattr(error, "reason", error)) or type(error).__name__
            except ValueError:
                problem = "what it answers is not JSON"
            if attempt < self.retries:
                self.sleep(wait)
        raise InputError(f"{url} did not answer in {self.retries + 1} tries; last: {problem}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key goes to the address that the user named, and to no other."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def _kept(file: Path) -> str | None:
    try:
        text = json.loads(file.read_text(encoding="utf-8"))["text"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there, or torn: asked again
    return text if isinstance(text, str) else None


def _keep(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, suffix=".part")
    with os.fdopen(handle, "w", encoding="utf-8") as part:
        json.dump({"text": text}, part)
    os.replace(name, file)


def candidates(
    endpoint: Endpoint, problems: Sequence[Problem], count: int, examples: Sequence[Pair], epsilon: float, seed: int = 0
) -> list[tuple[Problem, list[Candidate]]]:
    """`count` rewrites of each problem, asked with four of `examples` drawn for each request. Answers without both
    texts are left out, by name in `endpoint.failed`; where the budget ends, so does the list."""
    found: list[tuple[Problem, list[Candidate]]] = []
    for problem in problems:
        offered: list[Candidate] = []
        try:
            for number in range(count):
                rng = random.Random(f"{seed} {problem.problem_id} {number}")
                shown = rng.sample(list(examples), min(4, len(examples)))
                made = read_answer(endpoint.chat(_messages(problem, shown, epsilon), number), problem)
                if made is None:
                    endpoint.failed.append(problem.problem_id)
                else:
                    offered.append(replace(made, source=endpoint.model))
        except SpentError:
            if offered:
                found.append((problem, offered))
            break
        found.append((problem, offered))
    return found


def _messages(problem: Problem, examples: Sequence[Pair], epsilon: float) -> list[dict[str, str]]:
    form = (f"the solution defines {problem.entry_point} with the same arguments" if problem.entry_point
            else "the solution reads the same standard input")  # fmt: skip
    said = [{"role": "system", "content": RULES.format(language=problem.language, share=epsilon, form=form)}]
    for pair in examples:
        answer = {"reasoning": [pair.edit], "statement": pair.partner.statement, "solution": pair.partner.solution}
        said += [{"role": "user", "content": _asked(pair.original)},
                 {"role": "assistant", "content": json.dumps(answer)}]  # fmt: skip
    return [*said, {"role": "user", "content": _asked(problem)}]


def _asked(problem: Problem) -> str:
    return json.dumps({"statement": problem.statement, "solution": problem.solution})


def read_answer(text: str, problem: Problem) -> Candidate | None:
    """The candidate in an answer: a JSON object with both texts, alone, fenced, or among other words."""
    start, end = text.find("{"), text.rfind("}")
    try:
        values = json.loads(text[start : end + 1], strict=False)
        statement, solution = values["statement"], values["solution"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not (isinstance(statement, str) and isinstance(solution, str) and statement.strip() and solution.strip()):
        return None
    reasoning = values.get("reasoning")
    edit = " ".join(map(str, reasoning)) if isinstance(reasoning, list) else str(reasoning or "")
    partner = replace(problem, problem_id=f"{problem.problem_id}/partner", statement=statement, solution=solution,
                      outputs=())  # fmt: skip
    return Candidate(partner, edit[:500])
