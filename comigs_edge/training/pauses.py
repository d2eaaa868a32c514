"""Pauses of a training: it waits while the device is hot, low on battery, short of memory or busy with other programs.

`profiles.watch` decides what is a reason; this module decides when to look, what is done and said meanwhile, and how time is
counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from comigs_edge.home.config import PauseConfig
from comigs_edge.training.memory import give_back_memory
from profiles import watch
from profiles.watch import Limits, Readings

INTERVAL = 5.0  # seconds between two readings
PIECE = 0.2  # seconds of sleep in one piece: a signal is noticed within that time
PATIENCE = 600.0  # seconds without memory before a remedy is named


class Pauses:
    """Looks now and then whether to pause, and waits until no reason is left; without limits it never looks.

    Nothing of the training is touched, so it ends with the same bits as without pauses.
    """

    def __init__(
        self,
        limits: Limits | None,
        say: Callable[[str], None],
        release: Callable[[], int] = lambda: 0,
        read: Callable[[], Readings] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`release` gives memory back to the system and returns the bytes that the next step will take again."""
        self._limits, self._say, self._release, self._clock, self._sleep = limits, say, release, clock, sleep
        self._read = read or partial(watch.readings, load=watch.OtherLoad())
        self._next = clock()  # when to look again
        self._past = 0.0  # seconds of the pauses that are over
        self._since: float | None = None  # when the present one began
        self._is_explained = False  # what turns pauses off

    @property
    def seconds(self) -> float:
        """How long it was paused, the present pause included."""
        return self._past + (0.0 if self._since is None else self._clock() - self._since)

    def working_time(self) -> float:
        """A clock, in seconds, that stands still while paused."""
        return self._clock() - self.seconds

    def wait(self, stop: Sequence[int] = (), prepare: Callable[[], None] = lambda: None) -> None:
        """Returns when there is no reason to pause, or as soon as `stop` holds something.

        `prepare` is called when a pause begins: the last moment to save before the power may go.
        """
        if self._limits is None or self._clock() < self._next:
            return
        now = self._read()
        if watch.reasons(now, self._limits):
            self._since = self._clock()
            try:
                self._stay(now, self._limits, stop, prepare)
            finally:
                self._past, self._since = self.seconds, None
        self._next = self._clock() + INTERVAL

    def _stay(self, now: Readings, limits: Limits, stop: Sequence[int], prepare: Callable[[], None]) -> None:
        before, short_since = self.seconds, None
        known: set[str] = set()
        reasons = watch.reasons(now, limits)
        while reasons and not stop:
            kinds = {reason.kind for reason in reasons}
            if "memory" in kinds - known:
                # Memory that is given back counts as left, but the next step takes it again.
                limits = replace(limits, resume_memory=limits.resume_memory + self._release())
                reasons = watch.reasons(now, limits, kinds)
            if not kinds <= known:
                self._say(f"paused: {'; '.join(reason.text for reason in reasons)}{self._explain()}")
            if not known:
                prepare()
            known |= kinds
            short_since = self._remind("memory" in kinds, short_since)
            end = self._clock() + INTERVAL
            while not stop and (left := end - self._clock()) > 0:
                self._sleep(min(PIECE, left))
            now = self._read()
            reasons = watch.reasons(now, limits, kinds)
        if not stop:
            self._say(f"going on after {duration(self.seconds - before)}")

    def _explain(self) -> str:
        """Once, what a person can do about pauses."""
        is_known, self._is_explained = self._is_explained, True
        return "" if is_known else " ([pause] in config.toml has the limits, train --no-pause has none)"

    def _remind(self, is_short: bool, since: float | None) -> float | None:
        """Says once what can be done about memory that stays short; returns since when it is."""
        if not is_short:
            return None
        since = self._clock() if since is None else since
        if self._clock() - since < PATIENCE:
            return since
        self._say("still too little memory: end other programs, or lower memory_mb under [pause] in config.toml")
        return float("inf")


def open_pauses(settings: PauseConfig, is_wanted: bool, lean: bool, say: Callable[[str], None]) -> Pauses:
    """Pauses at the limits of the settings, on this device; none unless they are wanted. `lean`: see `tune_allocator`."""
    limits = watch.limits(settings.temperature, settings.battery, settings.memory_mb * 10**6, settings.load)
    return Pauses(limits if is_wanted and settings.enabled else None, say, partial(give_back_memory, lean))


def duration(seconds: float) -> str:
    """In words."""
    return f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.1f} minutes"
