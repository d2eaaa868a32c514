"""What `data add` says about what it read in another way than expected, or not at all."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from comigs_edge.commands.console import counted
from comigs_edge.data import shapes
from comigs_edge.data.corpus import Report
from comigs_edge.data.decode import INSTALL
from comigs_edge.data.documents import Reading
from coordinator.protocol.text import printable

REASONS: dict[str, str] = {  # why a document is not used
    "unanswered": "chats without an answer to learn from",
    "beginning": "chats with which a longer one begins",
    "copy": "copies of others",
    "similar": "near-duplicates",
    "learned": "that were for choosing or testing and stand in training text",
}
_SHOWN = 5  # files that are named one by one
_ALL = "data add --json names all"


def warnings(reading: Reading) -> Iterator[str]:
    """What was named and not read."""
    for path, reason in reading.skipped[:_SHOWN]:
        yield f"{path} was skipped: {reason}"
    if len(reading.skipped) > _SHOWN:
        reasons = Counter(reason for _, reason in reading.skipped[_SHOWN:])
        yield f"{len(reading.skipped) - _SHOWN} more files were skipped: {_counted(reasons)}; {_ALL}"
    if talks := reading.unknown_talks:
        names = ", ".join(path.name for path in talks[:_SHOWN]) + (
            f" and {len(talks) - _SHOWN} more" if len(talks) > _SHOWN else ""
        )
        yield f"--me found no conversation in {names}: the form is unknown, and all of it is learned as plain text"
    elif reading.has_no_talk:
        yield "--me found no conversation"
    often = sorted(reading.left.items(), key=lambda item: -item[1].count)
    for reason, left in often[:_SHOWN]:
        yield f"left out {left}: {reason}"
    if len(often) > _SHOWN:
        yield f"left out {sum(left.count for _, left in often[_SHOWN:])} times for {len(often) - _SHOWN} other reasons; {_ALL}"
    if any("keys" in reason for reason in reading.left):
        yield f"a line is read that has {shapes.WANTED}"
    if reading.missing:
        yield f"{_counted(reading.missing)} files were left out; to read them: {INSTALL}"


def locality(report: Report, local: bool | None) -> Iterator[str]:
    """What is to be known of local text that is or was shared."""
    if report.made_local:
        yield (
            f"{report.made_local} files were shared until now: from here on the generalist learns nothing of them; what it has "
            "learned stays in it, and in a fleet that has it"
        )
    if report.also_shared and local:
        yield (
            f"{report.also_shared} local documents stand in shared files too, of which the generalist learns; see: "
            "comigs-edge data list"
        )


def remarks(reading: Reading) -> Iterator[str]:
    """What was passed over or read in a special way."""
    if reading.owners:
        yield printable(f"learned as your own messages: those of {' and '.join(reading.owners)}")
    if reading.ignored:
        yield f"of other kinds: {_counted(reading.ignored)}"
    if reading.folders:
        yield f"passed over: {_counted(reading.folders)}"
    for encoding in dict.fromkeys(reading.encodings.values()):
        names = [path.name for path, found in reading.encodings.items() if found == encoding]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        yield printable(f"read as {encoding}: {', '.join(names[:_SHOWN])}{more}")
    if reading.tools:
        exports = ", ".join(dict.fromkeys(path.name for path in reading.tools))
        yield printable(f"{exports}: the chat tool's answers are learned; your own messages with --me user")


def forgotten(report: Report, named: Iterable[str]) -> Iterator[str]:
    """What stays out since it was forgotten, and how it comes back."""
    if report.forgotten:
        count = counted(report.forgotten, "forgotten document")
        yield f"{count} left out; bring back what was forgotten with: comigs-edge data add --forgotten {shlex.join(named)}"


def as_table(reading: Reading, report: Report) -> dict[str, Any]:
    """What was read, added and left out, with every reason."""
    numbers = {name: value for name, value in vars(report).items() if isinstance(value, int)}
    return numbers | {
        "files": len(reading.files),
        "empty": reading.empty,
        "skipped": [{"file": str(path), "reason": reason} for path, reason in reading.skipped],
        "left_out": [
            {"reason": reason, "count": left.count, "first": left.first}
            for reason, left in sorted(reading.left.items(), key=lambda item: -item[1].count)
        ],
        "taken_over": report.taken_over,
        "other_kinds": reading.ignored,
        "need_import": reading.missing,
        "folders_passed_over": reading.folders,
        "encodings": {str(path): encoding for path, encoding in reading.encodings.items()},
        "owners": reading.owners,
        "unknown_talks": [str(path) for path in reading.unknown_talks],
    }


def left_out(counts: Mapping[str, int]) -> str:
    """How many documents are not used, and why."""
    return ", ".join(f"{counts[reason]} {words}" for reason, words in REASONS.items() if counts.get(reason))


def _counted(counts: Counter[str]) -> str:
    shown = [f"{count} {printable(name)}" for name, count in counts.most_common(8)]
    rest = sum(counts.values()) - sum(count for _, count in counts.most_common(8))
    return ", ".join(shown) + (f", {rest} others" if rest else "")
