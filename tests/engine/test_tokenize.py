"""Tokenizers: nothing is lost, nothing is ambiguous, the same text gives the same tokenizer."""

import itertools
import json
import multiprocessing
import re
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import InputError, tokenize
from tests.engine.test_corpora import run_python

TEXTS = [
    "def add(a, b):\n    return a + b\n\n" * 20,
    "the cat sat on the mat; the naïve café 世界 🙂\r\n\t" * 20,
    "for i in range(100):\n    print(i, i**2)\n" * 20,
]


@pytest.fixture(scope="module", params=["bytes", "bpe-300"])
def tokenizer(request):
    return tokenize.train(request.param, TEXTS)


@pytest.fixture(scope="module")
def bpe():
    return tokenize.train("bpe-300", TEXTS)


@given(st.text() | st.text(alphabet="the cat\n\r\t defab()<|>endoftext\u00e9\u4e16\U0001f642\0", max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_text_comes_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert ids.dtype == tokenizer.dtype == np.uint16
    assert not (ids == tokenizer.separator).any() and (ids < tokenizer.vocab_size).all()


@pytest.mark.parametrize("text", [tokenize.SEPARATOR, "a<|endoftext|>b", "<s></s><pad>", " \u00a0\ufeff\u2028"])
def test_names_of_special_tokens_are_text(tokenizer, tmp_path, text):
    tokenizer.save(tmp_path / "tokenizer.json")
    for which in (tokenizer, tokenize.load(tmp_path / "tokenizer.json")):
        ids = which.encode(text)
        assert which.separator not in ids
        assert which.decode(ids) == text


@given(st.lists(st.integers(0, 256), max_size=40))
@settings(deadline=None)
def test_any_ids_decode(tokenizer, ids):
    text = tokenizer.decode(ids)
    assert isinstance(text, str) and tokenize.SEPARATOR not in text


def test_ids_that_name_nothing_are_left_out(tokenizer):
    """A model may have more ids than its tokenizer."""
    assert tokenizer.decode([tokenizer.vocab_size, *tokenizer.encode("ab"), 60_000]) == "ab"


def test_bytes_are_bytes():
    ids = tokenize.Bytes().encode("aé")
    assert ids.tolist() == [0x61, 0xC3, 0xA9]
    assert tokenize.Bytes().decode([256, 0x61, 256, 0xC3]) == "a\ufffd"


def test_bpe_against_merges_applied_by_hand(bpe):
    """Encoding as the published algorithm has it: split into words, then apply the merges by rank, pair by pair."""
    saved = json.loads(bpe.to_json())["model"]
    ranks = {tuple(m.split(" ")) if isinstance(m, str) else tuple(m): i for i, m in enumerate(saved["merges"])}
    # GPT-2's pattern, for ASCII; and its printable stand-ins for space and newline.
    words = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+")
    stand_in = {" ": "Ġ", "\n": "Ċ", "\t": "ĉ"}
    text = "the cat: for i in range(7):\n    print(the, a + b)\n\n\treturn the  mat"
    expected = []
    for word in words.findall(text):
        parts = [stand_in.get(c, c) for c in word]
        while len(parts) > 1:
            rank, i = min((ranks.get(pair, 10**9), i) for i, pair in enumerate(itertools.pairwise(parts)))
            if rank == 10**9:
                break
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        expected += [saved["vocab"][part] for part in parts]
    assert bpe.encode(text).tolist() == expected
    assert len(expected) < len(text) / 1.5


def test_bpe_vocabulary(bpe):
    vocab = json.loads(bpe.to_json())["model"]["vocab"]
    assert bpe.vocab_size == 300 == len(set(vocab.values()))
    assert len({token for token in vocab if len(token) == 1}) == 256  # every byte, in the texts or not
    assert vocab[tokenize.SEPARATOR] == bpe.separator
    # Texts too poor for so many merges give a smaller vocabulary.
    assert tokenize.train("bpe-5000", ["ab ab"]).vocab_size < 265


def test_bpe_is_deterministic_across_processes(bpe):
    code = (
        "import sys, json; from engine import tokenize;print(tokenize.train('bpe-300', json.loads(sys.argv[1])).digest)"
    )
    digests = {run_python(code, json.dumps(TEXTS), PYTHONHASHSEED=str(i)).stdout.strip() for i in (1, 2)}
    assert digests == {bpe.digest}
    assert tokenize.train("bpe-300", TEXTS[:2]).digest != bpe.digest


def test_saved_and_loaded(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    json.loads(path.read_text())
    again = tokenize.load(path)
    assert type(again) is type(tokenizer)
    assert (again.digest, again.vocab_size, again.separator) == (
        tokenizer.digest, tokenizer.vocab_size, tokenizer.separator,
    )  # fmt: skip
    for text in TEXTS:
        np.testing.assert_array_equal(again.encode(text), tokenizer.encode(text))


def test_batch_is_each_text_alone(tokenizer):
    texts = [*TEXTS, "", "x"]
    for ids, text in zip(tokenizer.encode_batch(texts), texts, strict=True):
        np.testing.assert_array_equal(ids, tokenizer.encode(text))


def test_half_a_surrogate_pair_is_refused(tokenizer):
    with pytest.raises(InputError, match="half a surrogate pair"):
        tokenizer.encode("a\ud800b")


@pytest.mark.parametrize("content", ["", "{}", "[1]", "not json", '{"model": {}}'])
def test_not_a_tokenizer(tmp_path, content):
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(InputError, match=r"t\.json is not a tokenizer") as error:
        tokenize.load(tmp_path / "t.json")
    assert "\n" not in str(error.value)


def _encode_in_child(bpe, queue):
    queue.put(bpe.encode_batch(TEXTS)[0].tolist())


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
def test_forked_child_encodes_without_deadlock_or_warning(bpe, capfd):
    expected = bpe.encode_batch(TEXTS * 8)[0].tolist()  # the library's threads, if any, have run before the fork
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python's and jax's own warnings about forking
        child = context.Process(target=_encode_in_child, args=(bpe, queue))
        child.start()
    try:
        assert queue.get(timeout=30) == expected
    finally:
        child.kill()
        child.join()
    assert "huggingface/tokenizers" not in capfd.readouterr().err
