"""What a device holds of the private windows that it takes part in, in `fleet/windows/` of its home.

    ID.json     what it has given, to give nothing else
    .ID.seed    what is secret of it; packed into no archive of a home
    ../answered contents of the last updates whose sums this device has helped to open: SHA-256, one a line

Each step is written down before anything of it is sent, so that after a crash it is done again with the very same values, or not
at all: an update is masked once, one list of senders confirmed, one answer given. When the window is over, its file is deleted.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from comigs_edge import files
from comigs_edge.fleet.records import known
from coordinator.protocol.private.cohort import Cohort, Distrust, read_cohort
from coordinator.protocol.private.messages import SignedKeys, SignedTerms


@dataclass(kw_only=True)
class Held:
    """Of one window. The `seed` is forgotten with the answer, and where the device left the window."""

    window: str
    seed: str  # hexadecimal; empty: the device gives nothing more
    keys: tuple[str, str] = ("", "")  # this device's, signed
    terms: tuple[str, str] = ("", "")  # from here on: once it has shared
    cohort: list[list[str]] = field(default_factory=list)  # everybody's keys, signed
    update_id: str = ""  # from here on: once it has masked an update
    digest: str = ""  # of its content
    shared: list[str] = field(default_factory=list)
    boxes: dict[str, str] = field(default_factory=dict)
    head: str = ""
    senders: list[str] = field(default_factory=list)  # once it has confirmed them
    answer: str = ""  # once it has given its shares: the very message

    @property
    def own_keys(self) -> SignedKeys:
        """As they were sent."""
        return SignedKeys(keys=self.keys[0], signature=self.keys[1])

    def read_cohort(self, signing_key: str) -> Cohort:
        """Of the window that this device has shared its secrets in."""
        terms = SignedTerms(terms=self.terms[0], signature=self.terms[1])
        return read_cohort(terms, signing_key, [SignedKeys(keys=made, signature=signature) for made, signature in self.cohort])

    def fix(self, **values: object) -> None:
        """Sets fields that are set once; raises `Distrust` where one has another value already."""
        for name, value in values.items():
            if any(said := getattr(self, name)) and said != value:
                raise Distrust("the coordinator says something else now than it has said before")
        for name, value in values.items():
            setattr(self, name, value)


MOST_HELD, MOST_ANSWERED = 4, 256  # windows, and contents


class HeldWindows:
    """The files."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._answered = folder, folder.parent / "answered"

    def begin(self, window: str) -> Held:
        """A window that this device takes part in from now on; it is written with its keys."""
        # A seed that is there without its file has no memory of what was masked with it: it is never taken up.
        return Held(window=window, seed=secrets.token_hex(32))

    def find(self, window: str) -> Held | None:
        """What is held of a window; one that cannot be read is left, since nobody knows what was given in it."""
        path = self._path(window)
        if not path.exists():
            return None
        seed = self._read_seed(window)
        try:
            written = json.loads(path.read_bytes())
            facts = known({"cohort": written.get("roster", []), **written}, Held)  # as earlier versions call it
            seed = "" if facts["answer"] else seed  # a kill came before it was deleted
            return Held(**facts | {"seed": seed} | {name: tuple(facts[name]) for name in ("keys", "terms")})
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return Held(window=window, seed="")

    def save(self, held: Held) -> None:
        """Replaces the files; what they say is on the disk when this returns."""
        files.make_folder(self._folder)
        seed = self._seed(held.window)
        if held.seed and self._read_seed(held.window) != held.seed:
            files.write_atomic(seed, held.seed.encode())
        if not (held.seed or held.answer):
            seed.unlink(missing_ok=True)  # before the rest, which no longer says that it was left once a kill comes between
        files.write_atomic(self._path(held.window), json.dumps(asdict(held) | {"seed": ""}).encode())
        if not held.seed:
            seed.unlink(missing_ok=True)

    def leave(self, held: Held) -> None:
        """Gives nothing more in this window: its secrets are forgotten."""
        held.seed, held.boxes, held.answer = "", {}, ""
        self.save(held)

    def leave_all(self) -> None:
        """The device leaves its fleet; which updates it has masked stays, since they may count."""
        for held in self._all():
            self.leave(held)
        for path in self._folder.glob(".*.seed"):  # of windows whose files were never written
            path.unlink(missing_ok=True)

    def note_answered(self, held: Held) -> None:
        """Its update may be in a sum that is opened now; to be called before the answer is sent."""
        digests = self._contents()
        if held.digest not in digests:
            files.write_atomic(self._answered, "\n".join([*digests, held.digest][-MOST_ANSWERED:]).encode())

    def was_answered(self, digest: str) -> bool:
        """Whether this very content was, or may have been, in a sum that was opened."""
        return digest in self._contents()

    def _contents(self) -> list[str]:
        return self._answered.read_text(errors="replace").split() if self._answered.exists() else []

    def keep(self, windows: Collection[str]) -> None:
        """Deletes what is held of all other windows: they are over."""
        with suppress(FileNotFoundError):
            for path in sorted(self._folder.iterdir()):  # seeds first
                if path.name.strip(".").split(".")[0] not in windows:
                    path.unlink(missing_ok=True)

    def has(self, update_id: str, *, but: str = "") -> bool:
        """Whether an update is masked in one of the windows, `but` this one, or may be: in one that cannot be read."""
        return any(held.update_id == update_id or not held.keys[0] for held in self._all() if held.window != but)

    @property
    def is_waiting(self) -> bool:
        """Whether a window of them will take an update, and has none yet."""
        return any(held.seed and not held.update_id for held in self._all())

    @property
    def is_full(self) -> bool:
        """Whether this device takes part in as many as an honest coordinator never asks for at once."""
        return len(self._all()) >= MOST_HELD

    def _all(self) -> list[Held]:
        names = [path.stem for path in self._folder.glob("[!.]*.json")] if self._folder.exists() else []
        return [held for name in names if (held := self.find(name)) is not None]

    def _read_seed(self, window: str) -> str:
        """Empty where there is none, or a damaged one."""
        path = self._seed(window)
        text = path.read_text(errors="replace") if path.is_file() else ""
        return text if re.fullmatch("[0-9a-f]{64}", text) else ""

    def _seed(self, window: str) -> Path:
        return self._folder / f".{window}.seed"

    def _path(self, window: str) -> Path:
        return self._folder / f"{window}.json"
