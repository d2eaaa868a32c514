"""What time brings: rounds close at their deadlines, and closed rounds become generalists."""

from __future__ import annotations

import asyncio
import logging
import sqlite3

from coordinator.ledger import overview
from coordinator.ledger.fleet import Fleet
from coordinator.ledger.making import Damaged, make_generalist, measure_distances
from coordinator.ledger.payloads import DiskFailure
from coordinator.ledger.private import PrivateRounds
from coordinator.protocol.errors import Refused
from coordinator.web.answers import disk_trouble

log = logging.getLogger("comigs-coordinator")


async def keep_time(fleet: Fleet, wake: asyncio.Event, private: PrivateRounds | None = None) -> None:
    """Closes rounds at their deadlines and publishes generalists, each second and when `wake` is set, until it is cancelled."""
    while True:
        try:
            step = fleet.follow_clock()
            await publish(fleet)
            fleet.close_if_complete()
            if private is not None:
                private.windows.move(step)
                await open_sums(private)
                await publish(fleet)
                private.advance()
            fleet.members.flush()
        except Refused as error:  # the disk is full: tried again
            log.warning("%s", error.message)
        except (DiskFailure, sqlite3.OperationalError, OSError) as error:
            log.warning("%s", disk_trouble(error).message)
        wake.clear()
        try:
            await asyncio.wait_for(wake.wait(), 1.0)
        except asyncio.TimeoutError:
            continue


async def open_sums(private: PrivateRounds) -> None:
    """Makes rounds of the private windows whose sums can be opened."""
    if (opening := private.to_open()) is not None and (found := await asyncio.to_thread(private.add_up, *opening)) is not None:
        private.settle(found)


async def publish(fleet: Fleet) -> None:
    """Makes the generalists of all closed rounds."""
    fleet.close_if_complete()
    while (job := fleet.chain.next_job(fleet.members.generalist)) is not None:
        fleet.chain.record_distances(job.round, await asyncio.to_thread(measure_distances, job, fleet.payloads))
        try:
            made = await asyncio.to_thread(make_generalist, job, fleet.payloads)
        except Damaged as error:
            fleet.lose(error.payloads)
            continue
        fleet.chain.publish(job, made)
        log.info("generalist %d, of %d devices", job.round, len(job.updates))
        for name, reason in overview.alarms(fleet, job.round).items():
            log.warning("%s: %s", name, reason)
