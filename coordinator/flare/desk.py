"""The desk of a fleet on an engine: tasks for sites, and what becomes of their answers. No sockets, and no engine either.

Rules, counting, ledger and chain are the coordinator's own, in its own folder: the same updates make the same generalists, byte
for byte, whichever way they came. A site is the device of its name, and the engine's certificates say who a site is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from coordinator.ledger import config
from coordinator.ledger.fleet import Fleet
from coordinator.ledger.members import Device
from coordinator.protocol import keys, tasks
from coordinator.protocol.errors import CoordinatorError, Refused
from coordinator.protocol.messages import Commit, Join, Joined, Problem
from coordinator.protocol.tasks import Answer, Membership, Rejected, Task
from coordinator.web.timekeeper import publish

NOWHERE = "https://localhost"  # in place of the address of a coordinator that was never served
PRIVATE = "{} is of a private fleet, and FLARE carries no private rounds; run it with: comigs-coordinator serve --private"
log = logging.getLogger("comigs-coordinator")


class Sent(NamedTuple):
    """A task on its way: the message, and the generalist's bytes behind it."""

    head: bytes
    data: bytes


def check_plain(fleet: Fleet) -> None:
    """Raises `CoordinatorError` for a private fleet: what an engine brings are single updates."""
    if config.is_private(fleet.database, fleet.config):
        raise CoordinatorError(PRIVATE.format(fleet.database.path.parent))


class Desk:
    """Of one fleet, whose only writer it is; `pin` is the SHA-256 of the coordinator's certificate.

    Raises `CoordinatorError` where the fleet is private.
    """

    def __init__(self, fleet: Fleet, pin: bytes) -> None:
        check_plain(fleet)
        self.fleet, self._pin = fleet, pin
        self._rejected: dict[str, Rejected] = {}  # by device, what it brought last
        self._payloads: dict[str, bytes] = {}  # by SHA-256, those that were sent last

    def tasks(self, sites: Iterable[str]) -> Iterator[tuple[str, Sent]]:
        """What each site is told now."""
        names = {device.name: device for device in self.fleet.members.devices.values() if device.revoked is None}
        for site in sites:
            yield site, self.task(names.get(site))

    def task(
        self, device: Device | None, *, after: int | None = None, whole: bool = False, joined: Joined | None = None,
        problem: Problem | None = None,
    ) -> Sent:  # fmt: skip
        """What a device is told now, None of a stranger: the `whole` generalist where it asks for it or may have no change."""
        fleet, newest = self.fleet, self.fleet.chain.newest_number
        row = fleet.database.row("SELECT sha256, change_sha256 FROM rounds WHERE number = ?", newest) or {}
        has_change = device is not None and not whole and fleet.may_read(device, newest - 1)  # it says what two differ in
        change = self._payload(row.get("change_sha256")) if has_change else b""
        data = b"" if device is None else change or self._payload(row.get("sha256"))
        head = tasks.head(Task(
            word=secrets.token_hex(8), fleet=fleet.id, state=fleet.state(), mine=self._mine(device),
            links=fleet.chain.manifests(newest - tasks.LINKS if after is None else after),
            address=fleet.database.fact("address") or "", pin=self._pin.hex(), change=len(change),
            whole=0 if change else len(data), joined=joined, problem=problem,
        ))  # fmt: skip
        return Sent(head, data)

    def _payload(self, sha256: str | None) -> bytes:
        """One object for all sites that are told of it."""
        if sha256 is None:
            return b""
        if sha256 not in self._payloads:
            with contextlib.suppress(FileNotFoundError):
                data = self.fleet.payloads.path(sha256).read_bytes()
                self._payloads = dict([*self._payloads.items(), (sha256, data)][-2:])
        return self._payloads.get(sha256, b"")

    def _mine(self, device: Device | None) -> Membership | None:
        if device is None:
            return None
        state, rejected = self.fleet.state(device), self._rejected.get(device.id)
        return Membership(
            device=device.id, counted=state.counted, counted_in=state.counted_in, has_contributed=state.has_contributed,
            rejected=rejected,
        )  # fmt: skip

    def enter(self, site: str, data: bytes) -> Sent | None:
        """Enters a site's answer; returns the task that it gets at once, None where it has brought what it had."""
        try:
            answer, payload = tasks.unpack(data, Answer)
            if answer.join is not None:
                joined = self._admit(site, answer.join)
                return self.task(self.fleet.members.member(joined.device), joined=joined)
            device = self._device(site, answer.device)
            self.fleet.members.record_contact(device, len(data), 0)
            if answer.refusal is not None:
                with contextlib.suppress(Refused):  # another generalist was published meanwhile
                    self.fleet.refuse(device, answer.refusal)
            if answer.commit is None:
                return self.task(device, after=answer.after, whole=answer.whole)
            return self._bring(device, answer.commit, payload)
        except Refused as error:
            log.warning("%s: %s", site, error.message)
            return self.task(None, problem=Problem(error=error.code, message=error.message))
        except msgspec.DecodeError as error:
            log.warning("%s: its answer cannot be used: %s", site, error)
            return None

    def _admit(self, site: str, wish: Join) -> Joined:
        """Makes a site's home a member, under the site's name; one that was removed is not let in by its kit."""
        identity = keys.device_id(wish.public_key)
        if any(
            each.revoked is not None for each in self.fleet.members.devices.values() if site == each.name or identity == each.id
        ):
            sentence = f"{site} was removed from the fleet; to have it back, its owner makes a kit of another name"
            raise Refused(403, "revoked", sentence)
        try:
            link = self.fleet.members.invite(site, NOWHERE, self._pin)["link"]
        except CoordinatorError as error:
            raise Refused(409, "not_admitted", str(error)) from error
        wish.name, (_, wish.code, _) = site, keys.read_link(str(link))
        joined = self.fleet.join(wish)
        log.info("%s joined", joined.name)
        return joined

    def _device(self, site: str, device_id: str) -> Device:
        device = self.fleet.members.member(device_id)
        if device.name != site:
            sentence = f"this home is {device.name} in the fleet, and the site is {site}; a site has its device's name"
            raise Refused(403, "other_site", sentence)
        return device

    def _bring(self, device: Device, wish: Commit, payload: bytes) -> Sent | None:
        """Makes an update count; one that never will, as it is, brings its device another task."""
        fleet = self.fleet
        wish.expected_round = fleet.open_round
        self._rejected.pop(device.id, None)
        try:
            if fleet.receipt_if_counted(device, wish) is None:
                table = fleet.table(wish.trained_from)
                with fleet.payloads.hold(wish.sha256):
                    self._keep(device, wish.sha256, payload)
                    receipt = fleet.record(device, wish, fleet.check_upload(device, wish, table))
                log.info("round %d: %s, weight %.2f", receipt.round, device.name, receipt.weight)
            return None
        except Refused as error:
            log.info("%s: %s", device.name, error.message)
            if error.code == "already_counted":
                return None
            self._rejected[device.id] = Rejected(
                update_id=wish.update_id, problem=Problem(error=error.code, message=error.message)
            )
            return self.task(device)

    def _keep(self, device: Device, sha256: str, payload: bytes) -> None:
        payloads = self.fleet.payloads
        if len(payload) > (limit := self.fleet.upload_limit()):
            raise Refused(413, "too_large", f"an update of this fleet has {limit:,} bytes at most")
        if not payloads.path(sha256).exists():
            payloads.forget(device.id, sha256)  # what a kill has left
            payloads.append(device.id, sha256, 0, payload)

    def tick(self) -> None:
        """What time brings: rounds close at their deadlines, closed rounds become generalists."""
        self.fleet.follow_clock()
        asyncio.run(publish(self.fleet))
        self.fleet.members.flush()
