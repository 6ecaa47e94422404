"""Corpora of records: JSON lines, Parquet, Arrow in both its formats, datasets saved to disk, prepared TFDS ones."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine import DataConfig, InputError, data
from engine.corpora import sources

TEXTS = [f"text {i}: " + "naïve 世界 " * (i % 7 + 3) for i in range(50)]
EMPTY = ["", "nul \0 inside"]


def as_lines(path, texts, field="text"):
    rows = [{"id": i, field: text, "language": "py" if i % 2 else ""} for i, text in enumerate(texts)]
    content = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8") as file:
        file.write(content + "\n\n")


def as_parquet(path, texts):
    pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), path, row_group_size=7)


def as_arrow(path, texts, opened=pa.ipc.new_stream):
    table = pa.table({"text": texts, "id": range(len(texts))})
    with opened(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=9)


def as_saved(folder, texts):
    """As `datasets.Dataset.save_to_disk` leaves it: two parts, named in state.json."""
    folder.mkdir()
    half = len(texts) // 2
    for i, part in enumerate((texts[:half], texts[half:])):
        as_arrow(folder / f"data-{i:05}-of-00002.arrow", part)
    names = [{"filename": f"data-{i:05}-of-00002.arrow"} for i in range(2)]
    (folder / "state.json").write_text(json.dumps({"_data_files": names}))
    (folder / "dataset_info.json").write_text("{}")


def as_splits(folder, texts):
    """`DatasetDict.save_to_disk`: the training split counts."""
    folder.mkdir()
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["test", "train"]}))
    as_saved(folder / "train", texts)
    as_saved(folder / "test", ["a text of the test split", "another"])


WAYS = {
    "runs.jsonl": as_lines,
    "runs.jsonl.gz": as_lines,
    "runs.parquet": as_parquet,
    "runs.arrow": as_arrow,
    "file.arrow": lambda path, texts: as_arrow(path, texts, pa.ipc.new_file),
    "saved": as_saved,
    "splits": as_splits,
}


@pytest.mark.parametrize("name", WAYS)
def test_every_way_gives_the_texts(name, tmp_path):
    WAYS[name](tmp_path / name, TEXTS + EMPTY + TEXTS[:5])
    found = sources.find(str(tmp_path / name))
    for split in (found.train, found.heldout):
        assert _texts(found, split) == [t for t in TEXTS if t in _texts(found, split)]  # in order
    assert sorted(_texts(found, found.train) + _texts(found, found.heldout)) == sorted(TEXTS)  # each once
    assert 1 <= len(found.heldout) < 10


def _texts(found, split):
    return [text.decode() for text in found.read(split)]


def test_the_split_does_not_depend_on_the_format_or_the_place(tmp_path):
    as_lines(tmp_path / "a.jsonl", TEXTS)
    as_parquet(tmp_path / "b.parquet", ["a new text before them", *TEXTS])
    lines, table = (sources.find(str(tmp_path / name)) for name in ("a.jsonl", "b.parquet"))
    assert set(_texts(lines, lines.heldout)) <= set(_texts(table, table.heldout))
    assert set(_texts(lines, lines.train)) <= set(_texts(table, table.train))


def test_a_folder_is_what_most_of_it_is(tmp_path):
    as_lines(tmp_path / "a.jsonl", TEXTS[:25])
    as_lines(tmp_path / "b.jsonl", TEXTS[25:])
    (tmp_path / "README.md").write_text("a word about them")
    found = sources.find(str(tmp_path))
    assert len(found.train + found.heldout) == 50
    (tmp_path / "README.md").write_text("many words. " * 2000)
    (tmp_path / "more.md").write_text("and more")
    found = sources.find(str(tmp_path))
    assert {d.path for d in found.train + found.heldout} == {"README.md", "more.md"}


def test_fields_and_languages(tmp_path):
    as_lines(tmp_path / "a.jsonl", TEXTS, field="content")
    found = sources.find(str(tmp_path / "a.jsonl"), field="content")
    assert {d.language for d in found.train} == {"py", "text"}
    with pytest.raises(InputError, match=r"a.jsonl:1 has no field 'text', but 'id', 'content', 'language'"):
        sources.find(str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "a.jsonl:2 is not JSON"),
        ("a.jsonl", b'["x"]\n', "a.jsonl:1 is no record"),
        ("a.jsonl", b'{"text": 7}\n', "'text' is no text, but '7'"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "surrogate"),
        ("a.jsonl", b'{"text": "\xff"}\n', "not UTF-8"),
        ("a.jsonl", b'{"text": "only one"}\n', "1 distinct text"),
        ("a.jsonl", b"", "no distinct text"),
        ("a.jsonl.gz", b"no gzip", "cannot read"),
        ("a.parquet", b"PAR1 no more", "damaged, or no parquet"),
        ("a.arrow", b"nothing of the kind", "damaged, or no arrow"),
        ("a.bin", b"x", "a file, and not of records"),
    ],
)
def test_what_is_no_record_is_named(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words) as refusal:
        sources.find(str(tmp_path / name))
    assert "\n" not in str(refusal.value)


def test_tokens_of_records_are_those_of_files(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets", reason="corpora of texts need tensorflow-datasets")
    monkeypatch.setenv("STEPSEER_CACHE", str(tmp_path / "cache"))
    as_lines(tmp_path / "a.jsonl", TEXTS)
    corpus = data.load(DataConfig(corpus=str(tmp_path / "a.jsonl"), seq_len=16))
    found = sources.find(str(tmp_path / "a.jsonl"))
    for split in ("train", "heldout"):
        expected = b"".join(text + b"\0" for text in found.read(getattr(found, split)))
        tokens = np.array(getattr(corpus, split))
        assert np.where(tokens == 256, 0, tokens).astype(np.uint8).tobytes() == expected


def test_a_prepared_tfds_dataset(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    from engine.corpora import builder

    (tmp_path / "texts").mkdir()
    for i, text in enumerate(TEXTS):
        (tmp_path / "texts" / f"{i:02}.txt").write_text(text)
    documents = sources.find(str(tmp_path / "texts"))
    builder.build(documents, tmp_path / "tfds")
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setattr(
        "tensorflow_datasets.builder", lambda name, **_: builder.TextFiles(documents, tmp_path / "tfds")
    )
    found = sources.find("tfds:text_files")
    assert sorted(_texts(found, found.train) + _texts(found, found.heldout)) == sorted(
        _texts(documents, documents.train)
    )


def test_nothing_is_downloaded(tmp_path):
    with pytest.raises(InputError, match="nothing is downloaded"):
        sources.find("allenai/c4")
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(InputError, match="no such dataset is prepared here"):
        sources.find("tfds:no_such_dataset")
