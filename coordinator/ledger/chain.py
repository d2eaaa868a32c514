"""The published generalists: a signed chain of manifests, made from closed rounds, rolled back where devices refuse."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.ledger.database import Database
from coordinator.ledger.making import Counted, Job, Made
from coordinator.ledger.members import Device
from coordinator.ledger.payloads import Payloads
from coordinator.ledger.standby import sound_before
from coordinator.protocol import keys, rounds
from coordinator.protocol.errors import Refused
from coordinator.protocol.messages import Generalist, Refusal, SignedManifest

KEPT_GENERALISTS = 10  # payloads; all manifests are kept


class Chain:
    """The generalists of a fleet."""

    def __init__(
        self, database: Database, payloads: Payloads, signing_key: Ed25519PrivateKey, fleet: str, clock: Callable[[], float]
    ) -> None:
        self._database, self._payloads, self._clock, self._fleet = database, payloads, clock, fleet
        self._signing_key = signing_key

    @property
    def signing_key(self) -> str:
        """The public key that manifests are checked with."""
        return keys.public_text(self._signing_key)

    @property
    def newest_number(self) -> int:
        """-1 before the first generalist."""
        number = self._database.value("SELECT max(number) FROM rounds WHERE published IS NOT NULL")
        return -1 if number is None else int(number)

    @property
    def newest(self) -> SignedManifest | None:
        """The newest generalist's manifest."""
        manifests = self.manifests(self.newest_number - 1)
        return manifests[-1] if manifests else None

    def manifests(self, after: int) -> list[SignedManifest]:
        """The chain after this number, a thousand links at most."""
        rows = self._database.rows(
            "SELECT manifest, signature FROM rounds WHERE number > ? AND published IS NOT NULL AND manifest IS NOT NULL "
            "ORDER BY number LIMIT 1000",
            after,
        )
        return [SignedManifest(**row) for row in rows]

    # From closed rounds -------------------------------------------------------------------------------------------

    def next_job(self, generalist: Generalist | None) -> Job | None:
        """The oldest closed round without a generalist."""
        row = self._database.row("SELECT * FROM rounds WHERE closed IS NOT NULL AND published IS NULL ORDER BY number")
        if row is None or generalist is None:
            return None
        before = self._database.row("SELECT * FROM rounds WHERE number = ?", row["number"] - 1)
        if before is None or before["lost"] is not None:
            before = sound_before(self._database, self._payloads, row["number"])
        if before is None and row["number"] > 0:
            return None  # no generalist is left to add to: it waits for its payload
        updates = self._database.rows(
            "SELECT sha256, trained_from, weight, coalesce(counted_weight, weight) AS counted_weight, format, averaging "
            "FROM updates WHERE round = ? AND lost IS NULL ORDER BY device",
            row["number"],
        )
        sha256 = None if before is None else before["sha256"]
        return Job(row["number"], generalist, sha256, [Counted(**update) for update in updates])

    def publish(self, job: Job, made: Made) -> None:
        """Enters a generalist that `make_generalist` has written: the next link of the chain."""
        with self._database.transaction():
            self._enter(job.generalist, number=job.round, devices=len(job.updates), **made._asdict())
        self.collect()

    def record_distances(self, number: int, scores: Mapping[str, float]) -> None:
        """Keeps what `measure_distances` found."""
        with self._database.transaction():
            for sha256, score in scores.items():
                self._database.run("UPDATE updates SET distance = ? WHERE round = ? AND sha256 = ?", score, number, sha256)

    def _enter(self, generalist: Generalist, **link: Any) -> None:
        """Signs the chain's next link: its `number`, `devices` and what `Made` has; of a way back, `rolled_back_to`."""
        manifest = keys.next_manifest(self.newest, fleet=self._fleet, base_sha256=generalist.base_sha256, **link)
        signed = keys.sign_manifest(self._signing_key, manifest)
        self._database.run(
            "UPDATE rounds SET published = ?, sha256 = ?, size = ?, devices = ?, manifest = ?, signature = ?, "
            "rolled_back_to = ?, change_sha256 = ?, change_size = ? WHERE number = ?",
            self._clock(), manifest.sha256, manifest.size, manifest.devices, signed.manifest, signed.signature,
            manifest.rolled_back_to, manifest.change_sha256, manifest.change_size, manifest.round,
        )  # fmt: skip

    def collect(self) -> None:
        """Deletes payloads that nothing refers to any more: updates of published rounds, old generalists."""
        kept = "SELECT {} FROM (SELECT * FROM rounds WHERE published IS NOT NULL ORDER BY number DESC LIMIT ?)"
        wanted = self._database.rows(
            f"{kept.format('sha256')} UNION {kept.format('change_sha256')} UNION "
            "SELECT updates.sha256 FROM updates JOIN rounds ON number = round WHERE published IS NULL",
            KEPT_GENERALISTS, KEPT_GENERALISTS,
        )  # fmt: skip
        self._payloads.collect({str(row["sha256"]) for row in wanted}, self._clock())

    # Roll-back ----------------------------------------------------------------------------------------------------

    def refuse(self, device: Device, refusal: Refusal, active: int, generalist: Generalist | None) -> dict[str, int]:
        """A device refuses the newest generalist; if a third of the fleet does, the one before is published again."""
        newest = self.newest_number
        known = self._database.value("SELECT 1 FROM refusals WHERE device = ? AND round = ?", device.id, refusal.round)
        if known is None:
            if refusal.round != newest or newest < 1 or generalist is None:
                raise Refused(409, "stale_round", f"generalist {refusal.round} cannot be refused, the newest is {newest}")
            with self._database.transaction():
                self._database.run(
                    "INSERT INTO refusals VALUES (?, ?, ?, ?)", device.id, refusal.round, refusal.loss_before, refusal.loss_after
                )
        # Sent again, too: the answer was lost, perhaps in a crash before the roll-back.
        enough = self._refusals(refusal.round, active)["refusals"] >= rounds.refusal_quorum(active)
        if generalist is not None and refusal.round == newest and enough and self.next_job(generalist) is None:
            self.roll_back(newest, generalist)
        return self._refusals(refusal.round, active)

    def _refusals(self, number: int, active: int) -> dict[str, int]:
        rows = self._database.rows(
            "SELECT device FROM refusals JOIN devices ON id = device WHERE round = ? AND revoked IS NULL", number
        )
        refusing = {row["device"] for row in rows}
        counted = rounds.believed(refusing, self.habitual(refusing), active)
        return {"refusals": len(counted), "active": active, "newest": self.newest_number}

    def habitual(self, refusing: Collection[str] | None = None) -> set[str]:
        """Ids of devices that refused most of the last generalists that the fleet made, under whatever number they came again.

        What only those made who are `refusing` now (None: who did last) is not the fleet's: a refuser could fill the list itself.
        """
        if refusing is None:
            last = "SELECT device FROM refusals WHERE round = (SELECT max(round) FROM refusals)"
            refusing = [row["device"] for row in self._database.rows(last)]
        others = (
            f"SELECT 1 FROM updates WHERE round = number AND lost IS NULL AND device NOT IN ({', '.join('?' * len(refusing))})"
        )
        own = f"published IS NOT NULL AND rolled_back_to IS NULL AND EXISTS ({others})"
        made = f"SELECT number FROM rounds WHERE {own} ORDER BY number DESC LIMIT ?"
        rows = self._database.rows(
            f"SELECT device FROM refusals JOIN rounds AS refused ON refused.number = round JOIN ({made}) AS made "
            "ON made.number = coalesce(refused.rolled_back_to, refused.number) "
            "GROUP BY device HAVING count(DISTINCT made.number) >= ?",
            *refusing, rounds.OF, rounds.REFUSED,
        )  # fmt: skip
        return {row["device"] for row in rows}

    def roll_back(self, newest: int, generalist: Generalist) -> None:
        """Publishes the generalist before `newest` under the open round's number, which grows by one."""
        open_round, now, good = newest + 1, self._clock(), sound_before(self._database, self._payloads, newest)
        if good is None:
            return
        with self._database.transaction():
            self._database.run("INSERT INTO rounds (number, opened) VALUES (?, ?)", open_round + 1, now)
            self._database.run("UPDATE updates SET round = ? WHERE round = ?", open_round + 1, open_round)
            self._database.run("UPDATE rounds SET closed = ? WHERE number = ?", now, open_round)
            self._enter(generalist, number=open_round, sha256=good["sha256"], size=good["size"], devices=0,
                rolled_back_to=good["number"])  # fmt: skip
        self.collect()
