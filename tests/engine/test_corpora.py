"""Which files make a corpus, their split, and their TFDS dataset."""

import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engine import InputError
from engine.corpora import sources, synthetic

REPOSITORY = Path(__file__).resolve().parents[2]


def run_python(code: str, *args: object, **env: str) -> subprocess.CompletedProcess:
    """A fresh interpreter that can import the project."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        cwd=REPOSITORY, env={**os.environ, **env}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def write_texts(folder: Path, n: int = 60) -> dict[str, str]:
    """n distinct text files under folder; {path: text}."""
    rng = np.random.default_rng(0)
    words = ["naïve", "def", "return", "self", "世界", "=", "(", ")", ":", "import", "α", "🙂"]
    words += ["".join(rng.choice(list("etaoins"), 5)) for _ in range(200)]
    texts = {}
    for i in range(n):
        path = f"{'abc'[i % 3]}/file_{i:03}.{('py', 'txt', 'md')[i % 3]}"
        texts[path] = f"{i}\r\n" + " ".join(rng.choice(words, 200)) + "\n"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(texts[path].encode())
    return texts


@pytest.fixture(scope="module")
def stdlib():
    return sources.find("stdlib")


def test_stdlib_splits_share_no_path_and_no_content(stdlib):
    def facts(documents):
        contents = [(stdlib.root / d.path).read_bytes() for d in documents]
        return {d.path for d in documents}, {hashlib.sha256(c).digest() for c in contents}, sum(map(len, contents))

    train_paths, train_contents, train_bytes = facts(stdlib.train)
    heldout_paths, heldout_contents, heldout_bytes = facts(stdlib.heldout)
    assert train_paths and heldout_paths
    assert not train_paths & heldout_paths
    assert not train_contents & heldout_contents
    assert len(train_paths) == len(train_contents) == len(stdlib.train)  # nor anything twice within a split
    assert 0.02 < len(heldout_paths) / len(train_paths) < 0.1
    assert 0.01 < heldout_bytes / train_bytes < 0.15
    assert train_bytes > 5e6


def test_stdlib_is_source_written_by_people(stdlib):
    paths = {d.path for d in (*stdlib.train, *stdlib.heldout)}
    assert {"argparse.py", "json/decoder.py", "asyncio/events.py"} <= paths
    folders = {part for path in paths for part in path.split("/")[:-1]}
    assert not folders & {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
    assert not {"pydoc_data/topics.py", "encodings/cp037.py"} & paths
    assert {d.language for d in stdlib.train} == {"python"}


def test_folder_takes_text_and_leaves_the_rest(tmp_path):
    texts = write_texts(tmp_path, 6)
    (tmp_path / "image.txt").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "photo.jpg").write_text("named as no text")
    (tmp_path / "z_copy.py").write_bytes(texts["a/file_000.py"].encode())
    for hidden in (".git/x.txt", "__pycache__/x.py", "node_modules/x.js", ".hidden.txt"):
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / hidden).write_text(f"not wanted {hidden}")
    (tmp_path / "broken.txt").symlink_to(tmp_path / "nowhere.txt")
    (tmp_path / "loop").symlink_to(tmp_path)
    found = sources.find(str(tmp_path))
    languages = {d.path: d.language for d in (*found.train, *found.heldout)}
    assert languages == {path: "python" if path.endswith(".py") else "text" for path in texts}


def test_split_is_by_path_and_new_texts_move_none(tmp_path):
    write_texts(tmp_path)
    before = sources.find(str(tmp_path))
    assert [d.path for d in before.heldout] == sorted(d.path for d in before.heldout) != []
    (tmp_path / "a" / "another.py").write_text("new = 1\n")
    after = sources.find(str(tmp_path))
    assert set(before.train) <= set(after.train) and set(before.heldout) <= set(after.heldout)
    assert before.digest != after.digest


def test_digest_follows_contents_and_paths_alone(tmp_path):
    write_texts(tmp_path / "one")
    write_texts(tmp_path / "two")
    digest = sources.find(str(tmp_path / "one")).digest
    assert sources.find(str(tmp_path / "two")).digest == digest
    file = tmp_path / "two" / "a" / "file_003.py"
    original = file.read_bytes()
    file.write_bytes(original + b"#")
    assert sources.find(str(tmp_path / "two")).digest != digest
    file.write_bytes(original)
    assert sources.find(str(tmp_path / "two")).digest == digest
    file.rename(file.with_name("file_003b.py"))
    assert sources.find(str(tmp_path / "two")).digest != digest


@pytest.mark.parametrize("n", [2, 3, 5])
def test_small_folders_hold_out_a_file(tmp_path, n):
    write_texts(tmp_path, n)
    found = sources.find(str(tmp_path))
    assert len(found.train) + len(found.heldout) == n
    assert found.train and found.heldout


def test_errors_are_one_line_and_name_the_folder(tmp_path):
    (tmp_path / "one.txt").write_text("alone")
    (tmp_path / "empty").mkdir()
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "a.txt").write_bytes(b"\0\1")
    for corpus, words in {
        str(tmp_path / "nowhere"): "no such file or folder, and not a known corpus (stdlib, manual, synthetic)",
        "stdlbi": "no such file or folder, and not a known corpus (stdlib, manual, synthetic)",
        str(tmp_path / "one.txt"): "a file, and not of records",
        str(tmp_path / "empty"): "no UTF-8 text or source files in it",
        str(tmp_path / "image"): "no UTF-8 text or source files in it",
        str(tmp_path): "only one distinct text file in it (one.txt)",
    }.items():
        with pytest.raises(InputError) as error:
            sources.find(corpus)
        message = str(error.value)
        assert repr(corpus) in message and words in message and "\n" not in message


def test_python_without_library_sources_is_told(tmp_path, monkeypatch):
    (tmp_path / "os.pyc").write_bytes(b"\0")
    monkeypatch.setattr(sources.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(InputError, match=r"no source of its standard library in .*; set data.corpus to a folder"):
        sources.find("stdlib")


def test_dataset_needs_no_tensorflow_and_no_network_and_says_nothing(tmp_path):
    """The TFDS dataset, made and read in a fresh process that dies at the first connection or name look-up."""
    pytest.importorskip("tensorflow_datasets")
    texts = write_texts(tmp_path / "texts")
    code = """
import json, os, sys
from pathlib import Path
def guard(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        os.write(2, f"network: {event} {args}".encode())
        os._exit(3)
sys.addaudithook(guard)
from engine.corpora import builder, sources
documents = sources.find(sys.argv[1])
folder = Path(sys.argv[2])
builder.build(documents, folder)
dataset = builder.read(documents, folder)
out = {split: [{k: v.decode() for k, v in source[i].items()} for i in range(len(source))]
       for split, source in dataset.items()}
out["tensorflow"] = [name for name in sys.modules if name.split(".")[0] == "tensorflow"]
Path(sys.argv[3]).write_text(json.dumps(out))
"""
    done = run_python(code, tmp_path / "texts", tmp_path / "dataset", tmp_path / "out.json")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    out = json.loads((tmp_path / "out.json").read_text())
    assert out.pop("tensorflow") == []
    assert set(out) == {"train", "heldout"}
    documents = sources.find(str(tmp_path / "texts"))
    for split in ("train", "heldout"):
        expected = [{"path": d.path, "text": texts[d.path], "language": d.language} for d in getattr(documents, split)]
        assert out[split] == expected
    assert list((tmp_path / "dataset").rglob("*.array_record*"))
    assert not list((tmp_path / "dataset").rglob("*.tfrecord*"))


def test_file_that_changes_while_it_is_read_is_refused(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    from engine.corpora import builder

    write_texts(tmp_path / "texts", 5)
    documents = sources.find(str(tmp_path / "texts"))
    changed = documents.root / documents.train[0].path
    changed.write_text("something else")
    with pytest.raises(Exception, match=r"changed while it was read; run again") as error:
        builder.build(documents, tmp_path / "dataset")
    assert isinstance(error.value, InputError) and changed.name in str(error.value)


def test_synthetic_chain_is_what_it_says():
    """Counted transitions: four successors a token, the stated probabilities, uniform marginal, stated entropy."""
    vocab_size = 101
    train, heldout = synthetic.tokens(vocab_size)
    assert len(train) == synthetic.TRAIN_TOKENS and len(heldout) == synthetic.HELDOUT_TOKENS
    counts = np.zeros((vocab_size, vocab_size))
    np.add.at(counts, (train[:-1], train[1:]), 1)
    chances = counts / counts.sum(1, keepdims=True)
    followers = synthetic.successors(vocab_size)
    np.testing.assert_allclose(
        np.take_along_axis(chances, followers, 1),
        np.tile(synthetic.PROBABILITIES, (vocab_size, 1)), atol=0.02,
    )  # fmt: skip
    assert ((counts > 0).sum(1) == 4).all()
    np.testing.assert_allclose(counts.sum(1) / counts.sum(), 1 / vocab_size, rtol=0.05)
    ours = -sum(p * math.log(p) for p in synthetic.PROBABILITIES)
    assert synthetic.synthetic_entropy() == pytest.approx(ours, rel=1e-12)
    # Held-out text of the same language: its cross-entropy under the transitions counted on the train split.
    assert -np.log(chances[heldout[:-1], heldout[1:]]).mean() == pytest.approx(ours, abs=0.01)
    assert not np.array_equal(train[: len(heldout)], heldout)


def test_the_manual_is_prose_about_python():
    found = sources.find("manual")
    assert len(found.train) > 40 and len(found.heldout) >= 2
    assert not {d.digest for d in found.train} & {d.digest for d in found.heldout}
    texts = [text.decode() for text in found.read(found.train)]
    assert 3e5 < sum(map(len, texts)) < 1e6
    words = " ".join(texts).split()
    assert words.count("the") > 0.03 * len(words)  # English; of the library's source less than one in a hundred is
