"""Which texts make a corpus, and which of them are held out.

A file is known by its path relative to the corpus's root and by the BLAKE2 digest of its bytes. Files of equal content
count once (the first path in sorted order), and a hash of the path decides the split: no file, and no content, is in
both splits, and new texts move no other across (but in a corpus so small that none would be held out by its hash).
Records (`records`) are split by their own digest, as their places move when others come before them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.corpora import records
from engine.errors import InputError

OnProgress = Callable[[str, int, int], None]  # stage, done, total

HELDOUT_FRACTION = 0.05  # of files
NAMED = ("stdlib", "manual")

LANGUAGES = {
    "text": ".txt .text .md .rst .tex .org .adoc",
    "python": ".py .pyi",
    "c": ".c .h",
    "cpp": ".cc .cpp .cxx .hpp .hh .cu .cuh",
    "csharp": ".cs",
    "go": ".go",
    "haskell": ".hs",
    "java": ".java",
    "javascript": ".js .jsx .mjs",
    "julia": ".jl",
    "kotlin": ".kt",
    "lua": ".lua",
    "ocaml": ".ml .mli",
    "perl": ".pl .pm",
    "php": ".php",
    "r": ".r",
    "ruby": ".rb",
    "rust": ".rs",
    "scala": ".scala",
    "shell": ".sh .bash",
    "sql": ".sql",
    "swift": ".swift",
    "typescript": ".ts .tsx",
    "web": ".html .css",
    "config": ".toml .yaml .yml .ini .cfg .cmake .proto",
}
_LANGUAGE_OF = {suffix: language for language, suffixes in LANGUAGES.items() for suffix in suffixes.split()}

SKIP_FOLDERS = {"__pycache__", "node_modules", "site-packages", "dist-packages"}
# The library's own tests are twice its size and missing from some distributions' Pythons.
_SKIP_STDLIB_FOLDERS = {"test", "tests", "idle_test"}


@dataclass(frozen=True)
class Document:
    """One text: its path relative to the root ('/' between parts; of a record FILE:ROW), the digest of its bytes, its
    language."""

    path: str
    digest: str
    language: str


@dataclass(frozen=True)
class Documents:
    """The texts of a corpus, each split in order of path. `digest` names paths, contents and split."""

    name: str
    root: Path
    train: tuple[Document, ...]
    heldout: tuple[Document, ...]
    digest: str
    records: Callable[[], Iterator[records.Text]] | None = None  # all of them anew; None: a document is a file

    def read(self, documents: tuple[Document, ...]) -> Iterator[bytes]:
        """The text of each, in order. Raises InputError if it is not what was found before."""
        wanted = iter(self.records() if self.records is not None else ())
        for document in documents:
            if self.records is None:
                data = (self.root / document.path).read_bytes()
            else:
                data = next((text for where, text, _ in wanted if where == document.path), b"")
            if content_digest(data) != document.digest:
                raise InputError(f"{self.root / document.path} changed while it was read; run again")
            yield data


def check_there(corpus: str) -> None:
    """Raises InputError if there is no such corpus, file or folder. Reads nothing."""
    known = (*NAMED, "synthetic")
    if corpus not in known and not corpus.startswith(records.TFDS) and not Path(corpus).expanduser().exists():
        raise InputError(
            f"data.corpus is {corpus!r}: no such file or folder, and not a known corpus ({', '.join(known)}); nothing "
            "is downloaded, so save a dataset to disk first (docs/data.md)"
        )


def find(corpus: str, on_progress: OnProgress | None = None, field: str = "text") -> Documents:
    """The documents of a named corpus, of a folder of text and source files, or of records, whose `field` is the text.
    Reads everything, keeps no text.

    Raises InputError if there is no such corpus, file or folder, or too few texts in it.
    """
    if corpus.startswith(records.TFDS):
        return _records(corpus, Path(corpus), lambda: records.read_tfds(corpus, field), on_progress)
    if corpus == "manual":
        return _records(corpus, Path(corpus), records.read_manual, on_progress)
    if corpus == "stdlib":
        root = Path(sysconfig.get_path("stdlib"))
        paths = [p for p in walk(root, SKIP_FOLDERS | _SKIP_STDLIB_FOLDERS) if _keep_stdlib(p)]
        name, hint = corpus, "set data.corpus to a folder of text files, or to 'synthetic'"
        missing = f"this Python keeps no source of its standard library in {root}; {hint}"
    else:
        check_there(corpus)
        root = Path(corpus).expanduser().resolve()
        paths = [p for p in walk(root, SKIP_FOLDERS) if language_of(p)]
        recorded = records.files(root, paths)
        if recorded:
            top = root.parent if root.is_file() else root
            return _records(corpus, top, lambda: records.read(top, recorded, field), on_progress, root.name)
        if not root.is_dir():
            raise InputError(
                f"data.corpus is {corpus!r}, a file, and not of records (.jsonl, .parquet, .arrow); name the folder "
                "that holds the text files"
            )
        name = root.name or "root"
        missing = f"data.corpus is {corpus!r}: no UTF-8 text or source files in it (such as .txt, .md, .py, .c)"

    documents, seen = [], set()
    for i, path in enumerate(paths):
        if on_progress is not None:
            on_progress("reading files", i + 1, len(paths))
        data = (root / path).read_bytes()
        digest = content_digest(data)
        if digest in seen or not is_text(data) or (corpus in NAMED and _is_generated(data)):
            continue
        seen.add(digest)
        documents.append(Document(path, digest, language_of(path)))
    if not documents:
        raise InputError(missing)
    if len(documents) < 2:
        raise InputError(
            f"data.corpus is {corpus!r}: only one distinct text file in it ({documents[0].path}), and one must be held "
            "out; split it into several files"
        )
    return _split(name, root, documents, lambda document: document.path)


def _records(
    corpus: str,
    root: Path,
    read: Callable[[], Iterator[records.Text]],
    on_progress: OnProgress | None,
    name: str = "",
) -> Documents:
    documents, seen = [], set()
    for i, (where, data, language) in enumerate(read()):
        if on_progress is not None and i % 100 == 0:
            on_progress("reading records", i + 1, 0)
        digest = content_digest(data)
        if digest not in seen and is_text(data):
            seen.add(digest)
            documents.append(Document(where, digest, language))
    if len(documents) < 2:
        raise InputError(
            f"data.corpus is {corpus!r}: {len(documents) or 'no'} distinct text in its records; at least two are "
            "needed, as one is held out"
        )
    found = _split(name or corpus, root, documents, lambda document: document.digest)
    return dataclasses.replace(found, records=read)


def language_of(path: str) -> str:
    """A file's language by its ending; empty where it has none of `LANGUAGES`."""
    return _LANGUAGE_OF.get(os.path.splitext(path)[1].lower(), "")


def content_digest(data: bytes) -> str:
    """BLAKE2b of a file's bytes, 32 hex digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def is_text(data: bytes) -> bool:
    """Whether bytes are UTF-8 text: not empty, no NUL."""
    if not data.strip() or b"\0" in data:
        return False
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _split(name: str, root: Path, documents: list[Document], key: Callable[[Document], str]) -> Documents:
    def place(document: Document) -> float:  # uniform in [0, 1)
        hashed = hashlib.blake2b(key(document).encode(), digest_size=8).digest()
        return int.from_bytes(hashed, "big") / 2**64

    # A small corpus may have no file under the threshold: then the lowest one is held out.
    threshold = max(HELDOUT_FRACTION, min(map(place, documents)))
    heldout = tuple(d for d in documents if place(d) <= threshold)
    train = tuple(d for d in documents if place(d) > threshold)
    if not train:  # two or three files, all under the threshold
        heldout, train = heldout[:1], heldout[1:]
    listing = "\n".join(f"{split} {d.digest} {d.path}" for split, ds in (("t", train), ("h", heldout)) for d in ds)
    return Documents(name, root, train, heldout, content_digest(listing.encode()))


def walk(root: Path, skip: set[str] = SKIP_FOLDERS) -> Iterator[str]:
    """Paths of files under root, relative, sorted; hidden files and folders and links to folders left out."""
    found = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [d for d in subfolders if d not in skip and not d.startswith(".")]
        for file in files:
            path = os.path.join(folder, file)
            if not file.startswith(".") and os.path.isfile(path):
                found.append(os.path.relpath(path, root).replace(os.sep, "/"))
    return iter(sorted(found))


def _keep_stdlib(path: str) -> bool:
    # _sysconfigdata is this machine's build settings, topics.py generated: the manual as one string literal.
    return path.endswith(".py") and not path.startswith("_sysconfigdata") and path != "pydoc_data/topics.py"


def _is_generated(data: bytes) -> bool:
    return b"gencodec.py" in data[:400]  # tables of character sets
