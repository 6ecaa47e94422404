"""Mixtures of corpora: shares, order, and what doesn't change it."""

import numpy as np
import pytest

from engine import DataConfig, InputError, data, mixture
from engine.mixture import SLOTS, Mixture


def test_names_and_weights(tmp_path, monkeypatch):
    assert mixture.parse("stdlib") == [("stdlib", 1.0)]
    assert mixture.parse("tfds:lm1b") == [("tfds:lm1b", 1.0)]
    assert mixture.parse("stdlib:3, tfds:lm1b:1") == [("stdlib", 0.75), ("tfds:lm1b", 0.25)]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b:1").mkdir()
    assert mixture.parse("a,b:1") == [("a,b:1", 1.0)]  # a folder that is there


@pytest.mark.parametrize(
    "corpus", ["a,b", "a:1,b", "a:1,:2", "a:1,b:0", "a:1,b:-1", "a:1,b:nan", "a:1,b:1e-6", "a:1,a:2"]
)
def test_what_is_no_mixture_is_refused(corpus):
    with pytest.raises(InputError, match=r"data\.corpus"):
        mixture.parse(corpus)


@pytest.mark.parametrize("shares", [(0.7, 0.3), (1 / 3, 1 / 3, 1 / 3), (0.999, 0.001), (0.5, 0.2495, 0.2495, 0.001)])
def test_shares_are_exact_in_every_thousand(shares):
    slots = mixture.slots(shares)
    assert sum(slots) == SLOTS and np.abs(np.array(slots) / SLOTS - shares).max() < 1.01 / SLOTS
    part, place = mixture.assign(slots, 7, np.arange(5 * SLOTS, dtype=np.uint64))
    for j, n in enumerate(slots):
        assert (np.bincount(np.flatnonzero(part == j) // SLOTS, minlength=5) == n).all()
        np.testing.assert_array_equal(place[part == j], np.arange(5 * n))  # every sequence of it, in turn


def test_any_sequence_is_known_by_itself():
    slots = mixture.slots((0.6, 0.4))
    whole = mixture.assign(slots, 3, np.arange(3000, dtype=np.uint64))
    some = np.array([0, 999, 1000, 1234, 2999, 10**12], np.uint64)
    part, place = mixture.assign(slots, 3, some)
    np.testing.assert_array_equal(part[:-1], whole[0][some[:-1].astype(int)])
    np.testing.assert_array_equal(place[:-1], whole[1][some[:-1].astype(int)])
    assert abs(int(place[-1]) - 10**12 * slots[part[-1]] / SLOTS) <= SLOTS
    other, _ = mixture.assign(slots, 4, np.arange(1000, dtype=np.uint64))
    assert 300 < (other != whole[0][:1000]).sum() < 700  # another seed, another order


def test_sequences_are_those_of_the_corpora():
    """The batches, however cut, hold each corpus's own stream."""
    parts = tuple(np.arange(n, dtype=np.uint16) + offset for n, offset in ((400, 0), (200, 1000)))
    both = Mixture(parts, mixture.slots((0.7, 0.3)))
    how = {"seq_len": 8, "seed": 5}
    whole = data.sequences(both, first=0, count=SLOTS, **how)
    for j, n in enumerate(both.slots):
        alone = data.sequences(parts[j], seq_len=8, seed=5 + j, first=0, count=n)
        np.testing.assert_array_equal(whole[(whole[:, 0] >= 1000) == bool(j)], alone)
    pieces = [data.sequences(both, first=k, count=37, **how) for k in range(0, SLOTS, 37)]
    np.testing.assert_array_equal(np.concatenate(pieces)[:SLOTS], whole)


def test_from_texts(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets", reason="corpora of texts need tensorflow-datasets")
    monkeypatch.setenv("STEPSEER_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for name, letters, n in (("a", "abcdefgh", 60), ("b", "stuvwxyz", 30)):
        (tmp_path / name).mkdir()
        for i in range(n):
            (tmp_path / name / f"{i}.txt").write_text("".join(rng.choice(list(letters), 200)))
    corpus = data.load(DataConfig(corpus=f"{tmp_path}/a:0.8,{tmp_path}/b:0.2", seq_len=16, tokenizer="bpe-270"))
    assert corpus.train.slots == (800, 200) and corpus.vocab_size <= 270
    a, b = (corpus.tokenizer.decode(np.array(part)) for part in corpus.train.parts)
    assert not set(a) & set(b)
    heldout = corpus.tokenizer.decode(corpus.heldout)
    assert 0.15 < sum(letter in b for letter in heldout) / len(heldout) < 0.25  # held out in the same proportions
    with pytest.raises(InputError, match="synthetic tokens are no text"):
        data.load(DataConfig(corpus="stdlib:1,synthetic:1"))
    with pytest.raises(InputError, match=f"{tmp_path}/b' has"):
        data.load(DataConfig(corpus=f"{tmp_path}/a:0.8,{tmp_path}/b:0.2", seq_len=6000))
