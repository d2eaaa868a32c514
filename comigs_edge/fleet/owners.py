"""What a home's person has said of the owners of fleets, who sign rosters, and how far each one's rosters have come.

`owners.json` of the home outlives `fleet/`, which is set aside where a fleet is left or its coordinator signs with another key.
Each thing stands in another file too: the key in the membership and in the facts of the standing, the newest roster in
`fleet/roster.json`. So a damaged file loses nothing, and where all of them are, a device asks and does not forget.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from comigs_edge import files

ROSTER = "roster.json"  # in `fleet/` of the home: the newest that this device has seen


class Owned(msgspec.Struct, kw_only=True):
    """Of one fleet."""

    # The owner's public key by the coordinator (its pin) at which it was said, the last one last: another coordinator may take a
    # fleet's id. Empty: the person wants no roster there.
    keys: dict[str, str]
    newest: dict[str, tuple[int, str]] = {}  # owner's key -> number of the newest roster that was seen, SHA-256 of what it says

    @property
    def last(self) -> str:
        """The key that was said last."""
        return list(self.keys.values())[-1] if self.keys else ""


class Owners:
    """The file; the fleet that was joined last is its last. Damage is told in `notes`, once, and mended by the next writing."""

    def __init__(self, path: Path, notes: list[str]) -> None:
        self._path, self._notes = path, notes

    def read(self) -> tuple[dict[str, Owned], str | None]:
        """By the fleets' ids; and why it cannot be read, where that is so."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, Owned]), None
        except FileNotFoundError:
            return {}, None
        except (OSError, ValueError) as error:  # msgspec's own are such, and UTF-8's
            return {}, f"{self._path} cannot be read ({error})"

    def find(self, fleet: str) -> Owned | None:
        """What is known of a fleet's owner; the user hears of damage."""
        known, flaw = self.read()
        if flaw and not any(flaw in note for note in self._notes):
            self._notes.append(f"{flaw}; it is made anew of what membership.json and {ROSTER} say")
        return known.get(fleet)

    def say(self, fleet: str, pin: str, key: str, newest: tuple[int, str] | None = None) -> None:
        """Keeps the key of a fleet's owner, and the number and SHA-256 of the `newest` roster that was seen.

        Nothing is written of a home that never knew a key.
        """
        known, flaw = self.read()
        if not (key or known or flaw):
            return
        owned = known.pop(fleet, None) or Owned(keys={})
        owned.keys.pop(pin, None)
        seen = {} if newest is None else {key: newest}
        known[fleet] = Owned(keys=owned.keys | {pin: key}, newest=owned.newest | seen)
        self._write(known)

    def _write(self, known: dict[str, Owned]) -> None:
        before, flaw = self.read()
        if flaw:
            aside = self._path.with_name(f"{self._path.name}.damaged")
            if aside.exists():
                files.remove(aside)
            self._path.replace(aside)
        if flaw or msgspec.json.encode(before) != msgspec.json.encode(known):
            files.write_atomic(self._path, msgspec.json.encode(known))
