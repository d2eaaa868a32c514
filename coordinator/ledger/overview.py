"""The facts of a fleet that the command line, the status page and the metrics show.

No text, no tensor and no key is in it.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from coordinator.ledger import damage, standby
from coordinator.ledger.fleet import Fleet
from coordinator.ledger.private import PrivateRounds
from coordinator.ledger.roster import is_listed, listed
from coordinator.protocol import distances, rounds

Facts = dict[str, Any]  # as JSON
ALARM_ROUNDS = 5
ENDED = 12  # windows that are listed


def overview(fleet: Fleet, started: float, version: str) -> Facts:
    """The fleet in general, its open round, and sums. Times are seconds since 1970, sizes bytes."""
    generalist, number = fleet.members.generalist, fleet.open_round
    rules, active, awaited = fleet.config.rounds, fleet.active, len(listed(fleet, fleet.awaited_devices()))
    updates, first = fleet.updates_in()
    devices = fleet.members.devices.values()
    members = [device for device in devices if device.revoked is None]
    return {
        "fleet": fleet.id, "version": version, "started": started, "now": fleet.clock(),
        "base": None if generalist is None else {"name": generalist.base_name, "sha256": generalist.base_sha256},
        "generalist": None if generalist is None else {"form": generalist.form, "tensors": len(generalist.tensors)},
        "newest_round": fleet.chain.newest_number, "open_round": number, "updates": updates,
        "goal": rounds.goal(rules, number, awaited), "quorum": rounds.quorum(rules, awaited),
        "deadline": None if first is None else first + rules.deadline_seconds,
        "devices": len(members), "active": active, "unlisted": len(members) - len(listed(fleet, members)),
        "bytes_in": sum(device.bytes_in for device in devices), "bytes_out": sum(device.bytes_out for device in devices),
        "disk_free": fleet.payloads.disk()[0], "sqlite_journal": fleet.database.journal,
        "lost": damage.lost(fleet.database),
        "alarms": alarms(fleet), "waits_for": rounds.waits_for(rules, number, updates), "notes": _notes(fleet, updates, first),
        "settings": {**asdict(fleet.config.training), "averaging": rules.averaging, "weights": rules.weights},
    }  # fmt: skip


def _notes(fleet: Fleet, updates: int, first: float | None) -> list[str]:
    """What the owner should know of the open round and of the settings, in words."""
    rules, number, found = fleet.config.rounds, fleet.open_round, []
    members = [device for device in fleet.members.devices.values() if device.revoked is None]
    ready = listed(fleet, members)
    if rounds.waits_for(rules, number, updates):
        few = f"; the fleet has {len(ready)}: invite more, or set min_devices" if len(ready) < rules.min_devices else ""
        found.append(f"round {number} waits: {updates} of {rules.min_devices} devices have sent{few}")
    elif first is not None and fleet.clock() >= first + rules.deadline_seconds:
        found.append(
            f"round {number} waits past its deadline: {updates} of {rounds.quorum(rules, fleet.awaited)} devices have sent; "
            "remove those that send nothing with: comigs-coordinator revoke NAME"
        )
    if unlisted := sorted(device.name for device in members if device not in ready):
        found.append(f"not in the owner's roster, so that no private window takes their updates: {', '.join(unlisted)}")
    if sentence := standby.nothing_left(fleet.database, fleet.payloads):
        found.append(sentence)
    if not fleet.has_settings_file:
        found.append(fleet.config.gone())
    return found


def windows(fleet: Fleet, private: PrivateRounds | None) -> Facts:
    """The private windows: those on their way, by counts alone, and how the last ones ended; None of a fleet that has none."""
    if private is None:
        return {"private": None, "ended": None}
    seconds = fleet.config.rounds.deadline_seconds
    return {
        "private": [
            {
                "stage": each.stage, "devices": len(each.parts["keys"]), "given": len(each.parts[each.stage]),
                "needed": each.needed, "deadline": None if each.since is None else each.since + seconds,
            }
            for each in private.windows.open.values()
        ],
        "ended": private.windows.ended(ENDED),
    }  # fmt: skip


def alarms(fleet: Fleet, since: int | None = None) -> dict[str, str]:
    """Devices that the owner should look at, and why, in the last rounds or since one; nothing is left out for it."""
    since = fleet.open_round - ALARM_ROUNDS if since is None else since
    rows = fleet.database.rows(
        "SELECT name, round, distance, 2 * counted_weight < weight AS is_long FROM updates JOIN devices ON id = device "
        "WHERE round >= ? AND revoked IS NULL ORDER BY round", since
    )  # fmt: skip
    found = _silent(fleet) | {row["name"]: reason for row in rows if (reason := _alarm(row))}
    habitual = (fleet.members.devices[identity] for identity in fleet.chain.habitual())
    return found | {
        device.name: f"it refused {rounds.REFUSED} or more of the last {rounds.OF} generalists; its refusals do not count"
        for device in habitual if device.revoked is None
    }  # fmt: skip


def _silent(fleet: Fleet) -> dict[str, str]:
    """Devices that are in touch and bring nothing, or nothing that counts, and why."""
    number, found = fleet.open_round, {}
    in_touch = fleet.members.in_touch(fleet.database.value("SELECT opened FROM rounds WHERE number = ?", max(0, number - 1)))
    for device in fleet.silent(in_touch, number - rounds.SILENT):
        last = fleet.database.value("SELECT max(round) FROM updates WHERE device = ?", device.id)
        since = "it joined" if last is None else f"round {last}"
        reason = "" if is_listed(fleet, device) else ", for it is not in the owner's roster"
        found[device.name] = f"it is in touch and has brought nothing since {since}{reason}"
    return found | {device.name: f"its updates are refused: {device.refused}" for device in in_touch if device.refused}


def _alarm(row: Facts) -> str | None:
    if row["distance"] is not None and row["distance"] > distances.FAR:
        return f"its update of round {row['round']} is {row['distance']:.1f} times as far from the others as is usual"
    if row["distance"] is not None and row["distance"] < distances.NEAR:
        return f"its update of round {row['round']} is nearly that of another device"
    if row["is_long"]:
        return f"its update of round {row['round']} is more than 3 times as large as is usual; it counts less for that"
    return None


def devices(fleet: Fleet) -> list[Facts]:
    """The devices, in the order in which they joined."""
    rows = fleet.database.rows(
        "SELECT id, name, joined, revoked, version, validation_loss, "
        "(SELECT count(*) FROM updates WHERE device = id) AS updates, "
        "(SELECT max(round) FROM updates WHERE device = id) AS last_round, "
        "(SELECT count(*) FROM refusals WHERE device = id) AS refusals FROM devices ORDER BY joined, name"
    )
    named = alarms(fleet)
    for row in rows:
        device = fleet.members.devices[row["id"]]
        row |= {
            "alarm": named.get(row["name"]),
            "last_contact": device.last_contact,
            "bytes_in": device.bytes_in,
            "bytes_out": device.bytes_out,
        }
    return rows


def rounds_table(fleet: Fleet, last: int = 200) -> list[Facts]:
    """The last rounds, oldest first; the open one is the last."""
    rows = fleet.database.rows(
        "SELECT number, opened, closed, published, rounds.sha256, rounds.size, rolled_back_to, count(device) AS devices, "
        "coalesce(sum(updates.size), 0) AS bytes_in, avg(validation_loss) AS validation_loss, sum(tokens) AS tokens, "
        "(SELECT count(*) FROM refusals WHERE refusals.round = number) AS refusals "
        "FROM rounds LEFT JOIN updates ON round = number GROUP BY number ORDER BY number DESC LIMIT ?",
        last,
    )
    for row in rows:
        updates = fleet.database.rows(
            "SELECT name, weight, trained_from, tokens, updates.size FROM updates JOIN devices ON id = device WHERE round = ? "
            "ORDER BY name",
            row["number"],
        )
        row["updates"] = [{**update, "weight": update["weight"] / rounds.ONE} for update in updates]
    return rows[::-1]
