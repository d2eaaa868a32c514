"""The routes of private windows."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from aiohttp import web

from coordinator.ledger.members import Device
from coordinator.ledger.private import PrivateRounds
from coordinator.ledger.window import KINDS
from coordinator.protocol.errors import Refused
from coordinator.protocol.private.messages import Masked
from coordinator.web.answers import answer, parse


class WindowRoutes:
    """Of a fleet that is private, or is not. `locks` are the devices'; few `checks` run at once; `wake` is for the timekeeper."""

    def __init__(
        self, private: PrivateRounds | None, locks: Mapping[str, asyncio.Lock], checks: asyncio.Semaphore, wake: asyncio.Event
    ) -> None:
        self._private, self._locks, self._checks, self._wake = private, locks, checks, wake

    def _rounds(self) -> PrivateRounds:
        if self._private is None:
            raise Refused(404, "not_private", "this fleet has no private windows; bring the update as it is")
        return self._private

    async def show(self, request: web.Request, device: Device, body: bytes) -> web.Response:
        """A window, as far as it has come."""
        return answer(self._rounds().show(request.match_info["window"], device))

    async def give(self, request: web.Request, device: Device, body: bytes) -> web.Response:
        """Takes what a device gives for a stage; the answer says where the fleet stands then."""
        private, window = self._rounds(), request.match_info["window"]
        stage = next((each for each in KINDS if each == request.match_info["stage"]), None)
        if stage is None:
            raise Refused(404, "no_stage", f"a private window has no stage {request.match_info['stage'][:20]!r}")
        part = parse(body, KINDS[stage])
        async with self._locks[device.id]:
            with private.arriving(part):
                if isinstance(part, Masked) and private.check(window, stage, device, part):
                    async with self._checks:
                        await asyncio.to_thread(private.finish, device, window, part.sha256)
                private.put(window, stage, device, part)
        self._wake.set()
        return answer(private.state(device))
