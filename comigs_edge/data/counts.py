"""How many documents stand in several places."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection

_OF = "select {} from document join source on source.id = source where {}"
_ALSO_SHARED = f"{_OF.format('count(*)', 'local')} and sha256 in ({_OF.format('sha256', 'not local')})"


def count_also_shared(db: sqlite3.Connection) -> int:
    """Local documents that stand in shared files, too."""
    return int(db.execute(_ALSO_SHARED).fetchone()[0])


def count_repeats(db: sqlite3.Connection, new: set[int]) -> int:
    """Copies among these documents of which the one that is used is new, too."""
    first = dict(db.execute("select sha256, min(id) from document group by sha256"))
    copies = db.execute("select id, sha256 from document where left_out = 'copy'")
    return sum(number in new and first[sha256] in new for number, sha256 in copies)


def count_elsewhere(db: sqlite3.Connection, sources: Collection[int]) -> dict[str, int]:
    """Documents of other files that stand in these as well: how many, by the path of each file."""
    these = f"source.id in ({', '.join('?' * len(sources))})"
    found = _OF.format("path, count(*)", f"not {these}") + f" and sha256 in ({_OF.format('sha256', these)}) group by path"
    return dict(db.execute(found, (*sources, *sources)))
