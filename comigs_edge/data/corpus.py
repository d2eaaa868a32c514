"""The documents that a device keeps: one SQLite file, each document in one of three splits.

Experts learn from the training split, the router from the validation split; the test split is for honest figures only.
`intake.py` tells what becomes of a file that was added before, `arrangement.py` which documents are used, and in which split.
Of local text only specialists and router learn. Nothing that is decided about other text depends on it, so that a training of
the generalist reads the same bits with and without it.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from comigs_edge.data.arrangement import SPLITS, Entry, LeftOut, Split, arrange
from comigs_edge.data.chats import traits
from comigs_edge.data.counts import count_also_shared, count_elsewhere, count_repeats
from comigs_edge.data.document import Document
from comigs_edge.data.documents import Reading
from comigs_edge.data.enough import find_missing
from comigs_edge.data.folders import Manner, forget_folders, read_added, read_manner, remember_folders, stored_name
from comigs_edge.data.forgotten import allow, allow_files, leave_out
from comigs_edge.data.intake import forget, read_gone, take_in
from comigs_edge.data.locality import arrange_local
from comigs_edge.data.runs import NO_RUNS, Runs, are_among, join_runs
from comigs_edge.data.store import kind_condition as _of
from comigs_edge.data.store import open_database, short_hash
from comigs_edge.database import fetch
from comigs_edge.errors import ComigsError
from comigs_edge.progress import SILENT, Progress, count_up

_USED = "left_out is null"


@dataclass
class Report:
    """What `add` did, in documents, and in files where it says so."""

    added: int = 0
    duplicates: int = 0  # the same is there already, also in the same place
    repeats: int = 0  # the same stands in what was added now
    near_duplicates: int = 0
    beginnings: int = 0  # of longer chats
    unanswered: int = 0  # chats without a message of the assistant
    unscored: int = 0  # messages of the assistant with the weight 0
    control_tokens: int = 0  # documents with tokens such as <|im_start|> written out
    learned: int = 0  # were validation or test text, and stand in training text now
    moved: int = 0  # files
    changed: int = 0  # files
    gone: int = 0  # files
    forgotten: int = 0  # were forgotten before, and stay out
    read_anew: int = 0  # files that nobody touched and this version reads otherwise
    made_local: int = 0  # files that were shared until now
    also_shared: int = 0  # local documents that stand in shared text too
    taken_over: Counter[str] = field(default_factory=Counter)  # what was left out of an earlier version's text, by reason
    samples: list[Document] = field(default_factory=list)  # the first three that were added


class Corpus:
    """The documents in the SQLite file at `path`.

    `training` and `validation` are their shares of new documents; another `salt` splits the same documents otherwise.
    """

    def __init__(self, path: Path, training: float = 0.8, validation: float = 0.1, salt: str = "") -> None:
        self.path, self.training, self.validation, self.salt = path, training, validation, salt
        self._taken_over = Counter[str]()

    def add(
        self, reading: Reading, folders: Iterable[Path] = (), progress: Progress = SILENT, manner: Manner = Manner()
    ) -> Report:  # fmt: skip
        """Takes in the documents of all files, or none if anything fails. A file added before is replaced.

        Files inside `folders` that were added before and are gone from the disk give their documents up. What `manner`
        leaves open is as it was, and for new files as for their folder.
        """
        with self._open() as db:
            if manner.forgotten:
                allow(db, reading.files)
            files, forgotten = leave_out(db, reading.files)
            documents = [document for each in files.values() for document in each]
            total = sum(len(document.words) for document in documents) or 1
            before = _reasons(db)
            taken = count_up(lambda done, _: progress(done, 2 * total), total)
            folders = list(folders)
            remember_folders(db, folders, manner)
            changes = take_in(db, files, folders, taken, manner)
            self._arrange(db, lambda done, of: progress(total + done * total // max(1, of), 2 * total))
            after = _reasons(db)
            report = Report(moved=changes.moved, changed=changes.changed, gone=changes.gone, read_anew=changes.read_anew)
            report.made_local, report.forgotten = changes.made_local, forgotten
            report.taken_over = self._taken_over
            report.learned = sum(reason == "learned" != before.get(number) for number, reason in after.items())
            reasons = Counter(after[number] for number in changes.new)
            report.added, report.near_duplicates, report.beginnings = reasons[None], reasons["similar"], reasons["beginning"]
            report.unanswered = reasons["unanswered"]
            report.unscored, report.control_tokens = changes.unscored, changes.control_tokens
            report.repeats = count_repeats(db, changes.new)
            report.duplicates = reasons["copy"] - report.repeats + max(0, len(documents) - len(changes.new))
            report.also_shared = count_also_shared(db)
            for number in sorted(number for number in changes.new if after[number] is None)[:3]:
                row = db.execute("select content from document where id = ?", (number,)).fetchone()
                report.samples.append(Document.from_json(row[0]))
        return report

    def remove(self, *sources: int, folders: Iterable[Path] = (), stays_out: bool = False) -> list[str]:
        """Forgets files and their documents, or none if one of the numbers is unknown; returns their paths.

        `folders` are not read again; what `stays_out` is not added again either, unless `Manner.forgotten` says so.
        """
        paths = []
        with self._open() as db:
            for source in sources:
                row = db.execute("select path from source where id = ?", (source,)).fetchone()
                if row is None:
                    raise ComigsError(f"there is no file number {source}; see: comigs-edge data list")
                forget(db, source, stays_out)
                paths.append(str(row[0]))
            for folder in folders:
                forget_folders(db, folder)
            self._arrange(db, SILENT)
        return paths

    def allow_files(self, paths: Iterable[Path]) -> None:
        """Of files that were forgotten what is new may be added again."""
        if self.path.exists():
            with self._open() as db:
                allow_files(db, paths)

    def elsewhere(self, sources: Collection[int]) -> dict[str, int]:
        """How many documents of these files stand in others too, by the others' paths."""
        with self._open() as db:
            return count_elsewhere(db, sources)

    def with_secrets(self, path: Path) -> bool:
        """Whether a file is read with what looks like a secret, as it or its folder was added."""
        if not self.path.exists():
            return True
        with self._open() as db:
            return read_manner(db, path)[1]

    def added(self) -> tuple[list[Path], list[Path], set[Path]]:
        """Folders that were added, files that were added outside of them, and those inside that the user removed."""
        with self._open() as db:
            return read_added(db)

    def inside(self, path: Path) -> dict[int, str]:
        """Numbers and paths of the files that were added from a folder, or of the one file with that path."""
        top = stored_name(path.expanduser().absolute())
        rows = self._rows("select id, path from source order by id")
        return {row["id"]: row["path"] for row in rows if Path(row["path"]).is_relative_to(top)}

    def removed(self) -> set[int]:
        """Numbers of files that the user removed, deleted or emptied; no number is given twice."""
        return {row["source"] for row in self._rows("select source from removed")}

    def sources(self) -> list[dict[str, Any]]:
        """Each file: id, path, added, local; of its documents that are used their number, bytes, and number in each split."""
        sums = ", ".join(f"coalesce(sum(split = '{split}' and {_USED}), 0) as {split}" for split in SPLITS)
        return self._rows(
            f"select source.id, path, added, local, sum({_USED}) as documents, sum(bytes * ({_USED})) as bytes, {sums} "
            "from source join document on source = source.id group by source.id order by source.id"
        )

    def sizes(self, local: bool | None = None) -> dict[str, dict[str, int]]:
        """Documents and bytes of each split; of what is `local`, of other text, or of all."""
        query = f"select split, count(*) as documents, sum(bytes) as bytes from document where {_USED}{_of(local)} group by split"
        sizes = {row.pop("split"): row for row in self._rows(query)}
        return {split: sizes.get(split, {"documents": 0, "bytes": 0}) for split in SPLITS}

    def left_out(self) -> dict[str, int]:
        """Documents that are not used, by their reason (`arrangement.LeftOut`)."""
        rows = self._rows("select left_out, count(*) as documents from document where left_out is not null group by left_out")
        return {row["left_out"]: row["documents"] for row in rows}

    def documents(self, split: str) -> list[Document]:
        """The documents of one split, in the order of their hashes."""
        return list(self.read(split))

    def read(self, split: str, after: str = "", local: bool | None = None, known: Collection[int] = ()) -> Iterator[Document]:
        """The same one by one, without all of them in memory; those up to the hash `after` come last.

        Those whose `hashes` are `known` are left out.
        """
        if self.path.exists():
            with self._open() as db:
                for place in (">", "<="):
                    where = f"split = ? and {_USED}{_of(local)} and sha256 {place} ?"
                    query = f"select sha256, content from document where {where} order by sha256"
                    for sha256, content in db.execute(query, (split, after)):
                        if not known or short_hash(sha256) not in known:
                            yield Document.from_json(content)

    def hashes(self, split: str, local: bool | None = None) -> dict[int, int]:
        """The first 64 bits of the SHA-256 of each document of a split -> its bytes."""
        query = f"select sha256, bytes from document where split = ? and {_USED}{_of(local)}"
        return {short_hash(row["sha256"]): row["bytes"] for row in self._rows(query, split)}

    def learned_runs(self, split: Split, local: bool | None = None) -> Runs:
        """The runs of texts of this split that stand in learned text too, also in what is gone: that of the splits before it.

        Where `local` is False, local text counts as not learned.
        """
        earlier = SPLITS[: SPLITS.index(split)]
        if not earlier or not self.path.exists():
            return NO_RUNS
        with self._open() as db:
            query = f"select runs from document where split = ? and ({_USED} or seen and ?){_of(local)}"
            gone = "select runs from gone where split = ?" + ("" if local is None else f" and local = {int(local)}")
            wanted = join_runs(np.frombuffer(runs, np.uint32) for (runs,) in db.execute(query, (split, False)))
            is_known = np.zeros(len(wanted), bool)
            for each in earlier if len(wanted) else ():
                for (runs,) in db.execute(f"{query} union all {gone}", (each, True, each)):
                    found = np.frombuffer(runs, np.uint32)
                    is_known[np.searchsorted(wanted, found[are_among(found, wanted)])] = True
        return wanted[is_known]

    def hash_of(self, split: str, after: str, number: int) -> str:
        """SHA-256 of the document that `read` gives as this number of shared text, from 1 on; empty for the last one of all."""
        where = f"split = ? and {_USED}{_of(False)}"
        query = f"select sha256 from document where {where} order by sha256 <= ?, sha256 limit 2 offset ?"
        rows = self._rows(query, split, after, number - 1)
        return str(rows[0]["sha256"]) if len(rows) == 2 else ""

    def check_enough(self) -> None:
        """Raises `ComigsError` unless all three splits have text."""
        if missing := self.missing():
            raise ComigsError(missing)

    def missing(self) -> str | None:
        """What a training needs and the text has not; None if it is enough."""
        has_local = bool(self.sizes(local=True)["training"]["documents"])
        return find_missing(self.sizes(local=False), self.left_out().get("learned", 0), has_local)

    def _arrange(self, db: sqlite3.Connection, progress: Progress) -> None:
        """Decides anew which documents are used; each keeps the split that it has."""
        # `status` reads no page of the text itself with it; other versions keep it up to date, too.
        db.execute("create index if not exists document_sizes on document (left_out, split, bytes, source)")
        shared, local = self._read_entries(db, local=False), self._read_entries(db, local=True)
        gone = [read_gone(db, False), read_gone(db, True)]
        arrange(list(shared.values()), self.training, self.validation, progress, gone[0], self.salt)
        if local:
            arrange_local(list(local.values()), list(shared.values()), self.training, self.validation, gone, self.salt)
        entries = shared | local
        before = db.execute("select id, left_out, split, seen from document").fetchall()
        changed = [
            (*found, number)
            for number, *was in before
            if (found := (entries[number].left_out, entries[number].split, entries[number].seen)) != tuple(was)
        ]
        db.executemany("update document set left_out = ?, split = ?, seen = ? where id = ?", changed)

    def _read_entries(self, db: sqlite3.Connection, local: bool) -> dict[int, Entry]:
        columns = "id, left_out, split, seen, sha256, runs, beginnings, question"
        query = f"select {columns} from document where true{_of(local)} order by id"
        return {number: _entry(*row) for number, *row in db.execute(query)}

    def _rows(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        with self._open() as db:
            return fetch(db, sql, *values)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """One transaction on the file. Documents of an earlier version are first read for what they are compared by."""
        with open_database(self.path) as db:
            unread = [number for (number,) in db.execute("select id from document where runs is null")]
            before = _reasons(db) if unread else {}
            for number in unread:
                (content,) = db.execute("select content from document where id = ?", (number,)).fetchone()
                known = traits(Document.from_json(content))
                columns = ", ".join(f"{name} = ?" for name in known)
                db.execute(f"update document set {columns} where id = ?", (*known.values(), number))
            if unread:
                self._arrange(db, SILENT)
                after = _reasons(db)
                self._taken_over = Counter(reason for number, reason in after.items() if reason and not before[number])
            yield db


def _entry(
    left_out: LeftOut | None, split: Split | None, seen: int, sha256: str, runs: bytes, chat: bytes, asked: bytes
) -> Entry:  # fmt: skip
    return Entry(
        sha256=sha256, runs=np.frombuffer(runs, np.uint32), beginnings=chat, question=asked, split=split, seen=bool(seen),
        left_out=left_out,
    )  # fmt: skip


def _reasons(db: sqlite3.Connection) -> dict[int, str | None]:
    """Why each document is left out, by its number."""
    return dict(db.execute("select id, left_out from document"))
