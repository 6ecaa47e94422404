"""The page's server: what it answers is what the posterior says, and what it can't answer is one line."""

import json
import threading
import urllib.error
import urllib.request
from urllib.parse import urlencode

import pytest

import laws
from laws import web


@pytest.fixture(scope="module")
def address():
    posteriors = {"steplaw": laws.load_posterior("steplaw")}
    with web.make_server(posteriors, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def get(url, **headers):
    """(status, body)"""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def ask(address, **fields):
    status, body = get(f"{address}/api/answer?{urlencode({'posterior': 'steplaw'} | fields)}")
    return status, json.loads(body)


def test_answers_are_the_posteriors(address):
    status, found = ask(address, params=7e9, tokens=1.4e12, level=0.8, lr=9e-4, batch_tokens=5e6)
    assert status == 200
    post = laws.load_posterior("steplaw")
    said = post.predict(params=7e9, tokens=1.4e12)
    assert found["lr"]["median"] == said.lr.median
    assert [found["lr"]["low"], found["lr"]["high"]] == list(said.lr.interval(0.8))
    regret = post.regret(params=7e9, tokens=1.4e12, lr=9e-4, batch_tokens=5e6)
    assert found["regret"]["median"] == regret.median
    assert found["warnings"] == regret.warnings


def test_curves_go_through_the_answer_and_regions_hold_their_best(address):
    post = laws.load_posterior("steplaw")
    low, high = post.meta["ranges"]["tokens"]
    _, found = ask(address, params=1e9, tokens=(low * high) ** 0.5)
    middle = found["curves"]["tokens"]["batch_tokens"]["median"][web.POINTS // 2]
    assert middle == pytest.approx(found["batch_tokens"]["median"], rel=0.02)  # fewer draws
    assert [r["within"] for r in found["regions"]] == list(web.WITHIN)
    for inner, outer in zip(found["regions"], found["regions"][1:]):
        assert min(p[0] for p in outer["outline"]) < min(p[0] for p in inner["outline"]) < inner["best"][0]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"params": 7, "tokens": 1e12}, "write 7e9 for billions"),
        ({"params": "many", "tokens": 1e12}, "params is 'many'"),
        ({"tokens": 1e12}, "params and tokens are both needed"),
        ({"params": 7e9, "tokens": 1e12, "lr": 1e-3}, "lr and batch_tokens go together"),
        ({"params": 7e9, "tokens": 1e12, "level": 2}, "level is 2"),
        ({"params": 7e9, "tokens": 1e12, "posterior": "mine"}, "no posterior 'mine' here"),
        ({"params": 7e9, "tokens": 1e12, "n_experts": 8}, "steplaw predicts from"),
    ],
)
def test_what_cannot_be_asked_is_one_line(address, fields, words):
    status, found = ask(address, **fields)
    assert status == 400
    assert words in found["error"] and "\n" not in found["error"]


def test_it_serves_its_own_name_and_nothing_else(address):
    assert get(f"{address}/", Host="elsewhere.example")[0] == 403
    assert get(f"{address}/../pyproject.toml")[0] == 404
    status, page = get(f"{address}/")
    assert status == 200 and "http://" not in page.replace("http://www.w3.org/2000/svg", "") and "https://" not in page


def test_a_port_in_use_is_named(address):
    port = int(address.rpartition(":")[2])
    with pytest.raises(laws.InputError, match=f"cannot listen on 127.0.0.1:{port}"):
        web.make_server({}, "127.0.0.1", port)
