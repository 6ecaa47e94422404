"""A page on which people ask posteriors, and the JSON behind it: what `stepseer serve` serves.

    GET /                      the page
    GET /api/posteriors        what can be asked, and what each answers about
    GET /api/answer?posterior=steplaw&params=7e9&tokens=1.4e12&level=0.9[&lr=..&batch_tokens=..][&params_active=..]
                               the answer, the curves around it, and what else the law can say there

It only reads. Nothing on the page comes from elsewhere.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np

from laws.allocation import allocate
from laws.errors import InputError
from laws.forms import get as form_of
from laws.posterior import Posterior, Quantity

POINTS = 61  # of a curve
DRAWS = 400  # of a curve and of a region: enough to draw by
BEYOND = 0.5  # decades that curves go on beyond the fitted range and the question
WITHIN = (0.001, 0.003, 0.01)  # regrets whose regions are drawn
ANSWERS = ("lr", "batch_tokens", "loss")

Query = dict[str, Any]  # column -> number (recipe: its name)


def answer(posterior: Posterior, query: Query, level: float) -> dict[str, Any]:
    """What the law says at one scale: per quantity median, low and high; warnings. With lr and batch_tokens in the
    query also their regret."""
    scale = {name: value for name, value in query.items() if name not in ("lr", "batch_tokens")}
    found = posterior.predict(**scale)
    quantities = {name: found.quantities[name] for name in ANSWERS if name in found.quantities}
    warnings = found.warnings
    if len(scale) < len(query):
        regret = posterior.regret(**query)
        quantities["regret"], warnings = regret, regret.warnings
    return {name: _summary(q, level) for name, q in quantities.items()} | {"law": posterior.law, "warnings": warnings}


def curves(posterior: Posterior, query: Query, level: float) -> dict[str, Any]:
    """The answer along tokens and along params, the rest as asked: column -> "x" and, per quantity, lists."""
    scale = {name: value for name, value in query.items() if name not in ("lr", "batch_tokens")}
    made = {}
    for column in ("tokens", "params"):
        low, high = posterior.meta["ranges"][column]
        ends = np.log10([min(low, scale[column]), max(high, scale[column])]) + np.array([-BEYOND, BEYOND])
        x = np.logspace(max(ends[0], 3), min(ends[1], 19), POINTS)
        if column == "params" and "params_active" in scale:
            x = x[x >= scale["params_active"]]
        found = posterior.predict(**(scale | {column: x}), n_draws=_few(posterior))
        kept = {name: _summary(found.quantities[name], level) for name in ANSWERS if name in found.quantities}
        made[column] = {"x": x, "fitted": [low, high], **kept}
    return made


def regions(posterior: Posterior, query: Query) -> list[dict[str, Any]]:
    """steplaw: the settings within each expected regret of WITHIN, as outlines [point, (lr, batch_tokens)]."""
    scale = {name: value for name, value in query.items() if name not in ("lr", "batch_tokens")}
    found: list[dict[str, Any]] = []
    for within in WITHIN:
        try:
            good = posterior.settings(**scale, within=within, n_draws=_few(posterior))
        except InputError:  # no setting is that surely good
            continue
        found.append({"within": within, "best": good.best, "expected": good.expected, "outline": good.region})
    return found


def budget(posterior: Posterior, query: Query, level: float) -> dict[str, Any] | None:
    """Loss laws of params and tokens: what the same compute, 6 N D, is best spent on; None where it is no budget."""
    flops = 6.0 * query["params"] * query["tokens"]
    try:
        found = allocate(posterior, flops=flops, n_draws=_few(posterior))
    except InputError:  # next to nothing, or more than anybody has: the loss is answered all the same
        return None
    return {
        "flops": flops,
        "params": found.recommended_params,
        "tokens": found.recommended_tokens,
        "loss": _summary(found.recommended_loss, level),
        "own": _summary(found.params, level),
        "curve": {name: found.curve[name].to_numpy() for name in ("params", "mean", "low", "high")},
        "warnings": found.warnings,
    }


def about(name: str, posterior: Posterior) -> dict[str, Any]:
    """What the page needs to know of a posterior before it asks."""
    meta = posterior.meta
    return {
        "name": name,
        "law": posterior.law,
        "runs": meta.get("rows", 0) - meta.get("excluded", 0),
        "source": meta.get("source", ""),
        "citation": meta.get("citation", ""),
        "ranges": meta["ranges"],
        "needs": list(form_of(posterior.law).COVARIATES),
        "optional": list(meta.get("optional", {})),
        "recipes": meta.get("recipes", []),
    }


def reply(posteriors: Mapping[str, Posterior], asked: Mapping[str, str]) -> dict[str, Any]:
    """/api/answer. Raises InputError for what can't be asked."""
    fields = dict(asked)
    name = fields.pop("posterior", "")
    if name not in posteriors:
        raise InputError(f"no posterior {name!r} here; there are {', '.join(posteriors)}")
    posterior = posteriors[name]
    level = _number("level", fields.pop("level", "0.9"))
    if not 0 < level < 1:
        raise InputError(f"level is {level:g}; give a number between 0 and 1")
    if not {"params", "tokens"} <= fields.keys():
        raise InputError("params and tokens are both needed")
    if ("lr" in fields) != ("batch_tokens" in fields):
        raise InputError("lr and batch_tokens go together: a setting is both")
    query: Query = {key: value if key == "recipe" else _number(key, value) for key, value in fields.items()}
    made = answer(posterior, query, level) | {"curves": curves(posterior, query, level)}
    if posterior.law == "steplaw":
        made["regions"] = regions(posterior, query)
    elif not form_of(posterior.law).COVARIATES:
        made["budget"] = budget(posterior, query, level)
    return made


def make_server(posteriors: Mapping[str, Posterior], host: str, port: int) -> ThreadingHTTPServer:
    """A server that is bound but does not serve yet: call `serve_forever`. port 0: a free one. Raises InputError."""

    @lru_cache(maxsize=256)
    def answered(asked: tuple[tuple[str, str], ...]) -> bytes:
        return _json(reply(posteriors, dict(asked)))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            if not self._is_ours():
                self._send(HTTPStatus.FORBIDDEN, "text/plain", b"this address is not served here\n")
            elif url.path == "/":
                self._send(HTTPStatus.OK, "text/html", page())
            elif url.path == "/api/posteriors":
                self._send(HTTPStatus.OK, "application/json", _json([about(*item) for item in posteriors.items()]))
            elif url.path == "/api/answer":
                try:
                    found = answered(tuple(sorted(parse_qsl(url.query))))
                except InputError as error:
                    self._send(HTTPStatus.BAD_REQUEST, "application/json", _json({"error": str(error)}))
                else:
                    self._send(HTTPStatus.OK, "application/json", found)
            else:
                self._send(HTTPStatus.NOT_FOUND, "text/plain", b"there is /, /api/posteriors and /api/answer\n")

        def _is_ours(self) -> bool:
            """Another site's name that points at this machine is none of ours (DNS rebinding)."""
            named = (self.headers.get("Host") or "").rsplit(":", 1)[0]
            return host not in ("127.0.0.1", "localhost") or named in ("127.0.0.1", "localhost")

        def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Security-Policy", "default-src 'self' 'unsafe-inline'; img-src data:")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet: the page says what is wrong."""

    try:
        return ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise InputError(f"cannot listen on {host}:{port} ({error.strerror}); give another --port") from None


def page() -> bytes:
    return resources.files("laws").joinpath("web.html").read_bytes()


def _few(posterior: Posterior) -> int:
    return min(DRAWS, len(next(iter(posterior.draws.values()))))


def _summary(quantity: Quantity, level: float) -> dict[str, Any]:
    low, high = quantity.interval(level)
    return {"median": quantity.median, "low": low, "high": high}


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{name} is {text!r}; give a number such as 7e9") from None


def _json(value: Any) -> bytes:
    return json.dumps(_plain(value), allow_nan=False).encode()


def _plain(value: Any) -> Any:
    """Strict JSON: what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
