"""The endpoint's client, against a server of this process that speaks the protocol, and misbehaves when told to."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from experiments import cli
from experiments.code import isolation
from experiments.code.ctf import endpoint as endpoint_lib
from experiments.code.ctf.endpoint import Endpoint, SpentError, candidates, read_answer
from experiments.code.ctf.problems import Pair, Problem, read_pairs
from experiments.errors import InputError

isolated = pytest.mark.skipif(isolation.probe().reason is not None, reason="no isolation")

DOUBLE = Problem("d", "Write f(x), which returns x doubled.", "def f(x):\n    return 2 * x\n", "f", ("1", "5"))
TRIPLE = {"reasoning": ["doubled -> tripled"], "statement": "Write f(x), which returns x tripled.",
          "solution": "def f(x):\n    return 3 * x\n"}  # fmt: skip


def reply(text: str, tokens: int = 10) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}],
                       "usage": {"total_tokens": tokens}}).encode()  # fmt: skip


@pytest.fixture
def server():
    """A server whose `script` says what comes next: (status, headers, body), the last for good."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            made.asked.append((self.path, dict(self.headers), json.loads(body)))
            status, headers, text = made.script.pop(0) if len(made.script) > 1 else made.script[0]
            if status == 0:
                self.connection.close()  # cut off
                return
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(text))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST

        def log_message(self, *args: object) -> None:
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.script, made.asked = [(200, {}, reply("hello"))], []  # type: ignore[attr-defined]
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def client(server, **more) -> tuple[Endpoint, list[float]]:
    waits: list[float] = []
    return Endpoint(f"http://127.0.0.1:{server.server_port}/v1/", "tiny", **{"sleep": waits.append, **more}), waits


ASKED = [{"role": "user", "content": "hi"}]


def test_what_is_sent(server):
    one, _ = client(server, key="secret", temperature=0.5)
    assert one.chat(ASKED) == "hello"
    ((path, headers, body),) = server.asked
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    assert body == {"model": "tiny", "messages": ASKED, "temperature": 0.5, "n": 1}
    assert (one.requests, one.tokens, one.cached) == (1, 10, 0)
    one, _ = client(server)
    one.chat(ASKED)
    assert "Authorization" not in server.asked[-1][1]


def test_retries_wait_longer_each_time_and_as_long_as_asked(server):
    broken = [(503, {}, b"busy"), (0, {}, b""), (200, {}, b"no json"), (429, {"Retry-After": "17"}, b"slow down")]
    server.script = [*broken, (200, {}, reply("there"))]
    one, waits = client(server)
    assert one.chat(ASKED) == "there" and one.requests == 5
    assert 0.5 <= waits[0] <= 1 <= waits[1] <= 2 <= waits[2] <= 4 and waits[3] == 17


def test_it_gives_up_with_one_line(server):
    server.script = [(500, {}, b"oh\nno")]
    one, waits = client(server, retries=2)
    with pytest.raises(InputError, match=r"did not answer in 3 tries; last: 500 .*oh no"):
        one.chat(ASKED)
    assert len(waits) == 2
    server.script = [(401, {}, b"wrong key")]
    with pytest.raises(InputError, match="refuses: 401"):
        one.chat(ASKED)
    server.script = [(200, {}, b'{"choices": []}')]
    with pytest.raises(InputError, match="not as chat completions do"):
        one.chat(ASKED)
    server.script = [(200, {}, b"[1]")]
    with pytest.raises(InputError, match="not as chat completions do"):
        one.chat(ASKED)
    nobody = Endpoint("http://127.0.0.1:9", "m", retries=1, sleep=lambda _: None)
    with pytest.raises(InputError, match="did not answer in 2 tries"):
        nobody.chat(ASKED)


def test_the_key_is_not_sent_to_where_a_redirect_points(server):
    server.script = [(302, {"Location": f"http://localhost:{server.server_port}/elsewhere"}, b"")]
    one, _ = client(server, key="secret")
    with pytest.raises(InputError, match="refuses: 302"):
        one.chat(ASKED)
    assert [path for path, _, _ in server.asked] == ["/v1/chat/completions"]


def test_an_endless_answer_is_not_read(server, monkeypatch):
    monkeypatch.setattr(endpoint_lib, "MAX_ANSWER", 100)
    server.script = [(200, {}, b"x" * 1000)]
    one, _ = client(server, retries=1)
    with pytest.raises(InputError, match="more than 100 bytes"):
        one.chat(ASKED)


def test_the_budget_counts_what_is_sent_and_the_cache_is_free(server, tmp_path):
    one, _ = client(server, max_requests=2, cache=tmp_path / "answers")
    one.chat(ASKED)
    one.chat(ASKED, 1)
    assert one.chat(ASKED) == "hello" and (one.requests, one.cached) == (2, 1)
    with pytest.raises(SpentError, match="2 requests"):
        one.chat(ASKED, 2)
    again, _ = client(server, max_requests=1, cache=tmp_path / "answers")
    assert again.chat(ASKED, 1) == "hello" and again.requests == 0
    for file in (tmp_path / "answers").iterdir():
        file.write_text('{"text": ')  # torn
    assert again.chat(ASKED) == "hello" and again.requests == 1
    tokens, _ = client(server, max_tokens=15)
    tokens.chat(ASKED)
    tokens.chat(ASKED)
    with pytest.raises(SpentError, match="20 tokens"):
        tokens.chat(ASKED)


@pytest.mark.parametrize("text", [json.dumps(TRIPLE), f"Sure!\n```json\n{json.dumps(TRIPLE, indent=1)}\n```\nDone."])
def test_answers_are_read(text):
    found = read_answer(text, DOUBLE)
    assert found.partner.statement == TRIPLE["statement"] and found.partner.solution == TRIPLE["solution"]
    assert found.partner.inputs == DOUBLE.inputs and found.edit == "doubled -> tripled"


@pytest.mark.parametrize("text", ["", "no", "{}", '{"statement": 1, "solution": "x"}', "{" * 200_000 + "}",
                                  '{"statement": "", "solution": ""}'])  # fmt: skip
def test_answers_that_are_none(text):
    assert read_answer(text, DOUBLE) is None


def test_candidates_are_asked_with_examples_and_end_with_the_budget(server):
    example = Pair("e", DOUBLE, DOUBLE, 0.1, 0.5, 0.38, "an edit")
    server.script = [(200, {}, reply("sorry")), (200, {}, reply(json.dumps(TRIPLE)))]
    one, _ = client(server, max_requests=3)
    found = candidates(one, [DOUBLE, DOUBLE, DOUBLE], 2, [example] * 9, 0.13)
    assert [len(offered) for _, offered in found] == [1, 1] and one.failed == ["d"]
    messages = server.asked[0][2]["messages"]
    assert [m["role"] for m in messages] == ["system", *["user", "assistant"] * 4, "user"]
    assert "at most 13%" in messages[0]["content"] and "defines f" in messages[0]["content"]
    assert json.loads(messages[-1]["content"])["statement"] == DOUBLE.statement
    assert found[0][1][0].source == "tiny"


@isolated
def test_build_from_a_users_tasks(server, tmp_path, capsys, monkeypatch):
    """MBPP-like tasks; one answer is good, one is hostile, one too far."""
    tasks = tmp_path / "mbpp.jsonl"
    row = {"text": "Write a function to double a number.", "code": "def double(x):\n    return 2 * x",
           "test_list": ["assert double(2) == 4", "assert double(10) == 20"]}  # fmt: skip
    tasks.write_text("".join(json.dumps({"task_id": i, **row}) + "\n" for i in range(1)))
    prompt = '"""\nWrite a function to double a number.\n"""\n'
    mark = tmp_path / "escaped"
    hostile = f"open({str(mark)!r}, 'w').write('x')\ndef double(x):\n    return 9 * x\n"
    answers = [
        {"statement": prompt.replace("double", "dabble"), "solution": hostile},
        {"statement": prompt.replace("double", "treble"), "solution": "def double(x):\n    return 5 * x\n"},
        {"statement": "Something else.", "solution": "def double(x):\n    return 7 * x\n"},
    ]
    server.script = [(200, {}, reply(json.dumps(answer))) for answer in answers]
    monkeypatch.setenv("MY_KEY", "secret")
    url = f"http://127.0.0.1:{server.server_port}/v1"
    words = ["ctf", "build", "--tasks", str(tasks), "--endpoint", url, "--model", "m", "--candidates", "3", "--cache",
             str(tmp_path / "cache"), "--out", str(tmp_path / "p.jsonl"), "--key-env", "MY_KEY", "--json"]  # fmt: skip
    assert cli.main(words) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["endpoint"] == {"requests": 3, "tokens": 30, "cached": 0, "unreadable": 0}
    (pair,) = read_pairs(tmp_path / "p.jsonl")
    assert "assert" not in pair.original.statement and pair.source == "m"
    assert pair.partner.outputs == ("10", "50") and not mark.exists()
    assert server.asked[0][1]["Authorization"] == "Bearer secret"
    assert cli.main(words) == 0
    assert json.loads(capsys.readouterr().out)["endpoint"]["cached"] == 3
