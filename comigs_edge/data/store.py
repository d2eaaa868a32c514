"""The SQLite file of a corpus: its tables, and how one of an earlier version is taken over."""

from __future__ import annotations

import sqlite3
from contextlib import AbstractContextManager
from pathlib import Path

from comigs_edge import database

# `added`: when a file was read as its documents show it (UTC).
# `place`: of a document in its file. `left_out`: why it is not used (`arrangement.LeftOut`), null where it is.
# `runs`, `beginnings`, `question`: what it is compared by (`runs.py`, `chats.py`); null until that is known.
# `local`: only the specialists learn it. `with_secrets` 0: what looks like secrets is left out when it is read again.
# `gone`: the runs of text that was learned and is no longer there, one row for each split and for what is local; no text.
# `folder`: those that were added, and how. `kept_out`: files inside them that the user removed; only `add` reads them again.
# `forgotten_file`, `forgotten`: paths and hashes of what was forgotten, and is added again only on demand.
# `removed`: the numbers of files that the user removed, deleted or emptied, and not those that a later version leaves out.
_GONE = "create table gone (split text not null, local integer not null, runs blob not null, primary key (split, local));\n"
_FOLDERS = """create table folder (path text primary key, local integer not null, with_secrets integer not null);
create table kept_out (path text primary key);
"""
_FORGOTTEN = """create table forgotten_file (path text primary key);
create table forgotten (sha256 text primary key);
"""
_REMOVED = "create table removed (source integer primary key);\n"
_TABLES = f"""{_GONE}{_REMOVED}{_FOLDERS}{_FORGOTTEN}
create table source (
    id integer primary key autoincrement, path text unique not null, added text not null default current_timestamp,
    local integer not null default 0, with_secrets integer not null default 1
);
create table document (
    id integer primary key autoincrement, source integer not null references source (id), place integer not null,
    sha256 text not null, kind text not null, split text, left_out text, seen integer not null default 0,
    bytes integer not null, runs blob, beginnings blob, question blob, content text not null
);
create index document_source on document (source);
create index document_split on document (split, sha256) where left_out is null;
create index document_unread on document (id) where runs is null;
"""
_FROM_1 = f"""
alter table source rename to old_source;
alter table document rename to old_document;
{_TABLES}
insert into source (id, path, added) select id, path, added from old_source order by id;
insert into document (source, place, sha256, kind, split, seen, bytes, content)
    select source, rowid, sha256, kind, split, (select count(distinct split) = 3 from old_document), bytes, content
    from old_document order by rowid;
drop table old_document;
drop table old_source;
"""
# Up to version 3 runs told apart what Unicode writes in several ways, and had three characters where a script has no spaces.
# What `gone` has stays: without their text, runs cannot be made anew. That a number is missing says that its file was removed
# only where learned text is gone.
_FROM_3 = f"""{_REMOVED}
update document set runs = null;
insert into removed
    with recursive given (number) as (select 1 union all select number + 1 from given where number < (
        select seq from sqlite_sequence where name = 'source'))
    select number from given where number not in (select id from source) and exists (select 1 from gone);
"""
_ALL_SHARED = f"""{_FOLDERS}
alter table source add column local integer not null default 0;
alter table source add column with_secrets integer not null default 1;
"""
_FROM_4 = f"""alter table gone rename to old_gone;
{_GONE}insert into gone select split, 0, runs from old_gone;
drop table old_gone;
{_ALL_SHARED}"""

_SINCE_4 = _FROM_4 + _FORGOTTEN
SCRIPTS = (_TABLES, _FROM_1, _GONE + _FROM_3 + _ALL_SHARED + _FORGOTTEN, _FROM_3 + _SINCE_4, _SINCE_4, _FORGOTTEN)


def open_database(path: Path) -> AbstractContextManager[sqlite3.Connection]:
    """One transaction on the corpus at `path`, as `database.open_database` has it."""
    return database.open_database(path, SCRIPTS)


def kind_condition(local: bool | None) -> str:
    """What a query for documents asks beside its other conditions: for local text, for shared text, or for all."""
    return "" if local is None else f" and source in (select id from source where local = {int(local)})"


def short_hash(sha256: str) -> int:
    """The first 64 bits."""
    return int(sha256[:16], 16)
