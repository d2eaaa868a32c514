"""The documents that a device keeps: one SQLite file, each document in one of three splits.

Experts learn from the training split, the router from the validation split; the test split is for honest figures only.
A hash of its content decides a document's split, so it is the same on every device, whichever other documents
come and go. Near-duplicates (MinHash over runs of three words, Broder 1997) are not taken in.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from comigs_edge import files
from comigs_edge.data.documents import Document, Reading
from comigs_edge.errors import ComigsError

SPLITS = ("training", "validation", "test")
MIN_TRAINING_BYTES = 4000  # about a thousand tokens, one step of the default batch
NEAR_DUPLICATE = 0.8  # Jaccard similarity
PERMUTATIONS = 64  # of a MinHash: a standard error of 0.05 at 0.8
Signature = npt.NDArray[np.uint64]
_RANDOM = np.random.Generator(np.random.PCG64(20251123))  # fixed: signatures are stored
_FACTORS = _RANDOM.integers(0, 2**63, PERMUTATIONS, np.uint64) * np.uint64(2) + np.uint64(1)
_OFFSETS = _RANDOM.integers(0, 2**63, PERMUTATIONS, np.uint64)
SCHEMA_VERSION = 1
_SCHEMA = f"""
create table source (id integer primary key, path text unique not null, added text not null default current_timestamp);
create table document (
    sha256 text primary key, source integer not null references source (id), kind text not null, split text not null,
    bytes integer not null, content text not null, signature blob
);
pragma user_version = {SCHEMA_VERSION};
"""


@dataclass
class Report:
    """What `add` did, in documents."""

    added: int = 0
    duplicates: int = 0
    near_duplicates: int = 0
    samples: list[Document] = field(default_factory=list)  # the first three that were added


class Corpus:
    """The documents in the SQLite file at `path`."""

    def __init__(self, path: Path, training: float = 0.8, validation: float = 0.1) -> None:
        self.path, self.training, self.validation = path, training, validation

    def add(self, reading: Reading) -> Report:
        """Takes in the documents of all files, or none if anything fails. A file added before is replaced."""
        report = Report()
        with self._open() as db:
            near = _NearDuplicates(db)
            for path, documents in reading.files.items():
                # A name need not be UTF-8: its other bytes are written as escapes.
                source = self._replace_source(db, str(path).encode("utf-8", "backslashreplace").decode(), near)
                for document in documents:
                    self._add_document(db, source, document, near, report)
            self._fill_empty_splits(db)
            db.execute("delete from source where id not in (select source from document)")
        return report

    def _replace_source(self, db: sqlite3.Connection, path: str, near: _NearDuplicates) -> int:
        row = db.execute("select id from source where path = ?", (path,)).fetchone()
        if row is None:
            return int(db.execute("insert into source (path) values (?)", (path,)).lastrowid or 0)
        for (sha256,) in db.execute("select sha256 from document where source = ?", row).fetchall():
            near.forget(sha256)
        db.execute("delete from document where source = ?", row)
        return int(row[0])

    def _add_document(
        self, db: sqlite3.Connection, source: int, document: Document, near: _NearDuplicates, report: Report
    ) -> None:
        sha256 = document.sha256
        if db.execute("select 1 from document where sha256 = ?", (sha256,)).fetchone():
            report.duplicates += 1
            return
        signature = near.signature(document.words)
        if near.knows(signature):
            report.near_duplicates += 1
            return
        near.remember(sha256, signature)
        db.execute(
            "insert into document values (?, ?, ?, ?, ?, ?, ?)",
            (
                sha256, source, document.kind, self._split(sha256), len(document.words.encode()), document.to_json(),
                None if signature is None else signature.tobytes(),
            ),
        )  # fmt: skip
        report.added += 1
        if len(report.samples) < 3:
            report.samples.append(document)

    def _split(self, sha256: str) -> str:
        place = _place(sha256)
        return SPLITS[int(place >= self.training) + int(place >= self.training + self.validation)]

    def _fill_empty_splits(self, db: sqlite3.Connection) -> None:
        """With few documents the hash can leave a split empty; it then takes the training document nearest to it."""
        for split, edge in (("test", 1.0), ("validation", self.training)):
            count, here = db.execute("select count(*), sum(split = ?) from document", (split,)).fetchone()
            if count >= len(SPLITS) and not here:
                rows = db.execute("select sha256 from document where split = 'training'").fetchall()
                if len(rows) > 1:
                    nearest = min(rows, key=lambda row: abs(_place(row[0]) - edge))
                    db.execute("update document set split = ? where sha256 = ?", (split, *nearest))

    def remove(self, source: int) -> str:
        """Forgets a file and its documents; returns its path."""
        with self._open() as db:
            row = db.execute("select path from source where id = ?", (source,)).fetchone()
            if row is None:
                raise ComigsError(f"there is no file number {source}; see: comigs-edge data list")
            db.execute("delete from document where source = ?", (source,))
            db.execute("delete from source where id = ?", (source,))
            self._fill_empty_splits(db)
        return str(row[0])

    def sources(self) -> list[dict[str, Any]]:
        """Each file: id, path, added, documents, bytes, and documents in each split."""
        sums = ", ".join(f"sum(split = '{split}') as {split}" for split in SPLITS)
        return self._rows(
            f"select source.id, path, added, count(*) as documents, sum(bytes) as bytes, {sums} "
            "from source join document on source = source.id group by source.id order by source.id"
        )

    def sizes(self) -> dict[str, dict[str, int]]:
        """Documents and bytes of each split."""
        sizes = {
            row.pop("split"): row
            for row in self._rows("select split, count(*) as documents, sum(bytes) as bytes from document group by split")
        }
        return {split: sizes.get(split, {"documents": 0, "bytes": 0}) for split in SPLITS}

    def documents(self, split: str) -> list[Document]:
        """The documents of one split, in the order of their hashes."""
        rows = self._rows("select content from document where split = ? order by sha256", split)
        return [Document.from_json(row["content"]) for row in rows]

    def check_enough(self) -> None:
        """Raises `ComigsError` unless all three splits have text."""
        sizes = self.sizes()
        documents = sum(size["documents"] for size in sizes.values())
        short = [split for split in SPLITS if not sizes[split]["documents"]]
        if short or sizes["training"]["bytes"] < MIN_TRAINING_BYTES:
            raise ComigsError(
                f"{documents} documents with {sizes['training']['bytes']:,} bytes of training text are too little"
                + (f" ({' and '.join(short)} would be empty)" if short else "")
                + f"; at least {len(SPLITS)} documents and {MIN_TRAINING_BYTES:,} bytes of training text are needed: "
                "comigs-edge data add PATH"
            )

    def _rows(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        with self._open() as db:
            cursor = db.execute(sql, values)
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """One transaction on the file; an error undoes all of it."""
        if not self.path.exists():  # one that is there may be on a disk that can only be read
            files.make_folder(self.path.parent)
            self.path.touch(mode=0o600)
        try:
            with contextlib.closing(sqlite3.connect(self.path, timeout=30)) as db, db:
                db.execute("pragma synchronous = full")
                db.execute("pragma secure_delete = on")  # removed text does not linger in free pages
                version = db.execute("pragma user_version").fetchone()[0]
                if version == 0:
                    db.executescript(_SCHEMA)
                elif version > SCHEMA_VERSION:
                    raise ComigsError(f"{self.path} was made by a newer comigs-edge; upgrade comigs-edge")
                yield db
        except sqlite3.Error as error:
            raise ComigsError(f"{self.path}: {error}; nothing was changed") from error


class _NearDuplicates:
    """Finds documents that share most of their runs of three words with one that is already there.

    MinHash in its plain form: of each document the smallest value under 64 random hash functions; the share of equal
    minima estimates the Jaccard similarity. (datasketch does the same, but brings scipy, 120 MB on a board.)
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        rows = db.execute("select sha256, signature from document where signature not null").fetchall()
        self.keys: list[str | None] = [sha256 for sha256, _ in rows]
        self.signatures = np.frombuffer(b"".join(blob for _, blob in rows), np.uint64).reshape(-1, PERMUTATIONS)
        self.count = len(rows)

    @staticmethod
    def signature(words: str) -> Signature | None:
        """64 minima, or None for a document too short to be compared."""
        tokens = re.findall(r"\w+", words.casefold())
        if len(tokens) < 8:
            return None
        runs = {" ".join(tokens[i : i + 3]) for i in range(len(tokens) - 2)}
        hashes = np.array([zlib.crc32(run.encode()) for run in runs], np.uint64)
        # a * h + b modulo 2^64, upper half: a universal family (Dietzfelbinger 1996)
        minima: Signature = ((_FACTORS * hashes[:, None] + _OFFSETS) >> np.uint64(32)).min(0)
        return minima

    def knows(self, signature: Signature | None) -> bool:
        """Whether a document at least `NEAR_DUPLICATE` similar is there."""
        if signature is None or not self.count:
            return False
        return bool(((self.signatures[: self.count] == signature).mean(1) >= NEAR_DUPLICATE).any())

    def remember(self, sha256: str, signature: Signature | None) -> None:
        """Compares later documents with this one too."""
        if signature is None:
            return
        if self.count == len(self.signatures):  # full: twice the room
            self.signatures = np.vstack([self.signatures, np.zeros((max(64, self.count), PERMUTATIONS), np.uint64)])
        self.signatures[self.count] = signature
        self.keys.append(sha256)
        self.count += 1

    def forget(self, sha256: str) -> None:
        """No longer compares with this one."""
        if sha256 in self.keys:
            index = self.keys.index(sha256)
            self.keys[index] = None
            self.signatures = self.signatures.copy()
            self.signatures[index] = 0


def _place(sha256: str) -> float:
    """A number in [0, 1) that the hash fixes."""
    return int(sha256[:13], 16) / 16**13
