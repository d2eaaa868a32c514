"""One fleet: its members, its chain of generalists, and what counts in which round. No sockets; the clock is given.

Every method either answers or raises `Refused`, and changes nothing then. What takes long is cut into a question to the
ledger (`counted`), work on files that may run in another thread (`check_upload`), and an entry into the ledger (`record`).
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.ledger.chain import Chain
from coordinator.ledger.config import Config
from coordinator.ledger.database import Database
from coordinator.ledger.members import Device, Members
from coordinator.ledger.payloads import Payloads
from coordinator.protocol import aggregate, compress, rounds, wire
from coordinator.protocol.errors import Refused
from coordinator.protocol.messages import COUNTED_IDS, Commit, Join, Joined, Receipt, Refusal, State


class Fleet:
    """The only writer of its ledger."""

    def __init__(
        self, database: Database, payloads: Payloads, signing_key: Ed25519PrivateKey, config: Config, clock: Callable[[], float]
    ) -> None:  # fmt: skip
        self.database, self.payloads, self.config, self.clock = database, payloads, config, clock
        if database.fact("fleet") is None:
            with database.transaction():
                database.set_fact("fleet", secrets.token_hex(8))
                database.run("INSERT INTO rounds (number, opened) VALUES (0, ?)", clock())
        self.id = str(database.fact("fleet"))
        self.members = Members(database, clock)
        self.chain = Chain(database, payloads, signing_key, self.id, clock)

    @property
    def open_round(self) -> int:
        """The round that updates go to."""
        return int(self.database.value("SELECT max(number) FROM rounds"))

    @property
    def active(self) -> int:
        """Devices that were heard of lately."""
        return self.members.active(self.config.rounds.active_seconds)

    def join(self, wish: Join) -> Joined:
        """Makes a device a member."""
        device = self.members.join(wish)
        return Joined(
            fleet=self.id, device=device.id, name=device.name, signing_key=self.chain.signing_key,
            settings=self.config.settings,
        )  # fmt: skip

    def revoke(self, name: str) -> dict[str, object]:
        """Removes a device; the round does not wait for it any more."""
        device = self.members.revoke(name)
        self.close_if_complete()
        return {"name": device.name, "revoked": device.revoked}

    def state(self, device: Device) -> State:
        """Where the fleet stands, for this device."""
        number = self.open_round
        return State(
            open_round=number, newest=self.chain.newest, settings=self.config.settings,
            has_contributed=self._is_in(device, number), counted=self._counted_ids(device),
            next_poll_seconds=rounds.next_poll_seconds(self.active),
        )  # fmt: skip

    def refuse(self, device: Device, refusal: Refusal) -> dict[str, object]:
        """A device keeps its old generalist."""
        if not (math.isfinite(refusal.loss_before) and math.isfinite(refusal.loss_after)):
            raise Refused(422, "bad_refusal", "the losses must be numbers")
        return self.chain.refuse(device, refusal, self.active, self.members.generalist)

    # Updates ------------------------------------------------------------------------------------------------------

    def upload_limit(self) -> int:
        """Bytes of the largest update in the present format; 0 before the fleet has a generalist."""
        return 0 if self.members.generalist is None else wire.encoded_size(self._table(0))

    def counted(self, device: Device, wish: Commit) -> Receipt | None:
        """The receipt of an update that is counted already; raises `Refused` for one that cannot be counted now."""
        known = self.database.row(
            "SELECT * FROM updates WHERE device = ? AND (update_id = ? OR sha256 = ? AND trained_from = ? "
            "AND (update_id IS NULL OR ? IS NULL))",
            device.id, wish.update_id, wish.sha256, wish.trained_from, wish.update_id,
        )  # fmt: skip
        if known is not None:
            return Receipt(round=known["round"], weight=known["weight"] / rounds.ONE)
        self.members.member(device.id)  # it may have been removed since it asked
        number, newest = self.open_round, self.chain.newest_number
        if wish.expected_round != number:
            raise Refused(409, "stale_round", f"round {wish.expected_round} is not open, round {number} is")
        if self._is_in(device, number):
            raise Refused(409, "already_counted", f"{device.name} has its update in round {number}; it counts once")
        first, last = (-1, -1) if number == 0 else (0, newest)  # only round 0 takes a generalist in place of a change
        if not first <= wish.trained_from <= last:
            raise Refused(
                409, "wrong_generalist",
                f"the update is a change of generalist {wish.trained_from}, the newest is {newest}; pull it first",
            )  # fmt: skip
        if rounds.staleness(newest, wish.trained_from) > self.config.rounds.max_staleness:
            raise Refused(
                409, "too_stale",
                f"the update was trained from generalist {wish.trained_from} and {newest} is the newest; pull it first",
            )  # fmt: skip
        if not 0 <= wish.tokens < 1 << 53 or not math.isfinite(wish.validation_loss or 0.0):
            raise Refused(422, "bad_commit", "tokens must be a count and the validation loss a number")
        return None

    def check_upload(self, device: Device, wish: Commit, table: wire.Table) -> int:
        """Checks an upload's every byte and makes it durable; returns its size. No ledger: may run in another thread."""
        size = wire.encoded_size(table)
        part = self.payloads.finish(device.id, wish.sha256, size)
        try:
            arrays = wire.decode_expected(part.read_bytes(), table, "the update")
            format_name = compress.used(self.config.training.update_format, wish.trained_from)
            for name, value in compress.largest(arrays, format_name).items():
                if value > aggregate.MAX_ABSOLUTE:
                    raise wire.WireError(f"the update: tensor {name} holds numbers beyond {aggregate.MAX_ABSOLUTE:g}")
        except wire.WireError as error:
            self.payloads.forget(device.id, wish.sha256)
            raise Refused(422, "bad_update", str(error)) from error
        self.payloads.keep(part, wish.sha256)
        return size

    def table_of(self, wish: Commit) -> wire.Table:
        """What the update must look like."""
        return self._table(wish.trained_from + 1)

    def record(self, device: Device, wish: Commit, size: int) -> Receipt:
        """Counts a checked upload: from here on it is neither lost nor counted twice."""
        known = self.counted(device, wish)  # the round may have closed meanwhile
        if known is not None:
            return known
        rules, now = self.config.rounds, self.clock()
        stale = rounds.staleness(self.chain.newest_number, wish.trained_from)
        weight = rounds.weight(rules, stale, wish.tokens)
        with self.database.transaction():
            self.database.run(
                "INSERT INTO updates VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                device.id, wish.expected_round, wish.sha256, wish.trained_from, weight, wish.tokens, size,
                compress.used(self.config.training.update_format, wish.trained_from), rules.averaging, wish.validation_loss, now,
                wish.update_id,
            )  # fmt: skip
            if wish.validation_loss is not None:
                self.database.run(
                    "UPDATE devices SET validation_loss = ? WHERE id = ?", wish.validation_loss, device.id
                )
        self.close_if_complete()
        return Receipt(round=wish.expected_round, weight=weight / rounds.ONE)

    def close_if_complete(self) -> bool:
        """Closes the open round if it is complete, and opens the next."""
        number, now = self.open_round, self.clock()
        found = self.database.row(
            "SELECT count(*) AS updates, min(received) AS first FROM updates WHERE round = ?", number
        )
        if not found or not found["updates"]:
            return False
        if not rounds.is_complete(self.config.rounds, number, found["updates"], self.active, now - found["first"]):
            return False
        with self.database.transaction():
            self.database.run("UPDATE rounds SET closed = ? WHERE number = ?", now, number)
            self.database.run("INSERT INTO rounds (number, opened) VALUES (?, ?)", number + 1, now)
        return True

    def _is_in(self, device: Device, number: int) -> bool:
        found = self.database.value("SELECT 1 FROM updates WHERE device = ? AND round = ?", device.id, number)
        return found is not None

    def _counted_ids(self, device: Device) -> list[str]:
        rows = self.database.rows(
            "SELECT update_id FROM updates WHERE device = ? AND update_id IS NOT NULL ORDER BY round DESC LIMIT ?",
            device.id, COUNTED_IDS,
        )  # fmt: skip
        return [row["update_id"] for row in reversed(rows)]

    def _table(self, number: int) -> wire.Table:
        generalist = self.members.generalist
        if generalist is None:
            raise Refused(409, "no_generalist", "the fleet trains nothing yet; join it first")
        wanted = rounds.trained(generalist.tensors, self.config.rounds.averaging, number)
        shapes = {name: tuple(generalist.tensors[name]) for name in wanted}
        return compress.table(shapes, compress.used(self.config.training.update_format, number - 1))
