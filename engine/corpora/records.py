"""Texts that come as records: JSON lines, Parquet, Arrow, a Hugging Face dataset saved to disk, a prepared TFDS one.

A record is known as FILE:ROW and by the digest of its text; a field holds the text, and `language`, where there is such
a field, its language. Nothing is downloaded.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from engine.errors import InputError

TFDS = "tfds:"
_LINES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
_COLUMNS = (".parquet", ".arrow")
Text = tuple[str, bytes, str]  # where, UTF-8, language


def files(place: Path, texts: Iterable[str]) -> list[Path]:
    """The files of records in `place`, a file or a folder; none where it is a folder of text files (`texts`, relative),
    which has more bytes in these than in records."""
    if place.is_file():
        return [place] if place.name.endswith(_LINES + _COLUMNS) else []
    if (place / "dataset_dict.json").is_file():  # several splits by `DatasetDict.save_to_disk`: its training split
        splits = json.loads((place / "dataset_dict.json").read_text())["splits"]
        place = place / ("train" if "train" in splits else splits[0])
    if (place / "state.json").is_file():  # `Dataset.save_to_disk`
        return [place / part["filename"] for part in json.loads((place / "state.json").read_text())["_data_files"]]
    found = []
    for folder, subfolders, names in os.walk(place):
        subfolders[:] = sorted(d for d in subfolders if not d.startswith("."))
        found += [Path(folder, n) for n in sorted(names) if n.endswith(_LINES + _COLUMNS) and not n.startswith(".")]
    as_text = sum((place / path).stat().st_size for path in texts)
    return found if sum(f.stat().st_size for f in found) > as_text else []


def read(root: Path, paths: Iterable[Path], field: str) -> Iterator[Text]:
    """Every record with text in it, in order. Raises InputError, naming file and row, for what is no record."""
    for path in paths:
        name = path.relative_to(root).as_posix()
        rows = _lines(path) if path.name.endswith(_LINES) else _columns(path, field)
        try:
            for i, row in rows:
                yield from _text(f"{name}:{i}", row, field)
        except (OSError, EOFError) as error:
            raise InputError(f"cannot read {path} ({error}); restore the file") from None


def read_manual() -> Iterator[Text]:
    """Python's language reference, as `help` shows it: a text a topic, in English."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield f"topics:{name}", topics[name].encode(), "text"


def read_tfds(name: str, field: str) -> Iterator[Text]:
    """The training split of a prepared TFDS dataset, in array_record files."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise InputError(f"data.corpus {name!r} needs the package tensorflow-datasets ({error}); install it") from None
    try:
        builder = tfds.builder(name.removeprefix(TFDS), try_gcs=False)
        source = builder.as_data_source(split="train")
    except Exception as error:  # TFDS raises what it likes
        what = " ".join(str(error).split())[:160]
        raise InputError(
            f"data.corpus is {name!r}, but no such dataset is prepared here in array_record files ({what}); "
            "nothing is downloaded: prepare it with tfds.builder(NAME, file_format='array_record')"
            ".download_and_prepare(), and set TFDS_DATA_DIR"
        ) from None
    for i in range(len(source)):
        row = {k: v.decode() if isinstance(v, bytes) else v for k, v in source[i].items()}
        yield from _text(f"{name}:{i}", row, field)


def _text(where: str, row: Any, field: str) -> Iterator[Text]:
    if not isinstance(row, dict):
        raise InputError(f"{where} is no record of fields, but {str(row)[:40]!r}")
    if field not in row:
        raise InputError(f"{where} has no field {field!r}, but {', '.join(map(repr, row))}; set data.text_field")
    text = row[field]
    if text is None or text == "":
        return
    if not isinstance(text, str):
        raise InputError(f"{where}: field {field!r} is no text, but {str(text)[:40]!r}; set data.text_field")
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: field {field!r} holds half a surrogate pair; remove it") from None
    language = row.get("language")
    yield where, encoded, language if isinstance(language, str) and language else "text"


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as lines:
        try:
            for i, line in enumerate(lines, start=1):
                if line.strip():
                    yield i, json.loads(line)
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 ({error.reason}); convert it") from None
        except json.JSONDecodeError as error:
            raise InputError(f"{path}:{i} is not JSON ({error.msg}); give one object a line") from None


def _columns(path: Path, field: str) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa

    try:
        i = 0
        for batch in _batches(path, field):
            kept = [n for n in (field, "language") if n in batch.schema.names]
            for row in batch.select(kept).to_pylist() if field in kept else [dict.fromkeys(batch.schema.names)]:
                yield i, row
                i += 1
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} is damaged, or no {path.suffix[1:]} file ({str(error)[:80]}); restore it") from None


def _batches(path: Path, field: str) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        file = pq.ParquetFile(path)
        wanted = [n for n in file.schema_arrow.names if n in (field, "language")]
        yield from file.iter_batches(batch_size=1024, columns=wanted if field in wanted else None)
        return
    memory = pa.memory_map(str(path))
    try:
        yield from pa.ipc.open_stream(memory)
    except pa.ArrowInvalid:  # the other of Arrow's two formats
        file = pa.ipc.open_file(memory)
        yield from (file.get_batch(i) for i in range(file.num_record_batches))
