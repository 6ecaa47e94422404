"""A TFDS dataset of texts, in array_record files; TensorFlow is not imported, nothing touches the network.

Importing this module needs tensorflow-datasets and array_record, so only `engine.data` does, when it has to.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import array_record.python.array_record_module  # noqa: F401 (TFDS would miss it only when it reads or writes)
import tensorflow_datasets as tfds

from engine.corpora.sources import Document, Documents, OnProgress

tfds.disable_progress_bar()


class TextFiles(tfds.core.GeneratorBasedBuilder):
    """One example a document: `path` (relative), `text`, `language`; splits `train` and `heldout`, in order of path."""

    VERSION = tfds.core.Version("1.0.0")
    # Nothing is downloaded. TFDS would look for checksums beside this file, with a package it doesn't install.
    url_infos: ClassVar[dict] = {}

    def __init__(self, documents: Documents, data_dir: Path, on_progress: OnProgress | None = None) -> None:
        self._documents = documents
        self._on_progress = on_progress
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Text files of {self._documents.name}, content digest {self._documents.digest}.",
            features=tfds.features.FeaturesDict({"path": text(), "text": text(), "language": text()}),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {
            "train": self._generate_examples(self._documents.train, 0),
            "heldout": self._generate_examples(self._documents.heldout, len(self._documents.train)),
        }

    def _generate_examples(self, documents: tuple[Document, ...], done: int) -> Iterator[tuple[str, dict]]:
        total = len(self._documents.train) + len(self._documents.heldout)
        for i, (document, data) in enumerate(zip(documents, self._documents.read(documents))):
            if self._on_progress is not None:
                self._on_progress("building dataset", done + i + 1, total)
            yield document.path, {"path": document.path, "text": data, "language": document.language}

    # TFDS prints these to stdout.
    def _log_download_bytes(self) -> None:
        pass

    def _log_download_done(self) -> None:
        pass


def build(documents: Documents, folder: Path, on_progress: OnProgress | None = None) -> None:
    """Writes the dataset of `documents` under `folder`."""
    TextFiles(documents, folder, on_progress).download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False), file_format="array_record"
    )


def read(documents: Documents, folder: Path) -> dict[str, Any]:
    """{"train", "heldout"} -> a sequence (len, [i]) of examples: dicts of bytes."""
    return TextFiles(documents, folder).as_data_source()
