"""Whether a device should be left alone just now: what is read every few seconds, and the limits it is held against.

`reasons` decides and knows neither files nor a clock; `readings` reads the kernel's files, as `profiles.detect` does.
Every limit comes in two: beyond the first one work pauses, and it resumes only at the second, so that it does not change
its mind with every reading.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from profiles import detect

# °C. Raspberry Pi documentation, "Frequency management and thermal control": it slows down at 80 and again at 85.
PI_TEMPERATURE = 80.0
# °C. A Jetson Orin slows down at 99 and goes off at 104.5 (Linux, tegra234-p3701-0000.dtsi, cpu-thermal); the processors of
# laptops slow down at 95 to 105 (TjMax in their data sheets), and many a laptop works at 90 all day.
OTHER_TEMPERATURE = 95.0
# Percent. Ours: above the 20 at which desktops warn (UPower, PercentageLow), so that training never causes that.
BATTERY = 30
# Bytes. Ours: a training that just fits still runs, and it pauses before programs are killed (earlyoom: at 10 %, which is
# 200 MB of 2 GB, once the swap is full too).
MEMORY = 100_000_000
# Of the cores. Ours: programs that want every core get half of them beside training, which wants every core too.
OTHER_LOAD = 0.4
COOLER, FULLER = 10.0, 10  # °C below and percent above the limit, where work resumes
WINDOW = 30  # seconds over which the load is taken: starting a program is no reason to pause


@dataclass(frozen=True)
class Readings:
    """What was read; None where the device has no such thing."""

    temperature: float | None = None  # °C, of the hottest zone
    on_battery: bool = False
    battery: int | None = None  # percent
    memory_left: int | None = None  # bytes, those of the container where it has a limit
    other_load: float | None = None  # cores that other programs keep busy
    cores: int = 1  # of which that is a part


@dataclass(frozen=True)
class Limits:
    """Where work pauses, and where it resumes."""

    pause_temperature: float = OTHER_TEMPERATURE
    resume_temperature: float = OTHER_TEMPERATURE - COOLER
    pause_battery: int = BATTERY
    resume_battery: int = BATTERY + FULLER
    min_memory: int = MEMORY
    resume_memory: int = 2 * MEMORY
    max_other_load: float = OTHER_LOAD  # share of the cores
    resume_other_load: float = OTHER_LOAD / 2


class Reason(NamedTuple):
    """Why to pause: which quantity, and a text with its value and its limit."""

    kind: str  # temperature, battery, memory or load
    text: str


def limits(temperature: float | None, battery: int, memory: int, load: float, root: Path = Path("/")) -> Limits:
    """Limits around the ones given; the temperature's default is that of the device."""
    if temperature is None:
        temperature = PI_TEMPERATURE if "Raspberry Pi" in detect.model(root) else OTHER_TEMPERATURE
    return Limits(
        pause_temperature=temperature, resume_temperature=temperature - COOLER,
        pause_battery=battery, resume_battery=min(100, battery + FULLER),
        min_memory=memory, resume_memory=2 * memory, max_other_load=load, resume_other_load=load / 2,
    )  # fmt: skip


def reasons(now: Readings, limits: Limits, paused_for: Collection[str] = ()) -> tuple[Reason, ...]:
    """Why to pause, or to stay paused; empty: continue. `paused_for` names the kinds that a pause already has.

    Only those are held against the second limit: a steady load that never was a reason does not become one because the
    device was hot.
    """
    checks = {"temperature": _heat, "battery": _battery, "memory": _memory, "load": _load}
    texts = ((kind, check(now, limits, kind in paused_for)) for kind, check in checks.items())
    return tuple(Reason(kind, text) for kind, text in texts if text)


def _heat(now: Readings, limits: Limits, is_paused: bool) -> str:
    if now.temperature is None:
        return ""
    hot = now.temperature >= limits.resume_temperature if is_paused else now.temperature > limits.pause_temperature
    return f"{now.temperature:.0f} °C, resumes below {limits.resume_temperature:.0f}" if hot else ""


def _battery(now: Readings, limits: Limits, is_paused: bool) -> str:
    level = limits.resume_battery if is_paused else limits.pause_battery
    if not now.on_battery or now.battery is None or now.battery >= level:
        return ""
    return f"battery at {now.battery} %, resumes at {limits.resume_battery} or when plugged in"


def _memory(now: Readings, limits: Limits, is_paused: bool) -> str:
    needed = limits.resume_memory if is_paused else limits.min_memory
    if now.memory_left is None or now.memory_left >= needed:
        return ""
    return f"{now.memory_left / 1e6:.0f} MB of memory left, resumes at {limits.resume_memory / 1e6:.0f}"


def _load(now: Readings, limits: Limits, is_paused: bool) -> str:
    if now.other_load is None:
        return ""
    share, resume = now.other_load / now.cores, limits.resume_other_load
    busy = share >= resume if is_paused else share > limits.max_other_load
    text = f"other programs use {now.other_load:.1f} of {now.cores} cores, resumes below {resume * now.cores:.1f}"
    return text if busy else ""


def readings(root: Path = Path("/"), load: OtherLoad | None = None) -> Readings:
    """What the decision needs and nothing else: it is called every few seconds."""
    power = detect.power(root)
    return Readings(
        temperature=detect.temperature(root),
        on_battery=power.has_battery and not power.on_mains,
        battery=power.percent,
        memory_left=detect.usable_memory(root),
        other_load=load.read() if load else None,
        cores=load.cores if load else 1,
    )


class _Times(NamedTuple):
    """CPU time since the start, in ticks."""

    busy: int  # of all processes
    passed: int  # busy or not
    own: int  # of this process and its children
    cores: int


class OtherLoad:
    """How many cores other programs keep busy: the CPU time of all processes less that of this one and its children.

    Not the load average, in which the threads of this process count too. Only cores that this process may run on are
    looked at. Time that a hypervisor gives to other machines (steal) is nobody's load. In a container /proc/stat is that
    of the whole machine, so what other containers do on these cores counts.
    """

    def __init__(self, root: Path = Path("/"), cores: Collection[int] | None = None) -> None:
        self._root, self.cores = root, 1
        if cores is None and hasattr(os, "sched_getaffinity"):
            cores = os.sched_getaffinity(0)
        self._names = None if cores is None else {f"cpu{number}" for number in cores}
        self._second = os.sysconf("SC_CLK_TCK")  # ticks
        self._seen: deque[_Times] = deque()
        self.read()

    def read(self) -> float | None:
        """Cores, over the last half minute or since the reading before; None for less than a second."""
        now = self._times()
        if now is None:
            return None
        self.cores, second = now.cores, self._second * now.cores
        if self._seen and self._seen[0].cores != now.cores:  # one was switched on or off: its ticks came or went
            self._seen.clear()
        self._seen.append(now)
        while len(self._seen) > 2 and now.passed - self._seen[1].passed >= WINDOW * second:
            self._seen.popleft()
        then = self._seen[0]
        passed, others = now.passed - then.passed, (now.busy - then.busy) - (now.own - then.own)
        return min(1.0, max(0.0, others / passed)) * now.cores if passed >= second else None

    def _times(self) -> _Times | None:
        try:
            machine = (self._root / "proc/stat").read_text().splitlines()
            own = (self._root / "proc/self/stat").read_text().rpartition(")")[2].split()  # the name may hold anything
        except OSError:
            return None
        busy = passed = cores = 0
        for name, *fields in (line.split() for line in machine if line.startswith("cpu")):
            if name == "cpu" or (self._names is not None and name not in self._names):
                continue
            user, nice, system, idle, iowait, irq, softirq, steal = (int(field) for field in fields[:8])
            running = user + nice + system + irq + softirq  # a virtual machine's guests are in user and nice already
            busy, passed, cores = busy + running, passed + running + idle + iowait + steal, cores + 1
        return _Times(busy, passed, sum(int(field) for field in own[11:15]), cores) if cores else None
