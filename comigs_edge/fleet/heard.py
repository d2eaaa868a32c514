"""What a device heard of its fleet last, for `status` and for alarms; a file that may be lost."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from comigs_edge import files
from comigs_edge.errors import ComigsError
from comigs_edge.fleet.records import known
from coordinator.protocol.messages import COUNTED_IDS, State

MAX_ID = 64  # letters of an update's id
ALARM = 2  # times that `status` shows: once is what a device sees that was put back from a backup of its own


@dataclass(frozen=True, kw_only=True)
class Heard:
    """`strangers`: how often updates counted that came under this device's key and not from this home."""

    open_round: int = 0
    waits_for: int = 0  # devices that the open round needs
    trouble: str | None = None  # why the last exchange failed, if not for the network
    kept_out: str | None = None  # `News.kept_out`
    counted: tuple[str, ...] | None = None  # `State.counted`; None: nothing was heard yet
    strangers: int = 0

    def hear(self, state: State, own: Collection[str], kept_out: str | None = None) -> Heard:
        """After an answer of the coordinator; `own` are the ids of this home's updates, `kept_out` is `News.kept_out`."""
        counted = tuple(each[:MAX_ID] for each in state.counted[-COUNTED_IDS:])
        is_strange = self.counted is not None and not {*self.counted, *own}.issuperset(counted)
        return Heard(
            open_round=state.open_round, waits_for=state.waits_for, kept_out=kept_out, counted=counted,
            strangers=self.strangers + is_strange,
        )  # fmt: skip

    @property
    def waiting(self) -> str | None:
        """Why the round does not close."""
        devices = "1 more device" if self.waits_for == 1 else f"{self.waits_for} more devices"
        return f"round {self.open_round} waits for {devices}" if self.waits_for else None

    def alarm(self, key_file: Path) -> str | None:
        """Whether two homes speak with one key."""
        return None if self.strangers < ALARM else self.notice(key_file)

    def notice(self, key_file: Path) -> str:
        """What it means that updates came which this home does not know, and what to do."""
        own_key = f"delete {key_file.name} there and join it with an invitation"
        if self.strangers < ALARM:
            return (
                "an update came under this device's key and not from this home: the home was put back from a copy, or a copy of "
                "it speaks with the same key; nothing is lost, but what waited when the copy was made may count twice. Give a "
                f"copy that goes on training its own key: {own_key}"
            )
        return (
            f"{self.strangers} times updates came under this device's key and not from this home: a copy of its card speaks with "
            f"the same key. Give the copy its own: {own_key}"
        )


def read_heard(path: Path) -> Heard:
    """What was written; nothing where it is damaged or gone."""
    try:
        facts = known(json.loads(path.read_bytes()), Heard)
        return Heard(**facts | {"counted": None if facts["counted"] is None else tuple(facts["counted"])})
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return Heard()


def write_heard(path: Path, heard: Heard) -> None:
    """Writes it, if it changed; a disk that refuses is no reason to stop."""
    if heard != read_heard(path) and path.parent.exists():
        with contextlib.suppress(OSError, ComigsError):
            files.write_atomic(path, json.dumps(asdict(heard)).encode())
