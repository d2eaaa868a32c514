"""One fleet: its members, its chain of generalists, and what counts in which round. No sockets; the clock is given.

Every method either answers or raises `Refused`, and changes nothing then. What takes long has three parts: a question to the
ledger (`receipt_if_counted`), work on files that may run in another thread (`check_upload`), an entry into the ledger (`record`).
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Callable
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.ledger import damage, standby
from coordinator.ledger.chain import Chain
from coordinator.ledger.clock import Clock
from coordinator.ledger.config import Config
from coordinator.ledger.database import Database
from coordinator.ledger.members import Device, Members
from coordinator.ledger.payloads import Payloads
from coordinator.ledger.restoration import BACKUP, last_restoration, restore, sign_note
from coordinator.protocol import compress, counting, norms, rounds, wire
from coordinator.protocol.counting import Claim, Standing
from coordinator.protocol.errors import Refused, WireError
from coordinator.protocol.messages import COUNTED_IDS, JOINED_IDS, Commit, Join, Joined, Receipt, Refusal, Restoration, State

log = logging.getLogger("comigs-coordinator")


class Checked(NamedTuple):
    """An upload that is acceptable and durable."""

    size: int  # bytes
    norm: float  # L2


class Fleet:
    """The only writer of its ledger."""

    def __init__(
        self, database: Database, payloads: Payloads, signing_key: Ed25519PrivateKey, config: Config, clock: Callable[[], float]
    ) -> None:
        self.database, self.payloads, self.config, self.clock = database, payloads, config, clock
        self.signing_key = signing_key
        self.has_settings_file = True
        if database.fact("fleet") is None:
            with database.transaction():
                database.set_fact("fleet", secrets.token_hex(8))
                database.run("INSERT INTO rounds (number, opened) VALUES (0, ?)", clock())
        self.id = str(database.fact("fleet"))
        self.members = Members(database, clock)
        self.chain = Chain(database, payloads, signing_key, self.id, clock)
        self._clamp_times()
        if damage.mend(database, payloads, self.chain, self.members.generalist):
            self._ask_again()
        self.chain.collect()
        if database.fact(BACKUP) is not None:
            self.restore()

    def lose(self, damaged: set[str]) -> None:
        """Goes on without payloads that are damaged or gone."""
        if damage.lose(self.database, self.payloads, damaged):
            self._ask_again()
        self.warn_where_nothing_is_left()

    def warn_where_nothing_is_left(self) -> None:
        """Says in the log what the owner can do where no generalist is left."""
        if sentence := standby.nothing_left(self.database, self.payloads):
            log.warning("%s", sentence)

    def restore(self) -> Restoration:
        """Tells the devices that the coordinator goes on from an older copy of its folder."""
        return restore(self.database, self.chain, self.signing_key, self.id, self.clock)

    def _ask_again(self) -> None:
        """Devices whose updates were lost behind the newest generalist bring them again: they are told as after a restoration."""
        with self.database.transaction():
            sign_note(self.database, self.chain, self.signing_key, self.id, self.clock)

    # Time ---------------------------------------------------------------------------------------------------------

    def follow_clock(self) -> float:
        """Where the system's clock was set, what the fleet waits for moves with it; returns by how much, seconds."""
        step = self.clock.step() if isinstance(self.clock, Clock) else 0.0
        if step:
            with self.database.transaction():
                self.database.run("UPDATE updates SET received = received + ? WHERE round = ?", step, self.open_round)
                self.database.run(
                    "UPDATE invitations SET made = made + ?, expires = expires + ? WHERE device IS NULL", step, step
                )
                self.database.run("UPDATE rounds SET opened = opened + ? WHERE closed IS NULL", step)
            self.members.move_contacts(lambda contact: contact + step)
            log.warning("this machine's clock was set by %+.0f seconds", step)
        return step

    def _clamp_times(self) -> None:
        """Times that lie in the future were written by a clock that was ahead: they become now."""
        now = self.clock()
        with self.database.transaction():
            self.database.run("UPDATE updates SET received = ? WHERE received > ?", now, now)
            self.database.run("UPDATE invitations SET expires = ? + expires - made, made = ? WHERE made > ?", now, now, now)
            self.database.run("UPDATE rounds SET opened = min(opened, ?1), closed = min(closed, ?1) WHERE opened > ?1", now)
        self.members.move_contacts(lambda contact: min(contact, now))

    @property
    def open_round(self) -> int:
        """The round that updates go to."""
        return int(self.database.value("SELECT max(number) FROM rounds"))

    @property
    def active(self) -> int:
        """Number of devices with a recent contact."""
        return self.members.active(self.config.rounds.active_seconds)

    @property
    def awaited(self) -> int:
        """Number of the devices that rounds wait for."""
        return len(self.awaited_devices())

    def awaited_devices(self) -> list[Device]:
        """Active devices that have brought something, or joined, lately: rounds wait for these."""
        rules = self.config.rounds
        active = self.members.in_touch(self.clock() - rules.active_seconds)
        silent = {each.id for each in self.silent(active, rounds.awaited_since(rules, self.open_round))}
        return [each for each in active if each.id not in silent]

    def silent(self, devices: list[Device], since: int) -> list[Device]:
        """Those of the devices that have brought nothing since this round, and joined before."""
        brought = {row["device"] for row in self.database.rows("SELECT DISTINCT device FROM updates WHERE round >= ?", since)}
        return [each for each in devices if each.joined_at < since and each.id not in brought]

    def updates_in(self) -> tuple[int, float | None]:
        """How many updates the open round has, and when the first one came."""
        query = "SELECT count(*) AS updates, min(received) AS first FROM updates WHERE round = ? AND lost IS NULL"
        row = self.database.row(query, self.open_round) or {}
        return row["updates"], row["first"]

    def join(self, wish: Join) -> Joined:
        """Makes a device a member."""
        device = self.members.join(wish)
        return Joined(
            fleet=self.id, device=device.id, name=device.name, signing_key=self.chain.signing_key, settings=self.config.settings,
            counted=list(self._counted(device, JOINED_IDS)), former=device.former,
        )  # fmt: skip

    def revoke(self, name: str) -> dict[str, object]:
        """Removes a device; the round no longer waits for it."""
        device = self.members.revoke(name)
        self.close_if_complete()
        return {"name": device.name, "revoked": device.revoked}

    def state(self, device: Device | None = None) -> State:
        """Where the fleet stands, for this device; without what it says of one for none."""
        number, counted = self.open_round, {} if device is None else self._counted(device, COUNTED_IDS)
        return State(
            open_round=number, newest=self.chain.newest, settings=self.config.settings,
            has_contributed=device is not None and self._is_in(device, number),
            counted=list(counted), counted_in=list(counted.values()),
            next_poll_seconds=rounds.next_poll_seconds(self.active), norm_limit=norms.limit((), self._norms()),
            restored=last_restoration(self.database),
            waits_for=rounds.waits_for(self.config.rounds, number, self.updates_in()[0]),
        )  # fmt: skip

    def _counted(self, device: Device, last: int) -> dict[str, int]:
        """The ids of a device's last updates and their rounds, newest last; before them those of the one whose place it took."""
        query = "SELECT update_id, round FROM updates WHERE device = ? AND update_id IS NOT NULL ORDER BY round DESC LIMIT ?"
        ids = [device.former, device.id]
        found = (row for each in ids if each for row in reversed(self.database.rows(query, each, last)))
        return {row["update_id"]: row["round"] for row in found}

    def may_read(self, device: Device, number: int) -> bool:
        """Whether a generalist is for this device: the newest, and those since it joined.

        Two that follow each other differ by the mean of a round, which is one device's update where that was alone: what is
        made of two (a change) is for who may read both.
        """
        return number >= device.joined_at or number == self.chain.newest_number

    def refuse(self, device: Device, refusal: Refusal) -> dict[str, int]:
        """Records that a device keeps its old generalist; returns the counts of such devices."""
        if not all(math.isfinite(loss) for loss in (refusal.loss_before, refusal.loss_after) if loss is not None):
            raise Refused(422, "bad_refusal", "the losses must be numbers")
        return self.chain.refuse(device, refusal, self.active, self.members.generalist)

    # Updates ------------------------------------------------------------------------------------------------------

    def upload_limit(self) -> int:
        """Bytes of the largest update in the present format; 0 before the fleet has a generalist."""
        return 0 if self.members.generalist is None else wire.encoded_size(self.table(-1))

    def receipt_if_counted(self, device: Device, wish: Commit) -> Receipt | None:
        """The receipt of an update that is counted already; raises `Refused` for one that cannot be counted now."""
        # Without an id, as devices of before send it, an update is known by its payload and origin.
        known = self.database.row(
            "SELECT round, weight FROM updates WHERE device = ? AND update_id = ? UNION ALL "
            "SELECT round, weight FROM updates WHERE device = ? AND sha256 = ? AND trained_from = ? "
            "AND (update_id IS NULL OR ? IS NULL) AND lost IS NULL",
            device.id, wish.update_id, device.id, wish.sha256, wish.trained_from, wish.update_id,
        )  # fmt: skip
        if known is not None:
            return Receipt(round=known["round"], weight=known["weight"] / rounds.ONE)
        self.members.member(device.id)  # it may have been revoked since it asked
        number = self.open_round
        standing = Standing(number, self.chain.newest_number, self._is_in(device, number))
        counting.check_commit(wish, standing, self.config.rounds, device.name)
        return None

    def table(self, trained_from: int) -> wire.Table:
        """What an update that was trained from this generalist must look like."""
        generalist = self.members.generalist
        if generalist is None:
            raise Refused(409, "no_generalist", "the fleet trains nothing yet; join it first")
        shapes = counting.update_shapes(generalist.tensors, self.config.rounds.averaging, trained_from)
        return compress.table(shapes, self._format(trained_from))

    def check_upload(self, device: Device, wish: Commit, table: wire.Table) -> Checked:
        """Checks an upload's every byte and makes it durable. No ledger: may run in another thread."""
        size = wire.encoded_size(table)
        part = self.payloads.finish(device.id, wish.sha256, size)
        try:
            norm = counting.check_update(part.read_bytes(), table, self._format(wish.trained_from))
        except WireError as error:
            self.payloads.forget(device.id, wish.sha256)
            device.refused = str(error)
            raise Refused(422, "bad_update", str(error)) from error
        self.payloads.keep(part, wish.sha256)
        return Checked(size, norm)

    def record(self, device: Device, wish: Commit, checked: Checked) -> Receipt:
        """Counts a checked upload: from here on it is neither lost nor counted twice."""
        known = self.receipt_if_counted(device, wish)  # the round may have closed meanwhile
        if known is not None:
            return known
        rules = self.config.rounds
        weight = counting.weigh(wish, self.chain.newest_number, rules)
        with self.database.transaction():
            lost = "DELETE FROM updates WHERE device = ? AND round = ? AND lost IS NOT NULL"  # it comes again
            self.database.run(lost, device.id, wish.expected_round)
            self.enter(
                device=device.id, round=wish.expected_round, sha256=wish.sha256, trained_from=wish.trained_from, weight=weight,
                tokens=wish.tokens, size=checked.size, format=self._format(wish.trained_from), update_id=wish.update_id,
                validation_loss=wish.validation_loss, norm=checked.norm,
            )  # fmt: skip
            if wish.validation_loss is not None:
                self.database.run("UPDATE devices SET validation_loss = ? WHERE id = ?", wish.validation_loss, device.id)
        device.refused = None
        self.close_if_complete()
        return Receipt(round=wish.expected_round, weight=weight / rounds.ONE)

    def enter(self, **columns: str | float | None) -> None:
        """Enters an update into the ledger: its `columns`, and those that are the same for every one that comes now."""
        columns |= {"averaging": self.config.rounds.averaging, "received": self.clock()}
        marks = ", ".join("?" * len(columns))
        self.database.run(f"INSERT INTO updates ({', '.join(columns)}) VALUES ({marks})", *columns.values())

    def close_if_complete(self) -> bool:
        """Closes the open round if it is complete, and opens the next."""
        number, now, (updates, first) = self.open_round, self.clock(), self.updates_in()
        if first is None or not rounds.is_complete(self.config.rounds, number, updates, self.awaited, now - first):
            return False
        with self.database.transaction():
            self._weigh(number)
            self.database.run("UPDATE rounds SET closed = ? WHERE number = ?", now, number)
            self.database.run("INSERT INTO rounds (number, opened) VALUES (?, ?)", number + 1, now)
        return True

    def _weigh(self, number: int) -> None:
        """Enters what each update of a round that closes counts; that of round 0 is a generalist, no change."""
        rows = self.database.rows(
            "SELECT rowid AS id, weight, tokens, norm FROM updates WHERE round = ? AND lost IS NULL", number
        )
        claims = [Claim(row["weight"], row["tokens"], row["norm"] if number else None) for row in rows]
        for row, weights in zip(rows, counting.weigh_round(claims, self._norms(), self.config.rounds), strict=True):
            self.database.run("UPDATE updates SET weight = ?, counted_weight = ? WHERE rowid = ?", *weights, row["id"])

    def _norms(self) -> list[float]:
        """The norms with which the updates of the last closed rounds counted."""
        rows = self.database.rows(
            "SELECT norm, norm * counted_weight / weight AS counted, counted_weight = weight AS whole FROM updates "
            "WHERE norm IS NOT NULL AND counted_weight IS NOT NULL AND round IN (SELECT DISTINCT round FROM updates "
            "WHERE round > 0 AND norm IS NOT NULL AND counted_weight IS NOT NULL ORDER BY round DESC LIMIT ?)",
            norms.ROUNDS,
        )
        return [row["norm"] if row["whole"] else row["counted"] for row in rows]

    def _is_in(self, device: Device, number: int) -> bool:
        query = "SELECT 1 FROM updates WHERE device = ? AND round = ? AND lost IS NULL"
        return self.database.value(query, device.id, number) is not None

    def _format(self, trained_from: int) -> str:
        return compress.update_format(self.config.training.update_format, trained_from)
